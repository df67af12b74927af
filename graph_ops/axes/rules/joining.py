"""Operators that join, cut, pad and repeat axes."""

from __future__ import annotations

import math

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, concat, product, root
from growpipe.graph_ops.axes.integers import Expression, Size, calculate, evaluate
from growpipe.graph_ops.axes.rule_api import AxisInference, Rule, UnknownShape, size_of
from growpipe.graph_ops.axes.rules.layout import axes_argument
from growpipe.graph_ops.axes.solver import align
from growpipe.graph_ops.operators import attribute_of

__all__ = ["RULES"]


def join(inference: AxisInference, node: ir.Node) -> None:
    """Concat: the axis is the sum of the parts, all other axes agree."""
    operands = [inference.axes_of(node, index) for index in range(len(node.inputs))]
    position = attribute_of(node, "axis", 1 if inference.opset < 4 else None) % len(operands[0])
    result = []
    for axis in range(len(operands[0])):
        if axis == position:
            result.append(concat([axes[axis] for axes in operands]))
            continue
        for axes in operands[1:]:
            inference.unify(node, operands[0][axis], axes[axis], axis)
        result.append(operands[0][axis])
    inference.output(node, result)
    inference.view_parts(node, range(len(node.inputs)))


def split(inference: AxisInference, node: ir.Node) -> None:
    axes = inference.axes_of(node, 0)
    position = attribute_of(node, "axis", 0) % len(axes)
    sizes = attribute_of(node, "split")
    target: str | int = "split" if sizes is not None else 1
    if sizes is None and inference.input(node, 1) is not None:
        sizes = _numbers(inference, node, 1)
    total = root(axes[position]).size
    if sizes is None:
        if total is None:
            raise UnknownShape("the length of the axis is not known")
        sizes = _chunks(total, math.ceil(total / len(node.outputs)), len(node.outputs))
        if inference.opset < 13:
            target = "split"
    for index, part in enumerate(_divide(inference, node, position, sizes, target)):
        inference.output(node, [*axes[:position], part, *axes[position + 1 :]], index)
    inference.view_parts(node, [0])


