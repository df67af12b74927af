"""Which channels must all be copied equally often, and which of them together.

A node that takes moments over an axis (a normalisation, a mean) computes what it computed if every entry of
the axis is copied equally often: for k copies of each of n entries the mean of any function of them is

    (1 / kn) Σ_c Σ_i f(x_c)  =  (1 / n) Σ_c f(x_c).

An axis can be made of several groups. A product of them has equally many copies of each entry if each factor
has. A concatenation has if each part has, and all parts have the same number: groups that stand beside each
other grow by one factor, and none of them can if one part cannot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from growpipe.graph_ops.axes.axis import Axis, Barrier, freeze, leaves, root
from growpipe.graph_ops.axes.statements import Even

__all__ = ["EvenCopies", "even_leaves", "solve_even_copies"]


@dataclass(frozen=True, eq=False)
class EvenCopies:
    """What must be copied evenly.

    Attributes:
        because: by leaf why its entries must all be copied equally often; other leaves need not.
        factor: by leaf the leaf that stands for all that grow by the same factor.
    """

    because: Mapping[Axis, Barrier]
    factor: Mapping[Axis, Axis]


def even_leaves(evens: Iterable[Even]) -> dict[Axis, Barrier]:
    """By leaf the first reason why its entries must all be copied equally often."""
    because: dict[Axis, Barrier] = {}
    for even in evens:
        for leaf in leaves(even.axis):
            if leaf.size != 1:
                because.setdefault(leaf, even.because)
    return because


def solve_even_copies(evens: Iterable[Even], able: Iterable[Axis]) -> EvenCopies:
    """Tie the leaves that grow by one factor; freeze those that stand beside entries that cannot grow.

    Args:
        evens: what the nodes state.
        able: the leaves that could grow if nobody took moments over them.
    """
    evens, able = list(evens), set(able)
    while True:
        ties = _Ties({leaf for leaf in able if leaf.barrier is None})
        for even in evens:
            ties.visit(even.axis, even.because)
        if not ties.froze:
            because = {leaf: why for leaf, why in even_leaves(evens).items() if leaf in ties.able}
            return EvenCopies(because, {leaf: ties.factor(leaf) for leaf in because})


class _Ties:
    """One pass over all axes that are copied evenly.

    Attributes:
        able: the leaves that can grow.
        froze: whether the pass froze any of them; the ties it found may then be too many.
    """

    def __init__(self, able: set[Axis]) -> None:
        self.able = able
        self.froze = False
        self._parent: dict[Axis, Axis] = {}

    def factor(self, leaf: Axis) -> Axis:
        """The leaf that stands for all that grow by the factor of ``leaf``."""
        while leaf in self._parent:
            leaf = self._parent[leaf]
        return leaf

    def visit(self, axis: Axis, because: Barrier) -> list[Axis]:
        """Tie what is beside each other on the axis; the leaves whose factors multiply its length."""
        axis = root(axis)
        if axis.kind == "leaf" or axis.barrier is not None:
            return [axis] if axis in self.able else []
        parts = [self.visit(child, because) for child in axis.children if root(child).size != 0]
        if axis.kind == "product":
            return [leaf for part in parts for leaf in part]
        first = parts[0] if parts else []
        for part in parts[1:]:
            if len(part) == len(first) <= 1:
                self._tie(first, part)
            elif self._factors(part) != self._factors(first):
                self._freeze(axis, because)
                return []
        return first

    def _tie(self, first: list[Axis], second: list[Axis]) -> None:
        for a, b in zip(map(self.factor, first), map(self.factor, second), strict=True):
            if a is not b:
                self._parent[b] = a

    def _factors(self, part: list[Axis]) -> list[int]:
        return sorted(id(self.factor(leaf)) for leaf in part)

    def _freeze(self, axis: Axis, because: Barrier) -> None:
        reason = f"{because.reason}, and only some of its parts could be copied"
        barrier = Barrier(because.operator, because.node, because.axis, reason)
        for leaf in leaves(axis):
            if leaf in self.able and leaf.barrier is None:
                freeze(leaf, barrier)
                self.froze = True
