"""Pooling: windows over space, every channel by itself."""

from __future__ import annotations

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis
from growpipe.graph_ops.axes.rule_api import AxisInference, Rule
from growpipe.graph_ops.axes.rules.windows import window_sizes
from growpipe.graph_ops.operators import attribute_of

__all__ = ["RULES"]


def pool(inference: AxisInference, node: ir.Node) -> None:
    batch, channels, *space = inference.axes_of(node, 0)
    sizes = window_sizes(inference, node, space, attribute_of(node, "kernel_shape"))
    result = [batch, channels, *(inference.fixed(node, i + 2, size) for i, size in enumerate(sizes))]
    inference.output(node, result)
    if len(node.outputs) > 1:
        # The indices of MaxPool count through all channels of a sample.
        inference.freeze(node, channels, 1, "its indices depend on the number of channels")
        inference.output(node, result, 1)


def global_pool(inference: AxisInference, node: ir.Node) -> None:
    batch, channels, *space = inference.axes_of(node, 0)
    inference.freeze(node, space, None, "it pools over this axis")
    inference.output(node, [batch, channels, *(Axis(1) for _ in space)])


RULES: dict[str, Rule] = {
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"), global_pool),
}
