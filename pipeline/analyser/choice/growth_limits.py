"""What bounds a round of growth."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from growpipe.analyser.options import SHARE, GrowthOptions
from growpipe.budgets.budget import Expenses, GrowthBudget
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.plan.joined_groups import JoinedGroups

__all__ = ["Bundle", "GrowthLimits", "balanced_widths"]

Bundle = tuple[str, ...]
"""The names of groups that grow in equal steps; of one group if it grows by itself."""


@dataclass(frozen=True)
class GrowthLimits:
    """The bounds among the growth options, and the budget.

    Attributes:
        options: the growth options.
        budget: what the grown network may cost; None for no such bound.
        joined: the groups that the module follows only if they grow in equal steps.

    Raises:
        UsageError: a group's least width is above its greatest.
    """

    options: GrowthOptions
    budget: GrowthBudget | None
    joined: tuple[JoinedGroups, ...] = ()

    def __post_init__(self) -> None:
        for group, least in self.options.min_widths.items():
            most = self.most(group)
            if most is not None and least > most:
                raise UsageError(f"the least width of {group!r} is {least} and its greatest {most}")

    @property
    def share(self) -> float | None:
        """The share of channels to add; None if only the budget bounds growth."""
        unbounded = self.budget is None or self.budget.unlimited
        return SHARE if self.options.share is None and unbounded else self.options.share

    @property
    def align(self) -> int:
        """The multiple of channels at which a group that grows ends."""
        if self.options.align is not None:
            return self.options.align
        cost = None if self.budget is None else self.budget.cost
        return int(getattr(cost, "alignment", 1))

    @property
    def limited(self) -> set[str]:
        """The groups whose width is bounded."""
        return {*self.options.min_widths, *self.options.max_widths}

    def least(self, group: str) -> int:
        """The least width that the group must reach; 0 if there is none."""
        return self.options.min_widths.get(group, 0)

    def most(self, group: str) -> int | None:
        """The greatest width that the group may have; None if there is none."""
        return self.options.max_widths.get(group)

    def joined_with(self, group: str) -> JoinedGroups | None:
        """The groups that grow in equal steps with this one; None if it grows by itself."""
        return next((joined for joined in self.joined if group in joined.names), None)

    def bundles(self, groups: Collection[str]) -> list[Bundle]:
        """These groups, joined ones together; groups that are joined with others than these are left out."""
        own = [(group,) for group in groups if self.joined_with(group) is None]
        return own + [one.names for one in self.joined if all(name in groups for name in one.names)]

    def next_steps(self, groups: Collection[str]) -> list[dict[str, int]]:
        """By bundle of these groups the least number of channels that each of its groups can take."""
        joined = [self.joined_with(bundle[0]) for bundle in self.bundles(groups)]
        return [
            {bundle[0]: 1} if one is None else one.channels(1)
            for bundle, one in zip(self.bundles(groups), joined, strict=True)
        ]

    def decides(self, groups: Iterable[str]) -> bool:
        """Whether every one of these groups has one width that it may end at."""
        return all(self.least(group) == self.most(group) for group in groups)


def balanced_widths(
    expenses: Expenses, widths: Mapping[str, int], room: int | None, options: GrowthOptions
) -> dict[str, int]:
    """The widths that groups reach before they compete; see ``balance`` of `GrowthOptions`.

    Args:
        expenses: what the network costs at any widths.
        widths: by group the width now.
        room: how many channels may be added; None for any number.
        options: the growth options.
    """
    if not options.balance:
        return dict(widths)

    def scaled(factor: float) -> dict[str, int]:
        return {group: round(factor * width) for group, width in widths.items()}

    def fits(factor: float) -> bool:
        wider = {group: width for group, width in scaled(factor).items() if width > widths[group]}
        added = sum(width - widths[group] for group, width in wider.items())
        return (room is None or added <= room) and expenses.affordable(wider)

    low, high = 1.0, options.max_factor
    if fits(high):
        low = high
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return scaled(low**options.balance)
