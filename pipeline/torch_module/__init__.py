"""What is done to an `nn.Module`: export, growth, widening, recalibration, optimizer state.

Enters: a module, and a plan if it is to grow. Leaves: an ONNX growth form, or a module of the same class.
"""
