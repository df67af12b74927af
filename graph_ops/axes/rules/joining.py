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
    position = attribute_of(node, "axis") % len(operands[0])
    result = []
    for axis in range(len(operands[0])):
        if axis == position:
            result.append(concat([axes[axis] for axes in operands]))
            continue
        for axes in operands[1:]:
            inference.unify(node, operands[0][axis], axes[axis], axis)
        result.append(operands[0][axis])
    inference.output(node, result)


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
        raise UnknownShape("its sequence is not known")
    (position,) = _numbers(inference, node, 1)
    inference.output(node, parts[position])


def _divide(
    inference: AxisInference, node: ir.Node, position: int, sizes: list[int], target: str | int
) -> list[Axis]:
    if min(sizes, default=0) < 0:
        raise UnknownShape(f"the lengths {sizes} of the parts make no sense")
    parts = [Axis(size) for size in sizes]
    axis = inference.axes_of(node, 0)[position]
    align([axis], parts, inference.barrier(node, position, "cut inside a channel's block"))
    inference.follow(node, target, [Size(part) for part in parts])
    return parts


def _chunks(total: int, size: int, count: int) -> list[int]:
    return [max(0, min(size, total - i * size)) for i in range(count)]


def _numbers(inference: AxisInference, node: ir.Node, index: int) -> list[int]:
    value = inference.ints(node, index)
    numbers = [] if value is None else [evaluate(element, size_of) for element in value.elements]
    if value is None or None in numbers:
        raise UnknownShape(f"input {index} is not known")
    return [number for number in numbers if number is not None]


def cut(inference: AxisInference, node: ir.Node) -> None:
    """Slice: an axis is a concatenation of what is before, the slice, and what follows."""
    axes = list(inference.axes_of(node, 0))
    starts, ends = _integers(inference, node, 1), _integers(inference, node, 2)
    if starts is None or ends is None:
        raise UnknownShape("its bounds are not known")
    where = axes_argument(inference, node, len(axes), 3) or list(range(len(starts)))
    steps = [1] * len(starts)
    if inference.input(node, 4) is not None:
        value = _integers(inference, node, 4)
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
            inference.freeze(node, axis, position, "sliced at steps or at unknown bounds")
            length = None
            if axis.size is not None and start is not None and end is not None and steps[i]:
                length = len(range(axis.size)[slice(start, _bound(end), steps[i])])
            axes[position] = inference.fixed(node, position, length)
            continue
        low, high, _ = slice(start, end).indices(axis.size)
        high = max(low, high)
        if (low, high) == (0, axis.size):
            # Bounds that are far beyond the length stay so; spell out the others for the grown one.
            first[i] = 0
            last[i] = Size(axis) if end < _FAR else end
            continue
        before, kept, after = Axis(low), Axis(high - low), Axis(axis.size - high)
        barrier = inference.barrier(node, position, "cut inside a channel's block")
        align([axis], [before, kept, after], barrier)
        first[i] = Size(before)
        last[i] = calculate("add", Size(before), Size(kept))
        axes[position] = kept
    inference.follow(node, 1, first)
    inference.follow(node, 2, last)
    inference.output(node, axes)


_FAR = 2**31 - 1


def _is_length(element: Expression, axis: Axis) -> bool:
    return isinstance(element, Size) and root(element.axis) is axis


def _bound(end: int) -> int | None:
    return None if abs(end) >= _FAR else end


def pad(inference: AxisInference, node: ir.Node) -> None:
    """Constant padding adds channels of one value before and after."""
    axes = list(inference.axes_of(node, 0))
    amounts = _integers(inference, node, 1)
    if amounts is None:
        raise UnknownShape("its pads are not known")
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
            inference.freeze(node, axis, position, f"padded in mode {mode}")
            total = None if None in (axis.size, before, after) else axis.size + before + after  # type: ignore[operator]
            axes[position] = inference.fixed(node, position, total)
            continue
        # A copy of a padding entry is one more padding entry, so the amounts follow.
        edges = [Axis(before), Axis(after)]
        follow[i], follow[i + len(where)] = Size(edges[0]), Size(edges[1])
        axes[position] = concat([edges[0], axis, edges[1]])
    inference.follow(node, 1, follow)
    inference.output(node, axes)


def tile(inference: AxisInference, node: ir.Node) -> None:
    axes = inference.axes_of(node, 0)
    repeats = _integers(inference, node, 1)
    if repeats is None:
        raise UnknownShape("its repeats are not known")
    result = []
    for position, (axis, element) in enumerate(zip(axes, repeats, strict=True)):
        count = Axis(evaluate(element, size_of))
        inference.freeze(node, count, position, "repetitions")
        result.append(product([count, axis]))
    inference.output(node, result)


def _integers(inference: AxisInference, node: ir.Node, index: int) -> tuple[Expression, ...] | None:
    value = inference.ints(node, index)
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
