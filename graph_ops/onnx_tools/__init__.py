"""ONNX's own checker and shape inference in a child process, and a check of widths of our own.

Enters: a model. Leaves: inferred shapes, or the problems found.
"""
