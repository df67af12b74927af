"""What bounds a round of growth, and what one more channel costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from growpipe.graph_ops.cost import CostModel
from growpipe.graph_ops.errors import UsageError

__all__ = ["Budget", "Limits", "affordable", "balanced_widths", "prices_of"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What the grown network may cost in all, per sample; None leaves a quantity free.

    Attributes:
        parameters: the number of trainable entries.
        macs: multiply-accumulates of one forward pass.
    """

    parameters: int | None = None
    macs: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("parameters", self.parameters), ("macs", self.macs)):
            if value is not None and value <= 0:
                raise UsageError(f"a budget of {value} {name} leaves no network; give a positive number")


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
    """

    growth: float | None = 0.3
    budget: Budget | None = None
    align: int = 1
    max_factor: float = 2.0
    widths: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)
    cost_exponent: float = 0.5
    balance: float = 0.0

    def __post_init__(self) -> None:
        unlimited = self.budget is None or (self.budget.parameters is None and self.budget.macs is None)
        if self.growth is None and unlimited:
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

    def decides(self, groups: Iterable[str]) -> bool:
        """Whether every one of these groups has one width that it may end at."""
        bounds = (self.widths.get(group, (None, None)) for group in groups)
        return all(least is not None and least == most for least, most in bounds)


def affordable(cost: CostModel, grown: Mapping[str, int], budget: Budget | None) -> bool:
    """Whether the network with these widths is within the budget."""
    if budget is None:
        return True
    if budget.parameters is not None and cost.parameters(grown) > budget.parameters:
        return False
    return budget.macs is None or cost.macs(grown) <= budget.macs


def balanced_widths(
    cost: CostModel, widths: Mapping[str, int], room: int | None, limits: Limits
) -> dict[str, int]:
    """The widths that groups reach before they compete; see `Limits`."""
    if not limits.balance:
        return dict(widths)

    def scaled(factor: float) -> dict[str, int]:
        return {group: round(factor * width) for group, width in widths.items()}

    def fits(factor: float) -> bool:
        wider = {group: width for group, width in scaled(factor).items() if width > widths[group]}
        added = sum(width - widths[group] for group, width in wider.items())
        return (room is None or added <= room) and affordable(cost, wider, limits.budget)

    low, high = 1.0, limits.max_factor
    if fits(high):
        low = high
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return scaled(low**limits.balance)


def prices_of(
    cost: CostModel, widths: Mapping[str, int], start: Mapping[str, int], limits: Limits
) -> dict[str, float]:
    """What one more channel of every group costs at the current widths, to the power ``cost_exponent``."""
    by_parameters = (
        limits.budget is not None and limits.budget.macs is None and limits.budget.parameters is not None
    )
    measure = cost.parameters if by_parameters else cost.macs
    grown = {g: w for g, w in widths.items() if w != start[g]}
    base = measure(grown)
    return {
        group: float(max(1, measure({**grown, group: width + 1}) - base)) ** limits.cost_exponent
        for group, width in widths.items()
    }