def split_to_sequence(inference: AxisInference, node: ir.Node) -> None:
    """As Split, the parts in a sequence; one length stands for equal chunks."""
    axes = inference.axes_of(node, 0)
    position = attribute_of(node, "axis", 0) % len(axes)
    total = root(axes[position]).size
    given = inference.ints(node, 1)
    if given is None or total is None:
        raise UnknownShape("the lengths of the parts are not known")
    sizes = _numbers(inference, node, 1)
    if given.rank == 0:
        sizes = _chunks(total, sizes[0], -(-total // sizes[0]))
    inference.sequences[node.outputs[0]] = [
        [*axes[:position], part, *axes[position + 1 :]]
        for part in _divide(inference, node, position, sizes, 1)
    ]


def sequence_at(inference: AxisInference, node: ir.Node) -> None:
    source = node.inputs[0]
    parts = inference.sequences.get(source) if source is not None else None
    if parts is None:
        raise UnknownShape("the tensors of the sequence are not known")
    (position,) = _numbers(inference, node, 1)
    inference.output(node, parts[position])


def _divide(
    inference: AxisInference, node: ir.Node, position: int, sizes: list[int], target: str | int
) -> list[Axis]:
    if min(sizes, default=0) < 0:
        raise UnknownShape(f"a part has a negative length, {min(sizes)}")
    parts = [Axis(size) for size in sizes]
    axis = inference.axes_of(node, 0)[position]
    align([axis], parts, inference.barrier(node, position, _INSIDE))
    inference.follow(node, target, [Size(part) for part in parts])
    return parts


_MOST_PARTS = 1 << 14


def _chunks(total: int, size: int, count: int) -> list[int]:
    """The lengths of ``count`` parts of an axis, all of length ``size`` but the last ones."""
    if count > _MOST_PARTS:
        raise UnknownShape(f"{count} parts are too many to be followed")
    return [max(0, min(size, total - i * size)) for i in range(count)]


def _numbers(inference: AxisInference, node: ir.Node, index: int) -> list[int]:
    value = inference.ints(node, index)
    numbers = [] if value is None else [evaluate(element, size_of) for element in value.elements]
    if value is None or None in numbers:
        raise UnknownShape(f"the lengths in input {index} are computed from data")
    return [number for number in numbers if number is not None]


def cut(inference: AxisInference, node: ir.Node) -> None:
    """Slice: an axis is a concatenation of what is before, the slice, and what follows."""
    axes = list(inference.axes_of(node, 0))
    starts, at_starts = _argument(inference, node, "starts", 1)
    ends, at_ends = _argument(inference, node, "ends", 2)
    where = axes_argument(inference, node, len(axes), 3) or list(range(len(starts)))
    steps = [1] * len(starts)
    if inference.input(node, 4) is not None:
        steps = [evaluate(element, size_of) or 0 for element in _argument(inference, node, "steps", 4)[0]]
    first: list[Expression] = [evaluate(start, size_of) for start in starts]
    last: list[Expression] = [evaluate(end, size_of) for end in ends]
    for i, position in enumerate(where):
        start, end = evaluate(starts[i], size_of), evaluate(ends[i], size_of)
        axis = root(axes[position])
        whole = (end is not None and end >= _FAR) or _is_length(ends[i], axis)
        if start == 0 and steps[i] == 1 and whole:
            last[i] = ends[i]
        elif axis.size is None or start is None or end is None or steps[i] != 1:
            reason = "the slice has a step, or bounds that are not known"
            inference.freeze(node, axis, position, reason)
            axes[position] = inference.fixed(node, position, _sliced(axis.size, start, end, steps[i]))
        else:
            axes[position], first[i], last[i] = _cut_out(inference, node, position, start, end)
    inference.follow(node, at_starts, first)
    inference.follow(node, at_ends, last)
    inference.output(node, axes)
    inference.view_parts(node, [0])


def _cut_out(
    inference: AxisInference, node: ir.Node, position: int, start: int, end: int
) -> tuple[Axis, Expression, Expression]:
    """The part of an axis of known length between two bounds, and the bounds that follow its growth."""
    axis = root(inference.axes_of(node, 0)[position])
    assert axis.size is not None
    low, high, _ = slice(start, end).indices(axis.size)
    high = max(low, high)
    if (low, high) == (0, axis.size):
        # Bounds that are far beyond the length stay so; spell out the others for the grown one.
        return axis, 0, Size(axis) if end < _FAR else end
    before, kept, after = Axis(low), Axis(high - low), Axis(axis.size - high)
    align([axis], [before, kept, after], inference.barrier(node, position, _INSIDE))
    return kept, Size(before), calculate("add", Size(before), Size(kept))


_INSIDE = "it cuts between the entries of one channel"
_FAR = 2**31 - 1


def _is_length(element: Expression, axis: Axis) -> bool:
    return isinstance(element, Size) and root(element.axis) is axis


def _sliced(size: int | None, start: int | None, end: int | None, step: int) -> int | None:
    """The length of a slice; None if it is not known."""
    if size is None or start is None or end is None or not step:
        return None
    return len(range(size)[slice(start, None if abs(end) >= _FAR else end, step)])


def pad(inference: AxisInference, node: ir.Node) -> None:
    """Constant padding adds channels of one value before and after."""
    axes = list(inference.axes_of(node, 0))
    amounts, target = _argument(inference, node, "paddings" if inference.opset < 2 else "pads", 1)
    where = axes_argument(inference, node, len(axes), 3) or list(range(len(axes)))
    mode = attribute_of(node, "mode", "constant")
    follow: list[Expression] = [evaluate(amount, size_of) for amount in amounts]
    for i, position in enumerate(where):
        before = evaluate(amounts[i], size_of)
        after = evaluate(amounts[i + len(where)], size_of)
        if before == 0 and after == 0:
            continue
        axis = root(axes[position])
        if mode != "constant" or before is None or after is None or min(before, after) < 0:
            reason = "it pads by an amount that is not constant and positive, or with copies of the entries"
            inference.freeze(node, axis, position, reason)
            total = None if None in (axis.size, before, after) else axis.size + before + after  # type: ignore[operator]
            axes[position] = inference.fixed(node, position, total)
            continue
        # A copy of a padding entry is one more padding entry, so the amounts follow.
        edges = [Axis(before), Axis(after)]
        follow[i], follow[i + len(where)] = Size(edges[0]), Size(edges[1])
        axes[position] = concat([edges[0], axis, edges[1]])
    inference.follow(node, target, follow)
    inference.output(node, axes)


def tile(inference: AxisInference, node: ir.Node) -> None:
    axes = inference.axes_of(node, 0)
    repeats, _ = _argument(inference, node, "repeats", 1)
    result = []
    for position, (axis, element) in enumerate(zip(axes, repeats, strict=True)):
        count = Axis(evaluate(element, size_of))
        inference.freeze(node, count, position, "the number of repetitions cannot change")
        result.append(product([count, axis]))
    inference.output(node, result)


def _argument(
    inference: AxisInference, node: ir.Node, name: str, index: int
) -> tuple[tuple[Expression, ...], str | int]:
    """Integers that old opsets keep in an attribute and new ones in an input, and which of both it is.

    Raises:
        UnknownShape: they are computed from data.
    """
    stated = attribute_of(node, name)
    if stated is not None:
        return tuple(stated), name
    value = inference.ints(node, index)
    if value is None:
        raise UnknownShape(f"its {name} are computed from data")
    return value.elements, index


RULES: dict[str, Rule] = {
    "Concat": join,
    "Pad": pad,
    "SequenceAt": sequence_at,
    "Slice": cut,
    "Split": split,
    "SplitToSequence": split_to_sequence,
    "Tile": tile,
}
