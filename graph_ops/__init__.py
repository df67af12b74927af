"""Channel groups of an ONNX graph, split plans, and the edits they make. Needs no torch."""
