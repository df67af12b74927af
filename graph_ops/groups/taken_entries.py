"""Which entries of a weight's axis go on along a way, if the weight makes other channels, too.

The fused weight of queries, keys and values is one: its product is reshaped, transposed and then cut. Every
entry of the weight's axis is followed by its number through these nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Set

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from growpipe.graph_ops.axes.axis import root
from growpipe.graph_ops.axes.rule_api import AxisInference
from growpipe.graph_ops.axes.rules.layout import axes_argument
from growpipe.graph_ops.groups.linear_way import Edge, NoWay, Place, Way
from growpipe.graph_ops.operators import attribute_of, operator_name

__all__ = ["entries_taken"]

Numbers = npt.NDArray[np.int64]
"""The entry of the weight's axis that each entry of a tensor belongs to; length 1 on all other axes."""


def entries_taken(
    inference: AxisInference, way: Way, edges: Set[Edge], cut: ir.Value
) -> tuple[list[Place], npt.NDArray[np.bool_]]:
    """The weights before the cut, and which entries of their axes go on along the way.

    Args:
        inference: the solved axes.
        way: the way.
        edges: the inputs of nodes that belong to this way or to another one.
        cut: the value on the way of which only a part goes on.

    Raises:
        NoWay: that is not known, or others read the same entries.
    """
    follow = _Follower(inference)
    chain = list(_chain(way, cut))
    nodes = [node for node, _ in chain]
    places = [place for place in way.places if place[0].use.node in nodes]
    product = nodes[-1]
    (touch, position), *_ = [place for place in places if place[0].use.node is product]
    length = touch.axes[position].size
    product_axes = inference.axes[product.outputs[0]]
    channels = 1 if product.op_type.startswith("Conv") else len(product_axes) - 1
    if length is None or root(product_axes[channels]).size != length:
        raise NoWay("a weight makes other channels, too, on several axes")
    shape = [1] * len(product_axes)
    shape[channels] = length
    numbers = np.arange(length).reshape(shape)
    for node in reversed(nodes[:-1]):
        numbers = follow(node, numbers)[0]
    taken, left = np.zeros(length, bool), np.zeros(length, bool)
    for use in cut.uses():
        if use.node.op_type == "Shape":
            continue
        for output, entries in zip(use.node.outputs, follow(use.node, numbers), strict=True):
            on_the_way = (use.node, use.idx) in edges and output in way.values
            (taken if on_the_way else left)[entries] = True
    if (taken & left).any():
        raise NoWay("others read the same channels")
    return places, taken


