"""Operators that join, cut, pad and repeat axes; and Gather."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from growpipe.graph_ops.analysis import Analysis, Rule, UnknownShape, size_of
from growpipe.graph_ops.rules.layout import axes_argument
from growpipe.graph_ops.sizes import Arithmetic, Expression, Ints, Size, evaluate
from growpipe.graph_ops.solver import Axis, align, concat, product, root

__all__ = ["RULES"]


def join(analysis: Analysis, node: ir.Node) -> None:
    """Concat: the axis is the sum of the parts, all other axes agree."""
    operands = [analysis.axes_of(node, index) for index in range(len(node.inputs))]
    position = analysis.attribute(node, "axis") % len(operands[0])
    result = []
    for axis in range(len(operands[0])):
        if axis == position:
            result.append(concat([axes[axis] for axes in operands]))
            continue
        for axes in operands[1:]:
            analysis.unify(node, operands[0][axis], axes[axis], axis)
        result.append(operands[0][axis])
    analysis.output(node, result)
    values = [analysis.constant(value) for value in node.inputs if value is not None]
    present = [value for value in values if value is not None]
    if len(present) == len(values):
        for index in range(len(values)):
            analysis.ints(node, index)
        elements = tuple(element for value in present for element in value.elements)
        analysis.values[node.outputs[0]] = Ints(1, elements)


def split(analysis: Analysis, node: ir.Node) -> None:
    axes = analysis.axes_of(node, 0)
    position = analysis.attribute(node, "axis", 0) % len(axes)
    sizes = analysis.attribute(node, "split")
    target: str | int = "split" if sizes is not None else 1
    if sizes is None and analysis.input(node, 1) is not None:
        value = analysis.ints(node, 1)
        if value is None:
            raise UnknownShape("the lengths of the parts are not known")
        sizes = [evaluate(element, size_of) for element in value.elements]
    total = root(axes[position]).size
    if sizes is None:
        if total is None:
            raise UnknownShape("the length of the axis is not known")
        chunk = math.ceil(total / len(node.outputs))
        sizes = [min(chunk, total - i * chunk) for i in range(len(node.outputs))]
        if analysis.opset < 13:
            target = "split"
    parts = [Axis(size) for size in sizes]
    align([axes[position]], parts, analysis.barrier(node, position, "cut inside a channel's block"))
    analysis.follow(node, target, [Size(part) for part in parts])
    for index, part in enumerate(parts):
        analysis.output(node, [*axes[:position], part, *axes[position + 1 :]], index)


def cut(analysis: Analysis, node: ir.Node) -> None:
    """Slice: an axis is a concatenation of what is before, the slice, and what follows."""
    axes = list(analysis.axes_of(node, 0))
    starts, ends = _integers(analysis, node, 1), _integers(analysis, node, 2)
    if starts is None or ends is None:
        raise UnknownShape("its bounds are not known")
    where = axes_argument(analysis, node, len(axes), 3) or list(range(len(starts)))
    steps = [1] * len(starts)
    if analysis.input(node, 4) is not None:
        value = _integers(analysis, node, 4)
        if value is None:
            raise UnknownShape("its steps are not known")
        steps = [evaluate(element, size_of) or 0 for element in value]
    _slice_integers(analysis, node, starts, ends, steps)
    first: list[Expression] = [None] * len(starts)
    last: list[Expression] = [None] * len(ends)
    for i, position in enumerate(where):
        start, end = evaluate(starts[i], size_of), evaluate(ends[i], size_of)
        axis = root(axes[position])
        whole = (end is not None and end >= _FAR) or _is_length(ends[i], axis)
        if start == 0 and steps[i] == 1 and whole:
            continue
        if axis.size is None or start is None or end is None or steps[i] != 1:
            analysis.freeze(node, axis, position, "sliced at steps or at unknown bounds")
            length = None
            if axis.size is not None and start is not None and end is not None and steps[i]:
                length = len(range(axis.size)[slice(start, _bound(end), steps[i])])
            axes[position] = analysis.fixed(node, position, length)
            continue
        low, high, _ = slice(start, end).indices(axis.size)
        high = max(low, high)
        if (low, high) == (0, axis.size):
            # Bounds that are far beyond the length stay so; spell out the others for the grown one.
            first[i] = None if start == 0 else 0
            last[i] = Size(axis) if end < _FAR else None
            continue
        before, kept, after = Axis(low), Axis(high - low), Axis(axis.size - high)
        barrier = analysis.barrier(node, position, "cut inside a channel's block")
        align([axis], [before, kept, after], barrier)
        first[i] = Size(before)
        last[i] = Arithmetic("add", Size(before), Size(kept))
        axes[position] = kept
    analysis.follow(node, 1, first)
    analysis.follow(node, 2, last)
    analysis.output(node, axes)


_FAR = 2**31 - 1


def _is_length(element: Expression, axis: Axis) -> bool:
    return isinstance(element, Size) and root(element.axis) is axis


def _bound(end: int) -> int | None:
    return None if abs(end) >= _FAR else end


def _slice_integers(
    analysis: Analysis,
    node: ir.Node,
    starts: Sequence[Expression],
    ends: Sequence[Expression],
    steps: Sequence[int],
) -> None:
    value = analysis.input(node, 0)
    data = analysis.constant(value) if value is not None else None
    start, end = starts[0], ends[0]
    if data is not None and data.rank == 1 and isinstance(start, int) and isinstance(end, int):
        analysis.ints(node, 0)
        picked = data.elements[slice(start, end, steps[0] or 1)]
        analysis.values[node.outputs[0]] = Ints(1, tuple(picked))


def pad(analysis: Analysis, node: ir.Node) -> None:
    """Padding adds entries that belong to no channel."""
    axes = list(analysis.axes_of(node, 0))
    amounts = _integers(analysis, node, 1)
    if amounts is None:
        raise UnknownShape("its pads are not known")
    where = axes_argument(analysis, node, len(axes), 3) or list(range(len(axes)))
    mode = analysis.attribute(node, "mode", "constant")
    for i, position in enumerate(where):
        before = evaluate(amounts[i], size_of)
        after = evaluate(amounts[i + len(where)], size_of)
        if before == 0 and after == 0:
            continue
        axis = root(axes[position])
        if mode != "constant" or before is None or after is None or min(before, after) < 0:
            analysis.freeze(node, axis, position, f"padded in mode {mode}")
            total = None if None in (axis.size, before, after) else axis.size + before + after  # type: ignore[operator]
            axes[position] = analysis.fixed(node, position, total)
            continue
        edges = [Axis(before), Axis(after)]
        analysis.freeze(node, edges, position, "padding")
        axes[position] = concat([edges[0], axis, edges[1]])
    analysis.output(node, axes)


def tile(analysis: Analysis, node: ir.Node) -> None:
    axes = analysis.axes_of(node, 0)
    repeats = _integers(analysis, node, 1)
    if repeats is None:
        raise UnknownShape("its repeats are not known")
    result = []
    for position, (axis, element) in enumerate(zip(axes, repeats, strict=True)):
        count = Axis(evaluate(element, size_of))
        analysis.freeze(node, count, position, "repetitions")
        result.append(product([count, axis]))
    analysis.output(node, result)


def gather(analysis: Analysis, node: ir.Node) -> None:
    """Picks entries of one axis by data; the other axes pass. An embedding's table makes its channels."""
    axes, picked = analysis.axes_of(node, 0), analysis.axes_of(node, 1)
    position = analysis.attribute(node, "axis", 0) % len(axes)
    _gather_integers(analysis, node)
    analysis.freeze(node, axes[position], position, "gathered by data")
    if analysis.is_weight(node, 0):
        for axis in range(len(axes)):
            if axis != position:
                analysis.made(node, 0, axis)
    analysis.output(node, [*axes[:position], *picked, *axes[position + 1 :]])


