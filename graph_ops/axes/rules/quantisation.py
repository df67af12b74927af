"""Quantisation: activations pass with their scales; an integer weight cannot hold coefficients."""

from __future__ import annotations

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import root
from growpipe.graph_ops.axes.inference import Analysis, Rule, UnknownShape

__all__ = ["RULES"]


def linear(analysis: Analysis, node: ir.Node) -> None:
    """QuantizeLinear and DequantizeLinear: one scale for all, or one per entry of an axis."""
    axes = analysis.axes_of(node, 0)
    if analysis.attribute(node, "block_size", 0):
        raise UnknownShape("quantised in blocks")
    position = analysis.attribute(node, "axis", 1)
    for index in range(1, len(node.inputs)):
        if node.inputs[index] is None:
            continue
        for scale in analysis.axes_of(node, index):
            if root(scale).size != 1:
                analysis.unify(node, scale, axes[position], position)
    analysis.output(node, axes)


RULES: dict[str, Rule] = {"DequantizeLinear": linear, "QuantizeLinear": linear}
