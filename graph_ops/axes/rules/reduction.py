"""Reductions, and operators that order or accumulate along an axis: barriers on that axis alone.

A mean is no barrier: it stays as it is if all entries of the axis are copied equally often.
"""

from __future__ import annotations

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis
from growpipe.graph_ops.axes.rule_api import AxisInference, Rule, UnknownShape
from growpipe.graph_ops.axes.rules.layout import axes_argument
from growpipe.graph_ops.operators import attribute_of

__all__ = ["RULES"]


def reduce(inference: AxisInference, node: ir.Node) -> None:
    axes = inference.axes_of(node, 0)
    reduced = axes_argument(inference, node, len(axes))
    if not reduced:
        if attribute_of(node, "noop_with_empty_axes", 0):
            inference.output(node, axes)
            return
        reduced = list(range(len(axes)))
    _reduce(inference, node, axes, reduced)


def arg_reduce(inference: AxisInference, node: ir.Node) -> None:
    axes = inference.axes_of(node, 0)
    _reduce(inference, node, axes, [attribute_of(node, "axis", 0) % len(axes)])


def _reduce(inference: AxisInference, node: ir.Node, axes: list[Axis], reduced: list[int]) -> None:
    reason = "it reduces this axis to one value"
    if inference.is_constant(node):
        reason = "a weight is computed from a reduction over this axis, which copies would change"
    for position in reduced:
        if node.op_type == "ReduceMean" and not inference.is_constant(node):
            inference.copy_evenly(node, axes[position], position, "it takes the mean over this axis")
        else:
            inference.freeze(node, axes[position], position, reason)
    if attribute_of(node, "keepdims", 1):
        result = [Axis(1) if position in reduced else axis for position, axis in enumerate(axes)]
    else:
        result = [axis for position, axis in enumerate(axes) if position not in reduced]
    inference.output(node, result)


def along_axis(inference: AxisInference, node: ir.Node) -> None:
    """CumSum: the same axes, but entries of one axis depend on each other."""
    axes = inference.axes_of(node, 0)
    where = inference.ints(node, 1)
    if where is None or not isinstance(where.elements[0], int):
        raise UnknownShape("its axis is not known")
    position = where.elements[0] % len(axes)
    inference.freeze(node, axes[position], position, "it accumulates along this axis")
    inference.output(node, axes)


def top_k(inference: AxisInference, node: ir.Node) -> None:
    axes = inference.axes_of(node, 0)
    position = attribute_of(node, "axis", -1) % len(axes)
    inference.freeze(node, axes[position], position, "it sorts along this axis")
    count = inference.ints(node, 1)
    size = attribute_of(node, "k")  # before opset 10
    if count is not None and isinstance(count.elements[0], int):
        size = count.elements[0]
    for index in range(2):
        result = list(axes)
        result[position] = (
            inference.fixed(node, position, size, index) if index < len(node.outputs) else Axis()
        )
        inference.output(node, result, index)


_REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]

RULES: dict[str, Rule] = {
    **dict.fromkeys((f"Reduce{name}" for name in _REDUCTIONS), reduce),
    "ArgMax": arg_reduce,
    "ArgMin": arg_reduce,
    "CumSum": along_axis,
    "TopK": top_k,
}
