"""Resize and other interpolation over space."""

from __future__ import annotations

import math

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, root
from growpipe.graph_ops.axes.integers import Expression, Size, evaluate
from growpipe.graph_ops.axes.rule_api import AxisInference, Rule, UnknownShape, size_of
from growpipe.graph_ops.operators import attribute_of

__all__ = ["RULES"]


def resize(inference: AxisInference, node: ir.Node) -> None:
    """Interpolates space; an axis whose length stays is left alone."""
    axes = inference.axes_of(node, 0)
    where = attribute_of(node, "axes") or list(range(len(axes)))
    where = [position % len(axes) for position in where]
    index = 1 if node.op_type == "Upsample" else 2
    lengths: list[int | None] = [None] * len(where)
    kept = [False] * len(where)
    if inference.input(node, 3) is not None:
        value = inference.ints(node, 3)
        if value is None:
            raise UnknownShape("the wanted lengths are not known")
        wanted = value.elements
        follow: list[Expression] = []
        for i, position in enumerate(where):
            lengths[i] = evaluate(wanted[i], size_of)
            axis, element = root(axes[position]), wanted[i]
            kept[i] = _is_length(element, axis) or (lengths[i] is not None and lengths[i] == axis.size)
            follow.append(Size(axis) if kept[i] else lengths[i])
        inference.follow(node, 3, follow)
    else:
        tensor = inference.constant(node, index)
        if tensor is None or tensor.size != len(where):
            raise UnknownShape("its scales are not known")
        for i, scale in enumerate(tensor.numpy().tolist()):
            size = root(axes[where[i]]).size
            kept[i] = scale == 1.0
            lengths[i] = None if size is None else math.floor(size * scale)
    result = list(axes)
    for i, position in enumerate(where):
        if not kept[i]:
            inference.freeze(node, axes[position], position, "interpolated")
            result[position] = inference.fixed(node, position, lengths[i])
    inference.output(node, result)


def grid_sample(inference: AxisInference, node: ir.Node) -> None:
    """Interpolates every channel at the positions of a grid."""
    batch, channels, *space = inference.axes_of(node, 0)
    grid = inference.axes_of(node, 1)
    inference.freeze(node, [*space, grid[-1]], None, "interpolated")
    inference.unify(node, batch, grid[0], 0)
    inference.output(node, [batch, channels, *grid[1:-1]])


def _is_length(element: Expression, axis: Axis) -> bool:
    return isinstance(element, Size) and root(element.axis) is axis


RULES: dict[str, Rule] = {"GridSample": grid_sample, "Resize": resize, "Upsample": resize}
