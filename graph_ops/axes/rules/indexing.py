"""Operators that pick entries by data: barriers on the axis they pick from, all other axes pass."""

from __future__ import annotations

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import root
from growpipe.graph_ops.axes.rule_api import AxisInference, Rule, UnknownShape
from growpipe.graph_ops.operators import attribute_of

__all__ = ["RULES"]


def gather(inference: AxisInference, node: ir.Node) -> None:
    """Picks entries of one axis by data; the other axes pass. An embedding's table makes its channels."""
    axes, picked = inference.axes_of(node, 0), inference.axes_of(node, 1)
    position = attribute_of(node, "axis", 0) % len(axes)
    inference.freeze(node, axes[position], position, "it picks entries of this axis by data")
    if inference.is_weight(node, 0):
        for axis in range(len(axes)):
            if axis != position:
                inference.made(node, 0, axis)
    inference.output(node, [*axes[:position], *picked, *axes[position + 1 :]])


def gather_elements(inference: AxisInference, node: ir.Node) -> None:
    """Picks entries of one axis by data, element by element."""
    axes, picked = inference.axes_of(node, 0), inference.axes_of(node, 1)
    position = attribute_of(node, "axis", 0) % len(axes)
    inference.freeze(node, axes[position], position, "it picks entries of this axis by data")
    result = []
    for axis in range(len(axes)):
        if axis != position:
            if root(axes[axis]).size == root(picked[axis]).size:
                inference.unify(node, axes[axis], picked[axis], axis)
            else:
                inference.freeze(node, (axes[axis], picked[axis]), axis, "it picks some entries of this axis")
        result.append(picked[axis])
    inference.output(node, result)


def gather_nd(inference: AxisInference, node: ir.Node) -> None:
    """Picks by the tuples on the last axis of the indices."""
    axes, picked = inference.axes_of(node, 0), inference.axes_of(node, 1)
    batch = attribute_of(node, "batch_dims", 0)
    depth = root(picked[-1]).size
    if depth is None:
        raise UnknownShape("how many axes it picks from is not known")
    for axis in range(batch):
        inference.unify(node, axes[axis], picked[axis], axis)
    inference.freeze(
        node, [*axes[batch : batch + depth], picked[-1]], batch, "it picks entries of this axis by data"
    )
    if inference.is_weight(node, 0):
        for axis in range(batch + depth, len(axes)):
            inference.made(node, 0, axis)
    inference.output(node, [*picked[:-1], *axes[batch + depth :]])


def triangle(inference: AxisInference, node: ir.Node) -> None:
    """Trilu: the last two axes are compared by position."""
    axes = inference.axes_of(node, 0)
    inference.freeze(node, axes[-2:], None, "it cuts this axis along the diagonal")
    inference.output(node, axes)


RULES: dict[str, Rule] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Trilu": triangle,
}
