"""Channel groups: which tensors share each channel, and which channels can split.

Enters: an ONNX graph. Leaves: `ChannelGroups`, the layout of every tensor that grows with them, and barriers.
"""