def _gather_integers(analysis: Analysis, node: ir.Node) -> None:
    value, at = analysis.input(node, 0), analysis.input(node, 1)
    data = analysis.constant(value) if value is not None else None
    index = analysis.constant(at) if at is not None else None
    if data is None or index is None or data.rank != 1:
        return
    positions = [element for element in index.elements if isinstance(element, int)]
    if len(positions) == len(index.elements) and all(
        -len(data.elements) <= i < len(data.elements) for i in positions
    ):
        analysis.ints(node, 0)
        analysis.values[node.outputs[0]] = Ints(index.rank, tuple(data.elements[i] for i in positions))


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


def resize(analysis: Analysis, node: ir.Node) -> None:
    """Interpolates space; an axis whose length stays is left alone."""
    axes = analysis.axes_of(node, 0)
    where = analysis.attribute(node, "axes") or list(range(len(axes)))
    where = [position % len(axes) for position in where]
    index = 1 if node.op_type == "Upsample" else 2
    lengths: list[int | None] = [None] * len(where)
    kept = [False] * len(where)
    if analysis.input(node, 3) is not None:
        wanted = _integers(analysis, node, 3)
        if wanted is None:
            raise UnknownShape("the wanted lengths are not known")
        follow: list[Expression] = []
        for i, position in enumerate(where):
            lengths[i] = evaluate(wanted[i], size_of)
            axis, element = root(axes[position]), wanted[i]
            kept[i] = _is_length(element, axis) or (lengths[i] is not None and lengths[i] == axis.size)
            follow.append(Size(axis) if kept[i] else None)
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


def triangle(analysis: Analysis, node: ir.Node) -> None:
    """Trilu: the last two axes are compared by position."""
    axes = analysis.axes_of(node, 0)
    analysis.freeze(node, axes[-2:], None, "cut along the diagonal")
    analysis.output(node, axes)


def _integers(analysis: Analysis, node: ir.Node, index: int) -> tuple[Expression, ...] | None:
    value = analysis.ints(node, index)
    return None if value is None else value.elements


RULES: dict[str, Rule] = {
    "Concat": join,
    "Gather": gather,
    "GatherElements": gather_elements,
    "Pad": pad,
    "Resize": resize,
    "Slice": cut,
    "Split": split,
    "Tile": tile,
    "Trilu": triangle,
    "Upsample": resize,
}
