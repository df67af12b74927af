"""What bounds a round of growth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from growpipe.budgets.budget import Expenses, GrowthBudget
from growpipe.graph_ops.errors import UsageError

__all__ = ["GrowthLimits", "balanced_widths"]


@dataclass(frozen=True, slots=True)
class GrowthLimits:
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
    budget: GrowthBudget | None = None
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


def balanced_widths(
    expenses: Expenses, widths: Mapping[str, int], room: int | None, limits: GrowthLimits
) -> dict[str, int]:
    """The widths that groups reach before they compete; see `GrowthLimits`."""
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
