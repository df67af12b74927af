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
    where = [position % len(axes) for position in attribute_of(node, "axes") or range(len(axes))]
    if inference.input(node, 3) is not None:
        lengths, kept = _wanted_lengths(inference, node, [axes[position] for position in where])
    else:
        scales = _scales(inference, node, len(where))
        sizes = [root(axes[position]).size for position in where]
        lengths = [None if n is None else math.floor(n * s) for n, s in zip(sizes, scales, strict=True)]
        kept = [scale == 1.0 for scale in scales]
    if _moves_every_axis(node):
        lengths, kept = [None] * len(where), [False] * len(where)
    result = list(axes)
    for i, position in enumerate(where):
        if not kept[i]:
            inference.freeze(node, axes[position], position, "it interpolates along this axis")
            result[position] = inference.fixed(node, position, lengths[i])
    inference.output(node, result)


def _moves_every_axis(node: ir.Node) -> bool:
    """Whether an axis may change though its length or scale stays: cropped, or scaled as the others are."""
    policy = attribute_of(node, "keep_aspect_ratio_policy", "stretch")
    crops = attribute_of(node, "coordinate_transformation_mode") == "tf_crop_and_resize"
    return bool(crops or policy != "stretch")


def _wanted_lengths(
    inference: AxisInference, node: ir.Node, axes: list[Axis]
) -> tuple[list[int | None], list[bool]]:
    """The lengths that input 3 asks for, and which of the axes keep theirs; the input follows."""
    wanted = inference.ints(node, 3)
    if wanted is None:
        raise UnknownShape("the wanted lengths are computed from data")
    lengths = [evaluate(element, size_of) for element in wanted.elements]
    kept = [
        _is_length(element, root(axis)) or (length is not None and length == root(axis).size)
        for element, length, axis in zip(wanted.elements, lengths, axes, strict=True)
    ]
    follow: list[Expression] = [
        Size(axis) if stays else length for axis, stays, length in zip(axes, kept, lengths, strict=True)
    ]
    inference.follow(node, 3, follow)
    return lengths, kept


def _scales(inference: AxisInference, node: ir.Node, count: int) -> list[float]:
    """The factor for each axis: an attribute before opset 9, then input 1, then input 2 of Resize."""
    stated = attribute_of(node, "scales")
    if stated is None and node.op_type == "Upsample" and inference.opset < 7:
        stated = [1.0, 1.0, attribute_of(node, "height_scale"), attribute_of(node, "width_scale")]
    if stated is None:
        first = node.op_type == "Upsample" or inference.opset < 11
        tensor = inference.constant(node, 1 if first else 2)
        if tensor is None:
            raise UnknownShape("its scales are computed from data")
        stated = tensor.numpy().reshape(-1).tolist()
    if len(stated) != count:
        raise UnknownShape(f"it has {len(stated)} scales for {count} axes")
    return list(stated)


def grid_sample(inference: AxisInference, node: ir.Node) -> None:
    """Interpolates every channel at the positions of a grid."""
    batch, channels, *space = inference.axes_of(node, 0)
    grid = inference.axes_of(node, 1)
    inference.freeze(node, [*space, grid[-1]], None, "it interpolates along this axis")
    inference.unify(node, batch, grid[0], 0)
    inference.output(node, [batch, channels, *grid[1:-1]])


def _is_length(element: Expression, axis: Axis) -> bool:
    return isinstance(element, Size) and root(element.axis) is axis


RULES: dict[str, Rule] = {"GridSample": grid_sample, "Resize": resize, "Upsample": resize}
