"""Operators that pick entries by data: barriers on the axis they pick from, all other axes pass."""

from __future__ import annotations

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import root
from growpipe.graph_ops.axes.inference import Analysis, Rule, UnknownShape

__all__ = ["RULES"]


def gather(analysis: Analysis, node: ir.Node) -> None:
    """Picks entries of one axis by data; the other axes pass. An embedding's table makes its channels."""
    axes, picked = analysis.axes_of(node, 0), analysis.axes_of(node, 1)
    position = analysis.attribute(node, "axis", 0) % len(axes)
    analysis.freeze(node, axes[position], position, "gathered by data")
    if analysis.is_weight(node, 0):
        for axis in range(len(axes)):
            if axis != position:
                analysis.made(node, 0, axis)
    analysis.output(node, [*axes[:position], *picked, *axes[position + 1 :]])


def gather_elements(analysis: Analysis, node: ir.Node) -> None:
    """Picks entries of one axis by data, element by element."""
    axes, picked = analysis.axes_of(node, 0), analysis.axes_of(node, 1)
    position = analysis.attribute(node, "axis", 0) % len(axes)
    analysis.freeze(node, axes[position], position, "gathered by data")
    result = []
    for axis in range(len(axes)):
        if axis != position:
            if root(axes[axis]).size == root(picked[axis]).size:
                analysis.unify(node, axes[axis], picked[axis], axis)
            else:
                analysis.freeze(node, (axes[axis], picked[axis]), axis, "gathered in part")
        result.append(picked[axis])
    analysis.output(node, result)


def gather_nd(analysis: Analysis, node: ir.Node) -> None:
    """Picks by the tuples on the last axis of the indices."""
    axes, picked = analysis.axes_of(node, 0), analysis.axes_of(node, 1)
    batch = analysis.attribute(node, "batch_dims", 0)
    depth = root(picked[-1]).size
    if depth is None:
        raise UnknownShape("how many axes it picks from is not known")
    for axis in range(batch):
        analysis.unify(node, axes[axis], picked[axis], axis)
    analysis.freeze(node, [*axes[batch : batch + depth], picked[-1]], batch, "gathered by data")
    if analysis.is_weight(node, 0):
        for axis in range(batch + depth, len(axes)):
            analysis.made(node, 0, axis)
    analysis.output(node, [*picked[:-1], *axes[batch + depth :]])


def triangle(analysis: Analysis, node: ir.Node) -> None:
    """Trilu: the last two axes are compared by position."""
    axes = analysis.axes_of(node, 0)
    analysis.freeze(node, axes[-2:], None, "cut along the diagonal")
    analysis.output(node, axes)


RULES: dict[str, Rule] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Trilu": triangle,
}