def _chain(way: Way, cut: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """The nodes from the cut back to the product that makes its channels, with their inputs on the way."""
    value = cut
    while True:
        node = value.producer()
        assert node is not None
        inputs = [index for other, index in way.edges if other is node]
        yield node, inputs[0] if inputs else 0
        if not inputs:
            return
        if len(inputs) > 1:
            raise NoWay("a weight makes other channels, too, which are joined with others")
        following = node.inputs[inputs[0]]
        assert following is not None
        value = following


class _Follower:
    """Follows the numbers of entries through nodes that rearrange them."""

    def __init__(self, inference: AxisInference) -> None:
        self._inference = inference

    def __call__(self, node: ir.Node, numbers: Numbers) -> list[Numbers]:
        """The numbers of every output.

        Raises:
            NoWay: the node does something else, or lengths are not known.
        """
        match node.op_type:
            case "Reshape" | "Flatten":
                return [self._reshaped(node, numbers)]
            case "Squeeze" | "Unsqueeze":
                return [self._with_axes(node, numbers)]
            case "Transpose":
                order = attribute_of(node, "perm") or list(range(numbers.ndim))[::-1]
                return [numbers.transpose(order)]
            case "Split":
                axis = attribute_of(node, "axis", 0) % numbers.ndim
                return self._parts(node, numbers, axis, map(self._lengths, node.outputs))
            case "SplitToSequence":
                return [numbers]
            case "SequenceAt":
                return [self._part(node, numbers)]
            case "Slice":
                return [self._sliced(node, numbers)]
            case "Gather":
                return [self._gathered(node, numbers)]
            case "Add" | "Sub" | "Mul" | "Div" | "Identity" | "Cast" | "Dropout" | "Neg":
                if len(self._inference.axes[node.outputs[0]]) == numbers.ndim:
                    return [numbers]
        raise NoWay(f"the channels of a weight are not followed through {operator_name(node)}")

    def _lengths(self, value: ir.Value | None) -> list[int | None]:
        return [] if value is None else [root(axis).size for axis in self._inference.axes[value]]

    def _reshaped(self, node: ir.Node, numbers: Numbers) -> Numbers:
        """The axes of the numbers stay in order; so many lengths behind them stay as they are."""
        before, after = self._lengths(node.inputs[0]), self._lengths(node.outputs[0])
        own = [position for position, size in enumerate(numbers.shape) if size > 1]
        behind = before[own[-1] + 1 :] if own else []
        if own and all(numbers.shape[p] > 1 or before[p] == 1 for p in range(own[0], own[-1] + 1)):
            stop = len(after)
            while _times(after[stop:]) != _times(behind) and stop > 0:
                stop -= 1
            start = stop
            while start > 0 and (_times(after[start:stop]) or 0) < numbers.size:
                start -= 1
            if _times(after[start:stop]) == numbers.size:
                kept = [n or 1 for n in after[start:stop]]
                return numbers.reshape([1] * start + kept + [1] * (len(after) - stop))
        raise NoWay("the channels of a weight are not followed through a reshape")

    def _with_axes(self, node: ir.Node, numbers: Numbers) -> Numbers:
        """With axes of length 1 more, or less."""
        more = node.op_type == "Unsqueeze"
        before, after = self._lengths(node.inputs[0]), self._lengths(node.outputs[0])
        axes = axes_argument(self._inference, node, len(after if more else before))
        if axes is None:
            axes = [position for position, size in enumerate(before) if size == 1]
        return np.expand_dims(numbers, axes) if more else numbers.squeeze(tuple(axes))

    def _parts(
        self, node: ir.Node, numbers: Numbers, axis: int, shapes: Iterable[Sequence[int | None]]
    ) -> list[Numbers]:
        """The numbers of the parts that ``axis`` is split into."""
        lengths = [shape[axis] for shape in shapes]
        if None in lengths or sum(n or 0 for n in lengths) != numbers.shape[axis]:
            raise NoWay(f"the channels of a weight are not followed through {operator_name(node)}")
        return np.split(numbers, np.cumsum([n or 0 for n in lengths[:-1]]), axis)

    def _part(self, node: ir.Node, numbers: Numbers) -> Numbers:
        """The numbers of one part of a sequence."""
        value = node.inputs[0]
        splitting = None if value is None else value.producer()
        index = self._numbers(node, 1)
        if value is None or splitting is None or splitting.op_type != "SplitToSequence" or not index:
            raise NoWay("the channels of a weight are not followed through SequenceAt")
        axis = attribute_of(splitting, "axis", 0) % numbers.ndim
        shapes = [[root(one).size for one in axes] for axes in self._inference.sequences[value]]
        return self._parts(node, numbers, axis, shapes)[index[0]]

    def _sliced(self, node: ir.Node, numbers: Numbers) -> Numbers:
        given = [self._numbers(node, index) for index in range(1, len(node.inputs))]
        if len(given) < 2:
            raise NoWay("the channels of a weight are not followed through Slice")
        starts, ends = given[0], given[1]
        axes = given[2] if len(given) > 2 and given[2] is not None else list(range(len(starts or ())))
        steps = given[3] if len(given) > 3 and given[3] is not None else [1] * len(axes)
        if starts is None or ends is None:
            raise NoWay("the channels of a weight are not followed through Slice")
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            if numbers.shape[axis] > 1:
                numbers = numbers.take(range(numbers.shape[axis])[start:end:step], axis)
        return numbers

    def _gathered(self, node: ir.Node, numbers: Numbers) -> Numbers:
        axis = attribute_of(node, "axis", 0) % numbers.ndim
        index = self._inference.constant(node, 1)
        if index is None or (numbers.shape[axis] == 1 and index.size > 1):
            raise NoWay("the channels of a weight are not followed through Gather")
        wanted = index.numpy()
        return numbers.take(wanted if numbers.shape[axis] > 1 else np.zeros_like(wanted), axis)

    def _numbers(self, node: ir.Node, index: int) -> list[int] | None:
        known = self._inference.ints(node, index)
        if known is None or not all(isinstance(element, int) for element in known.elements):
            return None
        return [element for element in known.elements if isinstance(element, int)]


def _times(lengths: Sequence[int | None]) -> int | None:
    return None if None in lengths else math.prod(n for n in lengths if n is not None)
