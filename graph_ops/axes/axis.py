"""Solving for the dimensions of a graph: mutable axes, unified and refined until every rule holds.

An `Axis` begins as a leaf. Two axes that must hold the same channels are *unified*; a leaf that meets a
product (a reshape) or a concatenation is *refined* into one, and everybody who holds the axis sees it. What
cannot be aligned is frozen with the `Barrier` that says why: freezing is always safe, it only declines.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Axis", "Barrier", "align", "concat", "freeze", "leaves", "match", "product", "root", "unify"]


@dataclass(frozen=True, slots=True)
class Barrier:
    """What keeps a channel from splitting.

    Attributes:
        operator: the operator type, ``"Input"``/``"Output"`` for the graph's own, ``""`` for none.
        node: the name of the node, or of the value where it has none.
        axis: the axis of the node's input or output that stands in the way; None where all do.
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


class Axis:
    """One axis of one or many tensors.

    Attributes:
        size: its length, None while unknown.
        kind: ``"leaf"``, or how ``children`` make it up: ``"product"`` (row-major) or ``"concat"``.
        barrier: of a leaf, why it cannot grow; None where it can.
    """

    __slots__ = ("barrier", "children", "kind", "parent", "size")

    def __init__(self, size: int | None = None, barrier: Barrier | None = None) -> None:
        self.parent: Axis | None = None
        self.size = size
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
    result = Axis(_times(kept))
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
    """The leaves of an axis in order; one that occurs twice is listed twice."""
    found, stack = [], [axis]
    while stack:
        top = root(stack.pop())
        if top.kind == "leaf":
            found.append(top)
        else:
            stack.extend(reversed(top.children))
    return found


def freeze(axis: Axis, barrier: Barrier) -> None:
    """Keep all channels of ``axis`` as they are; a barrier that is there already stays."""
    seen: set[int] = set()
    stack = [axis]
    while stack:
        top = root(stack.pop())
        if id(top) in seen:
            continue
        seen.add(id(top))
        if top.kind == "leaf":
            top.barrier = top.barrier or barrier
        else:
            stack.extend(top.children)


def unify(a: Axis, b: Axis, barrier: Barrier) -> None:
    """Let ``a`` and ``b`` hold the same channels; both are frozen with ``barrier`` where they cannot."""
    a, b = root(a), root(b)
    if a is b or (a.size == 1 and b.size == 1):
        return
    if a.size is not None and b.size is not None and a.size != b.size:
        conflict = Barrier(
            barrier.operator, barrier.node, barrier.axis, f"lengths {a.size} and {b.size} disagree"
        )
        freeze(a, conflict)
        freeze(b, conflict)
        return
    if a.kind != "leaf" and b.kind == "leaf":
        a, b = b, a
    if a.kind == "leaf":
        if b.kind != "leaf" and not a.size and _occurs(a, b):
            freeze(b, barrier)
            return
        if b.size is None:
            b.size = a.size
        a.parent = b
        if a.barrier is not None:
            freeze(b, a.barrier)
        return
    if a.size is None:
        if a.kind == b.kind and len(a.children) == len(b.children):
            for left, right in zip(a.children, b.children, strict=True):
                unify(left, right, barrier)
        else:
            freeze(a, barrier)
            freeze(b, barrier)
        return
    if a.kind == "product" and b.kind == "product":
        match([a], [b], barrier)
    else:
        align([a], [b], barrier)
    a, b = root(a), root(b)
    # Parts are shorter than the whole, so only unknown or zero lengths can contain each other.
    if a is not b and (a.size or not (_occurs(a, b) or _occurs(b, a))):
        a.parent = b


def match(left: Iterable[Axis], right: Iterable[Axis], barrier: Barrier) -> None:
    """Let two lists of axes be the same elements in row-major order, as before and after a Reshape.

    Outer and inner factors are matched, refining axes into products, until nothing more divides; the
    remainder is frozen with ``barrier``, except that one unknown axis becomes what stands opposite.
    """
    a, b = deque(left), deque(right)
    for outer in (True, False):
        while a and b:
            x, y = _head(a, outer, "product"), _head(b, outer, "product")
            if x is None or y is None:
                continue
            if x is y or (x.size is not None and x.size == y.size):
                _drop(a, outer)
                _drop(b, outer)
                unify(x, y, barrier)
            elif x.size is None or y.size is None or 0 in (x.size, y.size):
                break
            elif x.size % y.size == 0:
                if not _divide(x, y.size, outer, barrier):
                    break
            elif y.size % x.size == 0:
                if not _divide(y, x.size, outer, barrier):
                    break
            else:
                break
        while a and _head(a, outer, "product") is None:
            pass
        while b and _head(b, outer, "product") is None:
            pass
    a, b = (deque(axis for axis in rest if root(axis).size != 1) for rest in (a, b))
    for lone, others in ((a, b), (b, a)):
        if len(lone) == 1 and others and root(lone[0]).kind == "leaf" and root(lone[0]).size is None:
            unify(lone[0], product(list(others)), barrier)
            return
    for axis in (*a, *b):
        freeze(axis, barrier)


