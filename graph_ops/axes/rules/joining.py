"""Operators that join, cut, pad and repeat axes."""

from __future__ import annotations

import math

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, align, concat, product, root
from growpipe.graph_ops.axes.inference import Analysis, Rule, UnknownShape, size_of
from growpipe.graph_ops.axes.integers import Arithmetic, Expression, Size, evaluate
from growpipe.graph_ops.axes.rules.layout import axes_argument

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


def split(analysis: Analysis, node: ir.Node) -> None:
    axes = analysis.axes_of(node, 0)
    position = analysis.attribute(node, "axis", 0) % len(axes)
    sizes = analysis.attribute(node, "split")
    target: str | int = "split" if sizes is not None else 1
    if sizes is None and analysis.input(node, 1) is not None:
        sizes = _numbers(analysis, node, 1)
    total = root(axes[position]).size
    if sizes is None:
        if total is None:
            raise UnknownShape("the length of the axis is not known")
        sizes = _chunks(total, math.ceil(total / len(node.outputs)), len(node.outputs))
        if analysis.opset < 13:
            target = "split"
    for index, part in enumerate(_divide(analysis, node, position, sizes, target)):
        analysis.output(node, [*axes[:position], part, *axes[position + 1 :]], index)


def split_to_sequence(analysis: Analysis, node: ir.Node) -> None:
    """As Split, the parts in a sequence; one length stands for equal chunks."""
    axes = analysis.axes_of(node, 0)
    position = analysis.attribute(node, "axis", 0) % len(axes)
    total = root(axes[position]).size
    given = analysis.ints(node, 1)
    if given is None or total is None:
        raise UnknownShape("the lengths of the parts are not known")
    sizes = _numbers(analysis, node, 1)
    if given.rank == 0:
        sizes = _chunks(total, sizes[0], -(-total // sizes[0]))
    analysis.sequences[node.outputs[0]] = [
        [*axes[:position], part, *axes[position + 1 :]]
        for part in _divide(analysis, node, position, sizes, 1)
    ]


def sequence_at(analysis: Analysis, node: ir.Node) -> None:
    source = node.inputs[0]
    parts = analysis.sequences.get(source) if source is not None else None
    if parts is None:
        raise UnknownShape("its sequence is not known")
    (position,) = _numbers(analysis, node, 1)
    analysis.output(node, parts[position])


def _divide(
    analysis: Analysis, node: ir.Node, position: int, sizes: list[int], target: str | int
) -> list[Axis]:
    if min(sizes, default=0) < 0:
        raise UnknownShape(f"the lengths {sizes} of the parts make no sense")
    parts = [Axis(size) for size in sizes]
    axis = analysis.axes_of(node, 0)[position]
    align([axis], parts, analysis.barrier(node, position, "cut inside a channel's block"))
    analysis.follow(node, target, [Size(part) for part in parts])
    return parts


def _chunks(total: int, size: int, count: int) -> list[int]:
    return [max(0, min(size, total - i * size)) for i in range(count)]


def _numbers(analysis: Analysis, node: ir.Node, index: int) -> list[int]:
    value = analysis.ints(node, index)
    numbers = [] if value is None else [evaluate(element, size_of) for element in value.elements]
    if value is None or None in numbers:
        raise UnknownShape(f"input {index} is not known")
    return [number for number in numbers if number is not None]


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
    first: list[Expression] = [evaluate(start, size_of) for start in starts]
    last: list[Expression] = [evaluate(end, size_of) for end in ends]
    for i, position in enumerate(where):
        start, end = evaluate(starts[i], size_of), evaluate(ends[i], size_of)
        axis = root(axes[position])
        whole = (end is not None and end >= _FAR) or _is_length(ends[i], axis)
        if start == 0 and steps[i] == 1 and whole:
            last[i] = ends[i]
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
            first[i] = 0
            last[i] = Size(axis) if end < _FAR else end
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


def pad(analysis: Analysis, node: ir.Node) -> None:
    """Constant padding adds channels of one value before and after."""
    axes = list(analysis.axes_of(node, 0))
    amounts = _integers(analysis, node, 1)
    if amounts is None:
        raise UnknownShape("its pads are not known")
    where = axes_argument(analysis, node, len(axes), 3) or list(range(len(axes)))
    mode = analysis.attribute(node, "mode", "constant")
    follow: list[Expression] = [evaluate(amount, size_of) for amount in amounts]
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
        # A copy of a padding entry is one more padding entry, so the amounts follow.
        edges = [Axis(before), Axis(after)]
        follow[i], follow[i + len(where)] = Size(edges[0]), Size(edges[1])
        axes[position] = concat([edges[0], axis, edges[1]])
    analysis.follow(node, 1, follow)
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


def _integers(analysis: Analysis, node: ir.Node, index: int) -> tuple[Expression, ...] | None:
    value = analysis.ints(node, index)
    return None if value is None else value.elements


RULES: dict[str, Rule] = {
    "Concat": join,
    "Pad": pad,
    "SequenceAt": sequence_at,
    "Slice": cut,
    "Split": split,
    "SplitToSequence": split_to_sequence,
    "Tile": tile,
}
