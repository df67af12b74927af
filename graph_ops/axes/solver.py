"""Solving for the dimensions of a graph: axes are unified and refined until every rule holds.

Two axes that must hold the same channels are *unified*; a leaf that meets a product (a reshape) or a
concatenation is *refined* into one. What cannot be aligned is frozen with the `Barrier` that says why:
freezing is always safe, it only declines. No axis ever comes to contain itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from growpipe.graph_ops.axes.axis import Axis, Barrier, concat, freeze, occurs, product, root, step, times

__all__ = ["align", "match", "unify"]


def unify(a: Axis, b: Axis, barrier: Barrier) -> None:
    """Let ``a`` and ``b`` hold the same channels; both are frozen with ``barrier`` if they cannot.

    Example:
        A leaf of length 12 and the product of leaves of lengths 3 and 4: the leaf becomes that product. The
        concatenation of 4 and 8 and that of 6 and 6: both become the concatenation of 4, 2 and 6.

    Raises:
        TooMuchWork: there were too many steps in this graph; see `growpipe.graph_ops.axes.axis.limited_work`.
    """
    step()
    a, b = root(a), root(b)
    if a is b or (a.size == 1 and b.size == 1):
        return
    if a.kind != "leaf" and b.kind == "leaf":
        a, b = b, a
    if a.size is not None and b.size is not None and a.size != b.size:
        reason = f"lengths {a.size} and {b.size} disagree"
        _freeze_both(a, b, Barrier(barrier.operator, barrier.node, barrier.axis, reason))
    elif a.kind == "leaf" and (a.size is None or b.size is not None or b.kind == "leaf"):
        _join_leaf(a, b, barrier)
    elif occurs(a, b) or occurs(b, a):
        _freeze_both(a, b, barrier)
    else:
        _join_parts(a, b, barrier)


def _join_parts(a: Axis, b: Axis, barrier: Barrier) -> None:
    """Let two axes, of which one has parts at least, be the same channels.

    An axis of known length is not joined to one of unknown length, whose parts may not make it up.
    """
    if "concat" in (a.kind, b.kind):
        align([a], [b], barrier)
    else:
        match([a], [b], barrier)
    a, b = root(a), root(b)
    if a.size == b.size and a is not b and not occurs(a, b) and not occurs(b, a):
        a.parent = b


def _freeze_both(a: Axis, b: Axis, barrier: Barrier) -> None:
    freeze(a, barrier)
    freeze(b, barrier)


def _join_leaf(leaf: Axis, other: Axis, barrier: Barrier) -> None:
    """Let a leaf be the other axis, unless the other is made of it."""
    if occurs(leaf, other):
        freeze(other, barrier)
        return
    if other.size is None:
        other.size = leaf.size
    leaf.parent = other
    if leaf.barrier is not None:
        freeze(other, leaf.barrier)


def match(left: Iterable[Axis], right: Iterable[Axis], barrier: Barrier) -> None:
    """Let two lists of axes be the same elements in row-major order, as before and after a Reshape.

    Outer and inner factors are matched, refining axes into products, until nothing more divides; the
    remainder is frozen with ``barrier``, except that one unknown axis becomes what stands opposite.

    Example:
        [12, 5] and [3, 20]: from the outside 3 divides 12, which becomes the product of 3 and 4; from the
        inside 5 divides 20, which becomes the product of 4 and 5; both 4 are then the same leaf.
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

    Example:
        [12] and [4, 8]: the leaf of length 12 becomes the concatenation of those of lengths 4 and 8.
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


def _head(queue: deque[Axis], first: bool, kind: str) -> Axis | None:
    """The outermost (or innermost) axis of the queue; None after opening one up, look again then."""
    step()
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
    sized = [(part, part.size) for part in _flat(axis) if part.size is not None]
    if sum(length for _, length in sized) != axis.size:
        return False
    inner, repeats = (rest, size) if outer else (size, rest)
    if all(length % inner == 0 for _, length in sized):
        return _divide_parts(axis, sized, inner, barrier)
    return _divide_repetition(axis, sized, repeats, barrier)


def _divide_parts(axis: Axis, parts: list[tuple[Axis, int]], inner: int, barrier: Barrier) -> bool:
    """Refine a concatenation whose parts share an inner factor: 4·3 + 8·3 is (4 + 8)·3."""
    shared = Axis(inner)
    outers = []
    for part, length in parts:
        outers.append(Axis(length // inner))
        unify(part, product([outers[-1], shared]), barrier)
    return _become_product(axis, [concat(outers), shared])


def _divide_repetition(axis: Axis, parts: list[tuple[Axis, int]], repeats: int, barrier: Barrier) -> bool:
    """Refine a concatenation that repeats the same parts several times: 4 + 8 + 4 + 8 is 2·(4 + 8)."""
    assert axis.size is not None
    length = axis.size // repeats
    chunks: list[list[Axis]] = [[]]
    filled = 0
    for part, size in parts:
        if filled == length:
            chunks.append([])
            filled = 0
        chunks[-1].append(part)
        filled += size
        if filled > length:
            return False
    for chunk in chunks[1:]:
        align(chunks[0], chunk, barrier)
    reason = "this reshape splits a concatenation into equal parts; the number of parts cannot change"
    frozen = Axis(repeats, Barrier(barrier.operator, barrier.node, barrier.axis, reason))
    return _become_product(axis, [frozen, concat(chunks[0])])


def _become_product(axis: Axis, factors: list[Axis]) -> bool:
    axis = root(axis)
    if any(occurs(axis, factor) for factor in factors):
        return False
    axis.kind, axis.children = "product", tuple(factors)
    return True


def _flat(axis: Axis) -> list[Axis]:
    """The parts of a concatenation, nested ones opened up."""
    parts, stack = [], [axis]
    while stack:
        step()
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
    inner = times(map(root, rest))
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
    if axis.kind != "product" or any(occurs(axis, part) for part in parts):
        return False
    axis.kind, axis.children = "concat", tuple(parts)
    return True
