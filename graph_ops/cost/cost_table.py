"""A cost that somebody else knows: a table of what channel groups of some widths cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from growpipe.graph_ops.errors import UsageError

__all__ = ["CostTable", "CurveTerm", "RateTerm"]


@dataclass(frozen=True, slots=True)
class RateTerm:
    """``rate`` times the product of the widths of ``groups``.

    One group: every channel costs as much. Two: a layer between them, which becomes dearer by either.
    """

    groups: tuple[str, ...]
    rate: float

    def __post_init__(self) -> None:
        if not self.groups:
            raise UsageError("a term of a cost table names no group; give at least one")
        if not (math.isfinite(self.rate) and self.rate >= 0):
            raise UsageError(f"the rate of {' x '.join(self.groups)} must not be negative, not {self.rate}")

    def of(self, widths: Mapping[str, int]) -> float:
        return self.rate * math.prod(widths[group] for group in self.groups)


@dataclass(frozen=True, slots=True)
class CurveTerm:
    """What one group costs at some widths; in between on a straight line, beyond on the last one.

    Args:
        group: its name.
        widths: ascending, at least two.
        costs: one for each.
    """

    group: str
    widths: tuple[int, ...]
    costs: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.costs) or len(self.widths) < 2:
            raise UsageError(
                f"the cost table of {self.group!r} has {len(self.widths)} widths and {len(self.costs)} "
                "costs; give as many, at least two"
            )
        if list(self.widths) != sorted(set(self.widths)):
            raise UsageError(f"the widths in the cost table of {self.group!r} must ascend")
        if not all(math.isfinite(cost) and cost >= 0 for cost in self.costs):
            raise UsageError(f"the costs in the table of {self.group!r} must not be negative")

    @property
    def groups(self) -> tuple[str, ...]:
        return (self.group,)

    def of(self, widths: Mapping[str, int]) -> float:
        width = widths[self.group]
        last = min(max(int(np.searchsorted(self.widths, width)), 1), len(self.widths) - 1)
        (w0, w1), (c0, c1) = self.widths[last - 1 : last + 1], self.costs[last - 1 : last + 1]
        return c0 + (c1 - c0) * (width - w0) / (w1 - w0)


@dataclass(frozen=True)
class CostTable:
    """The cost of a network as a sum over its channel groups; a `growpipe.analyser.GrowthBudget` takes it.

    Attributes:
        terms: what adds up. Costs of neighbouring groups are coupled where a term has both.
        base: what does not depend on any width.
        unit: e.g. ``mJ``.
    """

    terms: Sequence[RateTerm | CurveTerm]
    base: float = 0.0
    unit: str = ""

    resolution = 0.0
    """It is exact."""

    def __post_init__(self) -> None:
        if not self.terms:
            raise UsageError("a cost table has no terms; give at least one")
        if not (math.isfinite(self.base) and self.base >= 0):
            raise UsageError(f"the base of a cost table must not be negative, not {self.base}")

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that the table knows."""
        return tuple(dict.fromkeys(group for term in self.terms for group in term.groups))

    def check_groups(self, names: Iterable[str]) -> None:
        """Refuse a table of another network.

        Raises:
            UsageError: a group of the table is none of these.
        """
        unknown = sorted(set(self.groups) - set(names))
        if unknown:
            raise UsageError(f"the cost table names a channel group {unknown[0]!r}; see growpipe inspect")

    def of(self, widths: Mapping[str, int]) -> float:
        """The cost when the groups have these widths.

        Args:
            widths: of all groups of the network.

        Raises:
            UsageError: a group of the table is missing.
        """
        self.check_groups(widths)
        return self.base + sum(term.of(widths) for term in self.terms)

    def tried(self, widths: Mapping[str, int]) -> float:
        """As `of`: a table has nothing to try."""
        return self.of(widths)
