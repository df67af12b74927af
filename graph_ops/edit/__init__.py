"""Graphs in, graphs out: growth, folding, the deploy form and the history of growth.

Enters: an ONNX model, and a plan if it is to grow. Leaves: an edited model, or an error and no edit.
"""
