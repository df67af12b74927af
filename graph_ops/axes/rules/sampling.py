"""Resize and other interpolation over space."""

from __future__ import annotations

import math

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, root
from growpipe.graph_ops.axes.inference import Analysis, Rule, UnknownShape, size_of
from growpipe.graph_ops.axes.integers import Expression, Size, evaluate

__all__ = ["RULES"]


def resize(analysis: Analysis, node: ir.Node) -> None:
    """Interpolates space; an axis whose length stays is left alone."""
    axes = analysis.axes_of(node, 0)
    where = analysis.attribute(node, "axes") or list(range(len(axes)))
    where = [position % len(axes) for position in where]
    index = 1 if node.op_type == "Upsample" else 2
    lengths: list[int | None] = [None] * len(where)
    kept = [False] * len(where)
    if analysis.input(node, 3) is not None:
        value = analysis.ints(node, 3)
        if value is None:
            raise UnknownShape("the wanted lengths are not known")
        wanted = value.elements
        follow: list[Expression] = []
        for i, position in enumerate(where):
            lengths[i] = evaluate(wanted[i], size_of)
            axis, element = root(axes[position]), wanted[i]
            kept[i] = _is_length(element, axis) or (lengths[i] is not None and lengths[i] == axis.size)
            follow.append(Size(axis) if kept[i] else lengths[i])
        analysis.follow(node, 3, follow)
    else:
        tensor = analysis.tensor(analysis.input(node, index))
        if tensor is None or tensor.size != len(where):
            raise UnknownShape("its scales are not known")
        for i, scale in enumerate(tensor.numpy().tolist()):
            size = root(axes[where[i]]).size
            kept[i] = scale == 1.0
            lengths[i] = None if size is None else math.floor(size * scale)
    result = list(axes)
    for i, position in enumerate(where):
        if not kept[i]:
            analysis.freeze(node, axes[position], position, "interpolated")
            result[position] = analysis.fixed(node, position, lengths[i])
    analysis.output(node, result)


def grid_sample(analysis: Analysis, node: ir.Node) -> None:
    """Interpolates every channel at the positions of a grid."""
    batch, channels, *space = analysis.axes_of(node, 0)
    grid = analysis.axes_of(node, 1)
    analysis.freeze(node, [*space, grid[-1]], None, "interpolated")
    analysis.unify(node, batch, grid[0], 0)
    analysis.output(node, [batch, channels, *grid[1:-1]])


def _is_length(element: Expression, axis: Axis) -> bool:
    return isinstance(element, Size) and root(element.axis) is axis


RULES: dict[str, Rule] = {"GridSample": grid_sample, "Resize": resize, "Upsample": resize}
