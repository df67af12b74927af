"""What is measured on a model: outputs, differences, metrics, latency. The areas judge it.

Enters: onnxruntime sessions and inputs. Leaves: numbers, without a verdict.
"""
