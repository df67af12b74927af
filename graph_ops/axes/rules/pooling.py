"""Pooling: windows over space, every channel by itself."""

from __future__ import annotations

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis
from growpipe.graph_ops.axes.inference import Analysis, Rule
from growpipe.graph_ops.axes.rules.windows import window_sizes

__all__ = ["RULES"]


def pool(analysis: Analysis, node: ir.Node) -> None:
    batch, channels, *space = analysis.axes_of(node, 0)
    sizes = window_sizes(analysis, node, space, analysis.attribute(node, "kernel_shape"))
    result = [batch, channels, *(analysis.fixed(node, i + 2, size) for i, size in enumerate(sizes))]
    analysis.output(node, result)
    if len(node.outputs) > 1:
        # The indices of MaxPool count through all channels of a sample.
        analysis.freeze(node, channels, 1, "its indices count through the channels")
        analysis.output(node, result, 1)


def global_pool(analysis: Analysis, node: ir.Node) -> None:
    batch, channels, *space = analysis.axes_of(node, 0)
    analysis.freeze(node, space, None, "pooled over")
    analysis.output(node, [batch, channels, *(Axis(1) for _ in space)])


RULES: dict[str, Rule] = {
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"), global_pool),
}
