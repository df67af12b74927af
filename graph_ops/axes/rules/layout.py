"""Operators that rearrange elements without changing them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, product, root, times
from growpipe.graph_ops.axes.integers import Expression, Size, evaluate
from growpipe.graph_ops.axes.rule_api import AxisInference, Rule, UnknownShape, size_of
from growpipe.graph_ops.axes.rules.shape_operators import axis_from
from growpipe.graph_ops.axes.solver import match
from growpipe.graph_ops.operators import attribute_of

__all__ = ["RULES", "axes_argument", "reshape_view"]


def identity(inference: AxisInference, node: ir.Node) -> None:
    """Identity, Cast and CastLike: the same axes; a weight stays a weight."""
    axes = inference.axes_of(node, 0)
    inference.output(node, axes)
    inference.view(node, [(axis,) for axis in range(len(axes))])


def transpose(inference: AxisInference, node: ir.Node) -> None:
    axes = inference.axes_of(node, 0)
    order = attribute_of(node, "perm") or list(reversed(range(len(axes))))
    inference.output(node, [axes[source] for source in order])
    inference.view(node, [(source,) for source in order])


def squeeze(inference: AxisInference, node: ir.Node) -> None:
    axes = inference.axes_of(node, 0)
    dropped = axes_argument(inference, node, len(axes))
    if dropped is None:
        if any(root(axis).size is None for axis in axes):
            raise UnknownShape("which axes have length 1 is not known")
        dropped = [position for position, axis in enumerate(axes) if root(axis).size == 1]
    kept = [position for position in range(len(axes)) if position not in dropped]
    inference.output(node, [axes[position] for position in kept])
    inference.view(node, [(position,) for position in kept])


def unsqueeze(inference: AxisInference, node: ir.Node) -> None:
    axes = inference.axes_of(node, 0)
    given = axes_argument(inference, node, None)
    if given is None:
        raise UnknownShape("the new axes are not known")
    rank = len(axes) + len(given)
    inserted = {position % rank for position in given}
    if len(inserted) != len(given):
        raise UnknownShape(f"the new axes {given} name one axis twice")
    old = iter(range(len(axes)))
    sources = [None if position in inserted else next(old) for position in range(rank)]
    inference.output(node, [Axis(1) if source is None else axes[source] for source in sources])
    inference.view(node, [() if source is None else (source,) for source in sources])


def flatten(inference: AxisInference, node: ir.Node) -> None:
    axes = inference.axes_of(node, 0)
    at = attribute_of(node, "axis", 1)
    at = at + len(axes) if at < 0 else at
    if not 0 <= at <= len(axes):
        raise UnknownShape(f"there is no axis {at}")
    inference.output(node, [product(axes[:at]), product(axes[at:])])
    inference.view(node, [tuple(range(at)), tuple(range(at, len(axes)))])


def reshape(inference: AxisInference, node: ir.Node) -> None:
    """The same elements in row-major order: outer and inner factors are matched."""
    axes = inference.axes_of(node, 0)
    stated = attribute_of(node, "shape")  # before opset 5
    target = inference.ints(node, 1)
    if target is None and stated is None:
        raise UnknownShape("the wanted shape is computed from data")
    wanted: Sequence[Expression] = stated if target is None else target.elements
    keep_zero = bool(attribute_of(node, "allowzero", 0))
    result: list[Axis] = []
    elements: list[Expression] = []
    inferred = None
    for position, element in enumerate(wanted):
        length = evaluate(element, size_of)
        if length == 0 and not keep_zero:
            result.append(axes[position])
            elements.append(None if target is not None else 0)
        elif length == -1:
            inferred = position
            result.append(Axis())
            elements.append(None if target is not None else -1)
        else:
            result.append(_in_order(axis_from(inference, node, element), result, axes))
            elements.append(Size(result[-1]))
    if inferred is not None:
        result[inferred].size = _inferred_length(axes, result, inferred)
    match(axes, result, inference.barrier(node, inferred, "the reshape regroups the channels"))
    if inferred is not None and root(result[inferred]).size is None and root(result[inferred]).kind == "leaf":
        inference.freeze(node, result[inferred], inferred, "its length is not known")
    inference.follow(node, 1 if target is not None else "shape", elements)
    inference.output(node, result)
    sizes = [root(axis).size for axis in axes], [root(axis).size for axis in result]
    view = reshape_view(*sizes)
    if view is not None:
        inference.view(node, view)


def reshape_view(before: list[int | None], after: list[int | None]) -> list[tuple[int, ...]] | None:
    """For each axis after a reshape, the axes before it whose elements it runs over; None if unknown."""
    if None in before or None in after or 0 in before:
        return None
    old = [size for size in before if size is not None]
    new = [size for size in after if size is not None]
    spans = [(math.prod(old[i + 1 :]), math.prod(old[i:])) for i in range(len(old))]
    view = []
    for i in range(len(new)):
        inner, outer = math.prod(new[i + 1 :]), math.prod(new[i:])
        view.append(tuple(j for j, (low, high) in enumerate(spans) if low < outer and inner < high))
    return view


def axes_argument(
    inference: AxisInference, node: ir.Node, rank: int | None, index: int = 1
) -> list[int] | None:
    """The ``axes`` of a node: an attribute in old opsets, an input in new ones; None if the node has none.

    Args:
        inference: what is known.
        node: the node.
        rank: the rank of the tensor, to count negative axes from its end; None to leave them negative.
        index: the input that holds the axes in new opsets.

    Raises:
        UnknownShape: the axes are computed from data.
    """
    axes = attribute_of(node, "axes")
    if axes is None:
        if inference.input(node, index) is None:
            return None
        value = inference.ints(node, index)
        if value is None:
            raise UnknownShape("its axes are not known")
        axes = [evaluate(element, size_of) for element in value.elements]
        if None in axes:
            raise UnknownShape("its axes are not known")
    return [axis % rank if rank else axis for axis in axes]


def depth_to_space(inference: AxisInference, node: ir.Node) -> None:
    batch, channels, *space = inference.axes_of(node, 0)
    block = attribute_of(node, "blocksize")
    total = root(channels).size
    if total is None:
        raise UnknownShape("the number of channels is not known")
    kept, blocks = Axis(total // block**2), Axis(block**2)
    inference.freeze(node, [blocks, *space], 1, "channels become pixels")
    depth_first = attribute_of(node, "mode", b"DCR") in ("DCR", b"DCR")
    inference.unify(node, channels, product([blocks, kept] if depth_first else [kept, blocks]), 1)
    grown = [_scaled(axis, block) for axis in space]
    inference.output(node, [batch, kept, *(inference.fixed(node, i + 2, s) for i, s in enumerate(grown))])


def space_to_depth(inference: AxisInference, node: ir.Node) -> None:
    batch, channels, *space = inference.axes_of(node, 0)
    block = attribute_of(node, "blocksize")
    blocks = Axis(block**2)
    inference.freeze(node, [blocks, *space], 1, "pixels become channels")
    sizes = [root(axis).size for axis in space]
    shrunk = [None if size is None else size // block for size in sizes]
    inference.output(
        node,
        [
            batch,
            product([blocks, channels]),
            *(inference.fixed(node, i + 2, s) for i, s in enumerate(shrunk)),
        ],
    )


def _scaled(axis: Axis, factor: int) -> int | None:
    size = root(axis).size
    return None if size is None else size * factor


def _in_order(axis: Axis, before: Sequence[Axis], source: Sequence[Axis]) -> Axis:
    """The product of an unknown length and numbers, with its factors as they stand in the source.

    Exporters write ``4 * batch`` for what is ``batch`` rows of 4 and for 4 rows of ``batch`` alike.

    Args:
        axis: the product.
        before: the axes that the reshape makes before this one.
        source: the axes that it reshapes.
    """
    factors = _factors(axis)
    unknown = [factor for factor in factors if factor.size is None]
    number = times(factor for factor in factors if factor.size is not None)
    passed = times(map(root, before))
    left = [factor for each in source for factor in _factors(each) if factor.size != 1]
    if len(factors) < 2 or len(unknown) != 1 or passed is None:
        return axis
    reached = 1
    while left and reached < passed and left[0].size is not None:
        reached *= left.pop(0).size or 1
    if reached != passed or not left:
        return axis
    return product([*unknown, Axis(number)] if left[0].size is None else [Axis(number), *unknown])


def _factors(axis: Axis) -> list[Axis]:
    """What an axis is the product of; itself if it is no product."""
    axis = root(axis)
    return [f for child in axis.children for f in _factors(child)] if axis.kind == "product" else [axis]


def _inferred_length(axes: list[Axis], result: list[Axis], inferred: int) -> int | None:
    """The length that -1 stands for, where unknown lengths cancel."""
    before = [factor for axis in axes for factor in _factors(axis)]
    others = (axis for position, axis in enumerate(result) if position != inferred)
    after = [factor for axis in others for factor in _factors(axis)]
    for axis in [axis for axis in after if axis.size is None]:
        if axis in before:
            before.remove(axis)
            after.remove(axis)
    sizes = [axis.size for axis in before], [axis.size for axis in after]
    if None in sizes[0] or None in sizes[1] or 0 in sizes[1]:
        return None
    return math.prod(s for s in sizes[0] if s is not None) // math.prod(s for s in sizes[1] if s is not None)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Cast", "CastLike", "Identity"), identity),
    "DepthToSpace": depth_to_space,
    "Flatten": flatten,
    "Reshape": reshape,
    "SpaceToDepth": space_to_depth,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
