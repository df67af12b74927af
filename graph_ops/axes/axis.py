"""Mutable axes: what every axis of a graph is made of while the graph is being solved.

An `Axis` begins as a leaf. `growpipe.graph_ops.axes.solver` unifies axes and refines leaves into products and
concatenations; everybody who holds an axis sees it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Axis",
    "Barrier",
    "TooMuchWork",
    "concat",
    "extent",
    "freeze",
    "leaves",
    "limited_work",
    "nodes",
    "occurs",
    "product",
    "root",
    "step",
    "times",
]


@dataclass(frozen=True, slots=True)
class Barrier:
    """What keeps a channel from splitting.

    Attributes:
        operator: the operator type, ``"Input"``/``"Output"`` for the graph's own, ``""`` for none.
        node: the name of the node, or of the value where it has none.
        axis: the axis of the node's input or output that stands in the way; None if all do.
        reason: why, in words.
    """

    operator: str
    node: str
    axis: int | None
    reason: str

    def __str__(self) -> str:
        where = " ".join(part for part in (self.operator, self.node) if part)
        axis = "" if self.axis is None else f" axis {self.axis}"
        return f"{where}{axis}: {self.reason}" if where else self.reason


_LONGEST = 2**63 - 1


class Axis:
    """One axis of one or many tensors.

    Attributes:
        size: its length, None while unknown. A length that int64 cannot hold stays unknown: no tensor has it,
            but parts of a damaged file may add up to it.
        kind: ``"leaf"``, or how ``children`` make it up: ``"product"`` (row-major) or ``"concat"``.
        barrier: why it cannot grow; None if it can. A compound axis has one only after all its leaves do.

    Raises:
        ValueError: the length is negative, as attributes of a damaged file make it.
    """

    __slots__ = ("barrier", "children", "kind", "parent", "size")

    def __init__(self, size: int | None = None, barrier: Barrier | None = None) -> None:
        if size is not None and size < 0:
            raise ValueError(f"an axis cannot have the length {size}")
        self.parent: Axis | None = None
        self.size = None if size is None or size > _LONGEST else size
        self.kind: Literal["leaf", "product", "concat"] = "leaf"
        self.children: tuple[Axis, ...] = ()
        self.barrier = barrier

    def __repr__(self) -> str:
        axis = root(self)
        if axis.kind == "leaf":
            mark = "!" if axis.barrier else ""
            return f"{axis.size if axis.size is not None else '?'}{mark}"
        sign = " x " if axis.kind == "product" else " + "
        return "(" + sign.join(map(repr, axis.children)) + ")"


def root(axis: Axis) -> Axis:
    """The representative of all axes unified with ``axis``."""
    top = axis
    while top.parent is not None:
        top = top.parent
    while axis.parent is not None:
        axis.parent, axis = top, axis.parent
    return top


def product(axes: Sequence[Axis]) -> Axis:
    """The axis that several axes flattened into one make; lengths of 1 vanish."""
    kept = [axis for axis in map(root, axes) if axis.size != 1]
    if len(kept) == 1:
        return kept[0]
    if not kept:
        return Axis(1)
    result = Axis(times(kept))
    result.kind, result.children = "product", tuple(kept)
    return result


def concat(axes: Sequence[Axis]) -> Axis:
    """The axis of several axes one after the other; lengths of 0 vanish."""
    kept = [axis for axis in map(root, axes) if axis.size != 0]
    if len(kept) == 1:
        return kept[0]
    if not kept:
        return Axis(0)
    sizes = [axis.size for axis in kept]
    result = Axis(None if None in sizes else sum(size for size in sizes if size is not None))
    result.kind, result.children = "concat", tuple(kept)
    return result


def leaves(axis: Axis) -> list[Axis]:
    """The leaves of an axis in order, each once."""
    return [node for node in nodes(axis) if node.kind == "leaf"]


def nodes(axis: Axis) -> Iterator[Axis]:
    """The axis and all that it is made of, each once, in order."""
    stack, seen = [axis], set()
    while stack:
        top = root(stack.pop())
        if id(top) not in seen:
            step()
            seen.add(id(top))
            yield top
            stack.extend(reversed(top.children))


def extent(axis: Axis, known: dict[Axis, tuple[int, int]]) -> tuple[int, int]:
    """The number of leaves of an axis, one that occurs twice counted twice, and how deep they lie at most.

    Args:
        axis: the axis.
        known: the results so far; filled with those of everything that the axis is made of.
    """
    stack = [root(axis)]
    while stack:
        top = stack[-1]
        children = [root(child) for child in top.children]
        missing = [child for child in children if child not in known]
        if missing and top not in known:
            stack.extend(missing)
            continue
        stack.pop()
        inner = [known[child] for child in children]
        known[top] = (sum(n for n, _ in inner), 1 + max(d for _, d in inner)) if inner else (1, 0)
    return known[root(axis)]


def occurs(axis: Axis, inside: Axis) -> bool:
    """Whether ``axis`` is ``inside``, or a part or factor of it."""
    axis = root(axis)
    return any(node is axis for node in nodes(inside))


def times(axes: Iterable[Axis]) -> int | None:
    """The product of the lengths; None if one is unknown."""
    sizes = [axis.size for axis in axes]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def freeze(axis: Axis, barrier: Barrier) -> None:
    """Keep all channels of ``axis`` as they are; a barrier that is there already stays."""
    stack = [root(axis)]
    while stack:
        top = stack.pop()
        if top.barrier is None:
            top.barrier = barrier
            stack.extend(map(root, top.children))


class TooMuchWork(Exception):
    """Solving takes more steps than it may; the axes at hand are unified in part."""


_steps_left: ContextVar[list[int] | None] = ContextVar("steps left", default=None)


@contextmanager
def limited_work(steps: int) -> Iterator[None]:
    """Let solving take at most so many steps inside the block, then raise `TooMuchWork`.

    A step is one axis that is looked at. Files can describe axes that share parts of parts so often that
    looking at all of them would never end.
    """
    token = _steps_left.set([steps])
    try:
        yield
    finally:
        _steps_left.reset(token)


def step() -> None:
    """Count one step.

    Raises:
        TooMuchWork: there were too many of them.
    """
    left = _steps_left.get()
    if left is not None:
        left[0] -= 1
        if left[0] < 0:
            raise TooMuchWork
