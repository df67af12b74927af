"""Shape, and what spells out lengths: Expand, Range, Size."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, leaves, product, root
from growpipe.graph_ops.axes.integers import Expression, Size, axes_in, calculate, evaluate, factors_of
from growpipe.graph_ops.axes.rule_api import AxisInference, Rule, UnknownShape, size_of
from growpipe.graph_ops.operators import attribute_of

__all__ = ["RULES", "axes_from", "axis_from"]


def shape(inference: AxisInference, node: ir.Node) -> None:
    """The lengths of the axes, symbolically."""
    axes = inference.axes_of(node, 0)
    start = attribute_of(node, "start", 0)
    end = attribute_of(node, "end")
    elements = [_length(axis) for axis in axes[slice(start, end)]]
    inference.integers.state(node.outputs[0], np.array(elements, object))
    inference.output(node, [inference.fixed(node, 0, len(elements))])


def expand(inference: AxisInference, node: ir.Node) -> None:
    """Axes of length 1 are repeated to the wanted length; all others stay."""
    axes = inference.axes_of(node, 0)
    wanted = inference.ints(node, 1)
    if wanted is None:
        raise UnknownShape("the wanted shape is computed from data")
    rank = max(len(axes), len(wanted.elements))
    result: list[Axis] = []
    elements: list[Expression] = []
    for position in range(rank):
        source = axes[position - rank + len(axes)] if position >= rank - len(axes) else None
        at = position - rank + len(wanted.elements)
        element = wanted.elements[at] if at >= 0 else 1
        length = evaluate(element, size_of)
        if source is not None and root(source).size != 1:
            if root(source).size is None and not _same(element, source) and length != 1:
                inference.freeze(
                    node,
                    [source, *axes_in(element)],
                    position,
                    "the length it expands this axis to is not known",
                )
            result.append(source)
            follow: Expression = Size(source) if length != 1 else None
        else:
            result.append(axis_from(inference, node, element))
            follow = Size(result[-1])
        if at >= 0:
            elements.append(follow)
    inference.follow(node, 1, elements)
    inference.output(node, result)


def axes_from(inference: AxisInference, node: ir.Node, index: int) -> list[Axis]:
    """New axes as long as an integer input says; that input follows."""
    wanted = inference.ints(node, index)
    if wanted is None:
        raise UnknownShape("the wanted shape is computed from data")
    axes = [axis_from(inference, node, element) for element in wanted.elements]
    inference.follow(node, index, [Size(axis) for axis in axes])
    return axes


def axis_from(inference: AxisInference, node: ir.Node, element: Expression) -> Axis:
    """An axis as long as the expression says.

    A known length gives a new axis. An unknown one gives the axis that the expression reads, or the product
    of those it multiplies. A number among the factors is a new axis, such as the heads in ``batch * 4``.
    """
    length = evaluate(element, size_of)
    if length is not None:
        return Axis(length)
    factors = factors_of(element)
    if factors is None:
        reason = "its length is part of a computed length"
        inference.freeze(node, axes_in(element), None, reason)
        return Axis(None, inference.barrier(node, None, reason))
    return product([Axis(factor) if isinstance(factor, int) else factor.axis for factor in factors])


def whole_numbers(inference: AxisInference, node: ir.Node) -> None:
    """Range: its length is data, unless everything is a number."""
    bounds = [inference.integers.of(value) for value in node.inputs if value is not None]
    numbers = [
        bound.elements[0] for bound in bounds if bound is not None and isinstance(bound.elements[0], int)
    ]
    length = None
    if len(numbers) == 3 and numbers[2]:
        length = len(range(*numbers))
    inference.output(node, [inference.fixed(node, 0, length)])


def size(inference: AxisInference, node: ir.Node) -> None:
    """The number of elements, symbolically."""
    total: Expression = 1
    for axis in inference.axes_of(node, 0):
        total = calculate("mul", total, _length(axis))
    inference.integers.state(node.outputs[0], np.array(total, object))
    inference.output(node, [])


def _length(axis: Axis) -> Expression:
    """A number where the axis cannot grow any more."""
    fixed = all(leaf.barrier is not None or leaf.size == 1 for leaf in leaves(axis))
    return size_of(axis) if fixed and size_of(axis) is not None else Size(axis)


def _same(element: Expression, axis: Axis) -> bool:
    return isinstance(element, Size) and root(element.axis) is root(axis)


RULES: dict[str, Rule] = {"Expand": expand, "Range": whole_numbers, "Shape": shape, "Size": size}
