"""Conv and ConvTranspose of any rank, grouped and depthwise included."""

from __future__ import annotations

import math

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, product, root
from growpipe.graph_ops.axes.integers import Size
from growpipe.graph_ops.axes.rule_api import AxisInference, Rule, UnknownShape
from growpipe.graph_ops.axes.rules.windows import window_sizes
from growpipe.graph_ops.operators import attribute_of

__all__ = ["RULES", "convolve"]


def conv(inference: AxisInference, node: ir.Node) -> None:
    """``x[b, g·i, *s] * W[g·o, i, *k] → y[b, g·o, *s']``: i is mixed, o is made, g passes through.

    A depthwise convolution is the case i = o = 1.
    """
    convolve(inference, node, 1, 2)


def convolve(inference: AxisInference, node: ir.Node, weight: int, bias: int | None) -> list[Axis]:
    """State the axes of a convolution of input 0, and return those of the result.

    Args:
        inference: what is known.
        node: the node.
        weight: the input that holds the weight.
        bias: the input that may hold a bias; None if the operator has none.
    """
    out, inner, *kernel = inference.axes_of(node, weight)
    batch, channels, *space = inference.axes_of_rank(node, 0, len(kernel) + 2)
    if not inference.is_weight(node, weight):
        inference.freeze(node, [channels, out], 1, inference.no_weight(node, weight))
    groups = attribute_of(node, "group", 1)
    if groups == 1:
        inference.unify(node, channels, inner, 1)
        part = out
    else:
        group, part = _groups(inference, node, groups, out)
        inference.unify(node, channels, product([group, inner]), 1)
    inference.mixed(node, weight, 1)
    inference.made(node, weight, 0, part)
    inference.freeze(node, kernel, None, "the window of the convolution cannot change")
    if bias is not None:
        _bias(inference, node, out, bias)
    sizes = [root(axis).size for axis in kernel]
    after = window_sizes(inference, node, space, sizes)
    result = [inference.fixed(node, i + 2, size) for i, size in enumerate(after)]
    inference.output(node, [batch, out, *result])
    inference.count(node, _elements(kernel), [batch, out, inner, *result])
    return [batch, out, *result]


def conv_transpose(inference: AxisInference, node: ir.Node) -> None:
    """``x[b, g·i, *s] * W[g·i, o, *k] → y[b, g·o, *s']``.

    In a grouped one that is not depthwise, g and i stand on one axis of the weight with different roles;
    the number of groups is then frozen.
    """
    inner, out, *kernel = inference.axes_of(node, 1)
    batch, channels, *space = inference.axes_of_rank(node, 0, len(kernel) + 2)
    if not inference.is_weight(node, 1):
        inference.freeze(node, [channels, out], 1, inference.no_weight(node, 1))
    groups = attribute_of(node, "group", 1)
    inference.unify(node, channels, inner, 1)
    if groups == 1:
        inference.mixed(node, 1, 0)
        made = out
    else:
        group, part = _groups(inference, node, groups, inner)
        if root(part).size != 1:
            inference.freeze(node, group, 1, "the number of groups of a transposed convolution cannot change")
        inference.mixed(node, 1, 0, part)
        made = product([group, out])
    inference.made(node, 1, 1)
    inference.freeze(node, kernel, None, "the window of the convolution cannot change")
    _bias(inference, node, made)
    strides = attribute_of(node, "strides", [1] * len(space))
    sizes = [root(axis).size for axis in kernel]
    after = _transposed_sizes(inference, node, space, sizes, strides)
    result = [inference.fixed(node, i + 2, size) for i, size in enumerate(after)]
    inference.output(node, [batch, made, *result])
    inference.count(node, _elements(kernel), [batch, channels, out, *space])


def _groups(inference: AxisInference, node: ir.Node, groups: int, axis: Axis) -> tuple[Axis, Axis]:
    """Divide the axis of a grouped weight into (groups, rest); the attribute follows."""
    total = root(axis).size
    if total is None or total % groups:
        raise UnknownShape(f"{total} channels do not divide into {groups} groups")
    group, part = Axis(groups), Axis(total // groups)
    inference.unify(node, axis, product([group, part]), 0)
    inference.follow(node, "group", [Size(group)])
    return group, part


def _bias(inference: AxisInference, node: ir.Node, channels: Axis, index: int = 2) -> None:
    if inference.input(node, index) is not None:
        (bias,) = inference.axes_of(node, index)
        inference.unify(node, bias, channels, 1)


def _elements(kernel: list[Axis]) -> int:
    return math.prod(root(axis).size or 1 for axis in kernel)


def _transposed_sizes(
    inference: AxisInference, node: ir.Node, space: list[Axis], kernel: list[int | None], strides: list[int]
) -> list[int | None]:
    inference.freeze(node, space, None, "a window slides along this axis")
    rank = len(space)
    stated = attribute_of(node, "output_shape")
    if stated:
        return list(stated)[-rank:]
    pads = attribute_of(node, "pads", [0] * 2 * rank)
    dilations = attribute_of(node, "dilations", [1] * rank)
    extra = attribute_of(node, "output_padding", [0] * rank)
    automatic = attribute_of(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    sizes: list[int | None] = []
    for i, axis in enumerate(space):
        size, width = root(axis).size, kernel[i]
        if size is None or width is None or automatic:
            sizes.append(None)
        else:
            reach = (width - 1) * dilations[i] + 1
            sizes.append(strides[i] * (size - 1) + extra[i] + reach - pads[i] - pads[i + rank])
    return sizes


RULES: dict[str, Rule] = {"Conv": conv, "ConvTranspose": conv_transpose}