def align(left: Iterable[Axis], right: Iterable[Axis], barrier: Barrier) -> None:
    """Let two lists of axes be the same channels one after the other, as before and after a Split.

    Axes are cut at each other's boundaries; from the first boundary that cannot be cut on, everything is
    frozen with ``barrier``.
    """
    a, b = deque(left), deque(right)
    while a and b:
        x, y = _head(a, True, "concat"), _head(b, True, "concat")
        if x is None or y is None:
            continue
        if x is y or (x.size is not None and x.size == y.size):
            a.popleft()
            b.popleft()
            unify(x, y, barrier)
        elif (
            x.size is None
            or y.size is None
            or not (_cut(x, y.size, barrier) if x.size > y.size else _cut(y, x.size, barrier))
        ):
            break
    for axis in (*a, *b):
        freeze(axis, barrier)


def _times(axes: Iterable[Axis]) -> int | None:
    sizes = [axis.size for axis in axes]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def _occurs(axis: Axis, inside: Axis) -> bool:
    return any(leaf is axis for leaf in _nodes(inside))


def _nodes(axis: Axis) -> Iterable[Axis]:
    stack, seen = [axis], set()
    while stack:
        top = root(stack.pop())
        if id(top) not in seen:
            seen.add(id(top))
            yield top
            stack.extend(top.children)


def _head(queue: deque[Axis], first: bool, kind: str) -> Axis | None:
    """The outermost (or innermost) axis of the queue; None after opening one up, look again then."""
    axis = root(queue[0] if first else queue[-1])
    neutral = 1 if kind == "product" else 0
    if axis.size != neutral and axis.kind != kind:
        return axis
    _drop(queue, first)
    if axis.size != neutral:
        if first:
            queue.extendleft(reversed(axis.children))
        else:
            queue.extend(axis.children)
    return None


def _drop(queue: deque[Axis], first: bool) -> None:
    if first:
        queue.popleft()
    else:
        queue.pop()


def _divide(axis: Axis, size: int, outer: bool, barrier: Barrier) -> bool:
    """Refine ``axis`` into a product whose outermost (or innermost) factor has length ``size``."""
    assert axis.size is not None
    rest = axis.size // size
    if axis.kind == "leaf":
        factors = (size, rest) if outer else (rest, size)
        axis.children = tuple(Axis(factor, axis.barrier) for factor in factors)
        axis.kind = "product"
        return True
    # A concatenation: its parts share an inner factor, or repeat the same parts several times.
    inner = rest if outer else size
    parts = _flat(axis)
    if any(part.size is None for part in parts):
        return False
    if all(part.size is not None and part.size % inner == 0 for part in parts):
        shared = Axis(inner)
        outers = []
        for part in parts:
            assert part.size is not None
            outers.append(Axis(part.size // inner))
            unify(part, product([outers[-1], shared]), barrier)
        return _become_product(axis, [concat(outers), shared])
    repeats = size if outer else rest
    length = axis.size // repeats
    chunks: list[list[Axis]] = [[]]
    filled = 0
    for part in parts:
        if filled == length:
            chunks.append([])
            filled = 0
        chunks[-1].append(part)
        filled += part.size or 0
        if filled > length:
            return False
    for chunk in chunks[1:]:
        align(chunks[0], chunk, barrier)
    frozen = Axis(repeats, Barrier(barrier.operator, barrier.node, barrier.axis, "the parts are addressed"))
    return _become_product(axis, [frozen, concat(chunks[0])])


def _become_product(axis: Axis, factors: list[Axis]) -> bool:
    axis = root(axis)
    if any(_occurs(axis, factor) for factor in factors):
        return False
    axis.kind, axis.children = "product", tuple(factors)
    return True


def _flat(axis: Axis) -> list[Axis]:
    """The parts of a concatenation, nested ones opened up."""
    parts, stack = [], [axis]
    while stack:
        top = root(stack.pop())
        if top.kind == "concat":
            stack.extend(reversed(top.children))
        else:
            parts.append(top)
    return parts


_MOST_COPIES = 16  # an outer factor longer than this is not opened up into a concatenation


def _cut(axis: Axis, size: int, barrier: Barrier) -> bool:
    """Refine ``axis`` (leaf or product) into a concatenation with a boundary at ``size``."""
    assert axis.size is not None
    if axis.kind == "leaf":
        axis.children = (Axis(size, axis.barrier), Axis(axis.size - size, axis.barrier))
        axis.kind = "concat"
        return True
    outer, rest = root(axis.children[0]), list(axis.children[1:])
    inner = _times(map(root, rest))
    if inner is None or outer.size is None:
        return False
    if size % inner == 0:
        first, second = Axis(size // inner), Axis(outer.size - size // inner)
        align([outer], [first, second], barrier)
        parts: list[Axis] = [product([first, *rest]), product([second, *rest])]
    elif outer.size <= _MOST_COPIES:
        freeze(outer, barrier)
        parts = [product(rest)] * outer.size
    else:
        return False
    axis = root(axis)
    if axis.kind != "product" or any(_occurs(axis, part) for part in parts):
        return False
    axis.kind, axis.children = "concat", tuple(parts)
    return True
