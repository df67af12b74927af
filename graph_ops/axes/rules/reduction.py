"""Reductions, and operators that order or accumulate along an axis: barriers on that axis alone."""

from __future__ import annotations

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis
from growpipe.graph_ops.axes.inference import Analysis, Rule, UnknownShape
from growpipe.graph_ops.axes.rules.layout import axes_argument

__all__ = ["RULES"]


def reduce(analysis: Analysis, node: ir.Node) -> None:
    axes = analysis.axes_of(node, 0)
    reduced = axes_argument(analysis, node, len(axes))
    if not reduced:
        if analysis.attribute(node, "noop_with_empty_axes", 0):
            analysis.output(node, axes)
            return
        reduced = list(range(len(axes)))
    _reduce(analysis, node, axes, reduced)


def arg_reduce(analysis: Analysis, node: ir.Node) -> None:
    axes = analysis.axes_of(node, 0)
    _reduce(analysis, node, axes, [analysis.attribute(node, "axis", 0) % len(axes)])


def _reduce(analysis: Analysis, node: ir.Node, axes: list[Axis], reduced: list[int]) -> None:
    for position in reduced:
        analysis.freeze(node, axes[position], position, "reduced over")
    if analysis.attribute(node, "keepdims", 1):
        result = [Axis(1) if position in reduced else axis for position, axis in enumerate(axes)]
    else:
        result = [axis for position, axis in enumerate(axes) if position not in reduced]
    analysis.output(node, result)


def along_axis(analysis: Analysis, node: ir.Node) -> None:
    """CumSum: the same axes, but entries of one axis depend on each other."""
    axes = analysis.axes_of(node, 0)
    where = analysis.ints(node, 1)
    if where is None or not isinstance(where.elements[0], int):
        raise UnknownShape("its axis is not known")
    position = where.elements[0] % len(axes)
    analysis.freeze(node, axes[position], position, "accumulated over")
    analysis.output(node, axes)


def top_k(analysis: Analysis, node: ir.Node) -> None:
    axes = analysis.axes_of(node, 0)
    position = analysis.attribute(node, "axis", -1) % len(axes)
    analysis.freeze(node, axes[position], position, "ordered over")
    count = analysis.ints(node, 1)
    size = count.elements[0] if count is not None and isinstance(count.elements[0], int) else None
    for index in range(2):
        result = list(axes)
        result[position] = (
            analysis.fixed(node, position, size, index) if index < len(node.outputs) else Axis()
        )
        analysis.output(node, result, index)


_REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]

RULES: dict[str, Rule] = {
    **dict.fromkeys((f"Reduce{name}" for name in _REDUCTIONS), reduce),
    "ArgMax": arg_reduce,
    "ArgMin": arg_reduce,
    "CumSum": along_axis,
    "TopK": top_k,
}
