"""Quantisation: activations pass with their scales; an integer weight cannot hold coefficients."""

from __future__ import annotations

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import root
from growpipe.graph_ops.axes.rule_api import AxisInference, Rule, UnknownShape
from growpipe.graph_ops.operators import attribute_of

__all__ = ["RULES"]


def linear(inference: AxisInference, node: ir.Node) -> None:
    """QuantizeLinear and DequantizeLinear: one scale for all, or one per entry of an axis."""
    axes = inference.axes_of(node, 0)
    if attribute_of(node, "block_size", 0):
        raise UnknownShape("quantised in blocks")
    position = attribute_of(node, "axis", 1)
    for index in range(1, len(node.inputs)):
        if node.inputs[index] is None:
            continue
        for scale in inference.axes_of(node, index):
            if root(scale).size != 1:
                inference.unify(node, scale, axes[position], position)
    inference.output(node, axes)


RULES: dict[str, Rule] = {"DequantizeLinear": linear, "QuantizeLinear": linear}
