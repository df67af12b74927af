"""Quantisation: activations pass with their scales; copies of a channel share its scale and zero point.

An integer weight can be copied exactly, but it cannot hold the coefficients of a split: the axis it sums over
is a barrier. So channels of a quantised layer grow if the next layer is not quantised.
"""

from __future__ import annotations

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, root
from growpipe.graph_ops.axes.rule_api import AxisInference, Rule, UnknownShape
from growpipe.graph_ops.axes.rules.contraction import multiply
from growpipe.graph_ops.axes.rules.convolution import convolve
from growpipe.graph_ops.operators import attribute_of

__all__ = ["RULES"]


def linear(inference: AxisInference, node: ir.Node) -> None:
    """QuantizeLinear and DequantizeLinear: one scale for all, or one per entry of an axis."""
    axes = inference.axes_of(node, 0)
    if attribute_of(node, "block_size", 0):
        raise UnknownShape("the tensor is quantised in blocks")
    position = attribute_of(node, "axis", 1)
    for index in range(1, len(node.inputs)):
        if node.inputs[index] is not None:
            _per_channel(inference, node, index, axes, position)
    inference.output(node, axes)
    if inference.is_constant(node):
        obstacle = "the weight is quantised, so it cannot hold the coefficients"
        inference.view(node, [(axis,) for axis in range(len(axes))], obstacle=obstacle)


def dynamic(inference: AxisInference, node: ir.Node) -> None:
    """DynamicQuantizeLinear: the least and the greatest value decide the scale; copies change neither."""
    inference.output(node, inference.axes_of(node, 0))
    inference.output(node, [], 1)
    inference.output(node, [], 2)


def quantised_convolution(inference: AxisInference, node: ir.Node) -> None:
    """QLinearConv: ``x, scale, zero, w, scale, zero, scale, zero, bias``."""
    result = convolve(inference, node, 3, 8)
    for index in (4, 5):
        _per_channel(inference, node, index, result, 1)


def integer_convolution(inference: AxisInference, node: ir.Node) -> None:
    """ConvInteger: ``x, w, zero, zero``."""
    result = convolve(inference, node, 1, None)
    if inference.input(node, 3) is not None:
        _per_channel(inference, node, 3, result, 1)


def quantised_product(inference: AxisInference, node: ir.Node) -> None:
    """QLinearMatMul: ``a, scale, zero, b, scale, zero, scale, zero``."""
    result = multiply(inference, node, 0, 3)
    for index, position in ((1, -2), (2, -2), (4, -1), (5, -1)):
        _per_channel(inference, node, index, result, position)


def integer_product(inference: AxisInference, node: ir.Node) -> None:
    """MatMulInteger: ``a, b, zero, zero``."""
    result = multiply(inference, node, 0, 1)
    for index, position in ((2, -2), (3, -1)):
        if inference.input(node, index) is not None:
            _per_channel(inference, node, index, result, position)


def _per_channel(
    inference: AxisInference, node: ir.Node, index: int, axes: list[Axis], position: int
) -> None:
    """A scale or zero point has one entry, or one per entry of the axis."""
    own = [axis for axis in inference.axes_of(node, index) if root(axis).size != 1]
    if len(own) > 1:
        raise UnknownShape(f"input {index} has a value for more than one axis")
    if own:
        inference.unify(node, own[0], axes[position], position % len(axes))


RULES: dict[str, Rule] = {
    "ConvInteger": integer_convolution,
    "DequantizeLinear": linear,
    "DynamicQuantizeLinear": dynamic,
    "MatMulInteger": integer_product,
    "QLinearConv": quantised_convolution,
    "QLinearMatMul": quantised_product,
    "QuantizeLinear": linear,
}
