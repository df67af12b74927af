"""What bounds a round of growth, and what one more channel costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from growpipe.graph_ops.cost.cost import CostModel
from growpipe.graph_ops.errors import UsageError

__all__ = ["Budget", "Expenses", "Limits", "NetworkCost", "balanced_widths"]


class NetworkCost(Protocol):
    """What a network costs besides parameters and MACs, in a unit of its own: a table, or a measurement."""

    @property
    def unit(self) -> str:
        """E.g. ``ms``."""

    @property
    def resolution(self) -> float:
        """The share of a cost below which differences mean nothing; 0 where ``of`` is exact."""

    def of(self, widths: Mapping[str, int]) -> float:
        """The cost by the widths of all channel groups; an estimate where there is a resolution."""

    def tried(self, widths: Mapping[str, int]) -> float:
        """The cost of the network of these widths itself."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What the grown network may cost in all, per sample; None leaves a quantity free.

    Attributes:
        parameters: the number of trainable entries.
        macs: multiply-accumulates of one forward pass.
        cost: any other cost, e.g. a `CostTable` or a `MeasuredLatency`.
        limit: the most of ``cost``, in its unit.
    """

    parameters: int | None = None
    macs: int | None = None
    cost: NetworkCost | None = None
    limit: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("parameters", self.parameters), ("macs", self.macs), ("(limit)", self.limit)):
            if value is not None and not value > 0:
                raise UsageError(f"a budget of {value} {name} leaves no network; give a positive number")
        if (self.cost is None) != (self.limit is None):
            raise UsageError("a budget's cost and its limit go together; give both or neither")

    @property
    def unlimited(self) -> bool:
        return self.parameters is None and self.macs is None and self.cost is None


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a round of growth.

    Attributes:
        growth: the share of channels to add; None for no such bound.
        budget: what the grown network may cost.
        align: every group that grows ends at a multiple of this width.
        max_factor: no group grows beyond this multiple of its width in one round.
        widths: by group name the least and the greatest width, either None. A least width is reached even
            where splits promise nothing.
        cost_exponent: candidates compete by gain / costᵉ. 1 spends a budget best as far as the quadratic
            prediction goes; ½ found the better widths in practice, as predictions of cheap layers are
            optimistic.
        balance: before they compete, groups grow by fᵉ, e the balance and f the one factor for all that would
            use all the room; 0 is not at all.
    """

    growth: float | None = 0.3
    budget: Budget | None = None
    align: int = 1
    max_factor: float = 2.0
    widths: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)
    cost_exponent: float = 0.5
    balance: float = 0.0

    def __post_init__(self) -> None:
        if self.growth is None and (self.budget is None or self.budget.unlimited):
            raise UsageError("give a growth share or a budget")
        if self.growth is not None and not self.growth > 0:
            raise UsageError(
                f"growth is the share of channels to add and must be positive, not {self.growth}"
            )
        if self.align < 1:
            raise UsageError(f"align is a multiple of channels, at least 1, not {self.align}")
        if self.max_factor <= 1:
            raise UsageError(f"max_factor must be above 1, not {self.max_factor}")
        if self.cost_exponent < 0:
            raise UsageError(f"cost_exponent must not be negative, not {self.cost_exponent}")
        if not 0 <= self.balance <= 1:
            raise UsageError(f"balance is between 0 and 1, not {self.balance}")

    def least(self, group: str) -> int:
        """The least width that the group must reach; 0 if there is none."""
        return self.widths.get(group, (None, None))[0] or 0

    def most(self, group: str) -> int | None:
        """The greatest width that the group may have; None if there is none."""
        return self.widths.get(group, (None, None))[1]

    def decides(self, groups: Iterable[str]) -> bool:
        """Whether every one of these groups has one width that it may end at."""
        bounds = (self.widths.get(group, (None, None)) for group in groups)
        return all(least is not None and least == most for least, most in bounds)


@dataclass(frozen=True, eq=False)
class Expenses:
    """What one network costs at any widths, against what it may cost.

    Attributes:
        model: parameters and MACs.
        own: the widths of all its groups.
        budget: None where it may cost anything.
    """

    model: CostModel
    own: Mapping[str, int]
    budget: Budget | None

    def affordable(self, grown: Mapping[str, int]) -> bool:
        """Whether the network is within the budget when the groups in ``grown`` have those widths."""
        budget = self.budget
        if budget is None:
            return True
        if budget.parameters is not None and self.model.parameters(grown) > budget.parameters:
            return False
        if budget.macs is not None and self.model.macs(grown) > budget.macs:
            return False
        if budget.cost is None or budget.limit is None:
            return True
        return budget.cost.of({**self.own, **grown}) <= budget.limit

    def spent(self, grown: Mapping[str, int], groups: Iterable[str]) -> bool:
        """Whether none of these groups can have one channel more."""
        widths = {**self.own, **grown}
        return not any(self.affordable({**grown, group: widths[group] + 1}) for group in groups)

    def measure(self, grown: Mapping[str, int]) -> float:
        """The cost that candidates compete by.

        The budget's own cost if it has one, else MACs, but parameters where they alone are bounded.
        """
        budget = self.budget
        if budget is not None and budget.cost is not None:
            return budget.cost.of({**self.own, **grown})
        if budget is not None and budget.macs is None and budget.parameters is not None:
            return self.model.parameters(grown)
        return self.model.macs(grown)

    def prices(self, widths: Mapping[str, int], exponent: float) -> dict[str, float]:
        """What one more channel of each group costs when they have these widths, to a power."""
        base = self.measure(widths)
        # What is free in this measure is still no better than very cheap; where all is free, all is alike.
        least = base / 1e9 or 1.0
        return {
            group: max(least, self.measure({**widths, group: width + 1}) - base) ** exponent
            for group, width in widths.items()
        }


def balanced_widths(
    expenses: Expenses, widths: Mapping[str, int], room: int | None, limits: Limits
) -> dict[str, int]:
    """The widths that groups reach before they compete; see `Limits`."""
    if not limits.balance:
        return dict(widths)

    def scaled(factor: float) -> dict[str, int]:
        return {group: round(factor * width) for group, width in widths.items()}

    def fits(factor: float) -> bool:
        wider = {group: width for group, width in scaled(factor).items() if width > widths[group]}
        added = sum(width - widths[group] for group, width in wider.items())
        return (room is None or added <= room) and expenses.affordable(wider)

    low, high = 1.0, limits.max_factor
    if fits(high):
        low = high
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return scaled(low**limits.balance)
