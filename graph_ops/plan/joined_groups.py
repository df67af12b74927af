"""Channel groups that grow in equal steps, because a torch module has one size for all of them.

A module whose ``head_dim`` divides queries, keys and values alike follows a wider query only if the values
become wider, too, and by as much. Its graph needs no such thing: there each group can grow by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import ChannelGroup, ChannelGroups

__all__ = ["JoinedGroups", "check_joined", "joined_added", "joined_factors"]


@dataclass(frozen=True, slots=True)
class JoinedGroups:
    """Groups that grow in equal steps.

    Attributes:
        names: the groups, in graph order.
        before: by position in ``names`` the width before growth.
        step: by position in ``names`` the number of channels that one step adds.
        by_factor: whether one of the groups splits by whole factors, so that all of them grow by one factor.
            A step then adds as many channels as there were before growth.

    Example:
        >>> JoinedGroups(("pairs", "values"), before=(4, 8), step=(1, 2)).widths(3)
        {'pairs': 7, 'values': 14}
    """

    names: tuple[str, ...]
    before: tuple[int, ...]
    step: tuple[int, ...]
    by_factor: bool = False

    @classmethod
    def of(cls, groups: Iterable[ChannelGroup], steps: Mapping[str, int] | None = None) -> JoinedGroups:
        """The joined groups.

        Args:
            groups: in graph order.
            steps: by group the number of channels that one step adds; None for 1.
        """
        members = list(groups)
        names, before = tuple(g.name for g in members), tuple(g.width for g in members)
        if any(group.whole_factor is not None for group in members):
            return cls(names, before, before, True)
        return cls(names, before, tuple((steps or {}).get(name, 1) for name in names))

    def channels(self, steps: int) -> dict[str, int]:
        """By group the channels that so many steps add."""
        return {name: steps * channels for name, channels in zip(self.names, self.step, strict=True)}

    def widths(self, steps: int) -> dict[str, int]:
        """By group the width after so many steps."""
        added = self.channels(steps)
        return {name: width + added[name] for name, width in zip(self.names, self.before, strict=True)}

    def steps(self, widths: Mapping[str, int]) -> int:
        """The number of steps to these widths; the least one if some groups took more than others."""
        grown = (widths.get(name, width) - width for name, width in zip(self.names, self.before, strict=True))
        return min(added // channels for added, channels in zip(grown, self.step, strict=True))

    def are_equal(self, widths: Mapping[str, int]) -> bool:
        """Whether the groups came to these widths in equal steps; groups that are absent keep theirs."""
        before = self.widths(0)
        return self.widths(self.steps(widths)) == {name: widths.get(name, before[name]) for name in before}

    def aligned(self, steps: int, align: int) -> int | None:
        """The least number of steps from ``steps`` on to multiples of ``align``; None if there is none."""
        return next((n for n in range(steps, steps + align) if self._fits(n, align, {})), None)

    def within(self, steps: int, align: int, most: Mapping[str, int]) -> int:
        """The greatest number of steps up to ``steps`` to multiples of ``align`` that are within bounds.

        Args:
            steps: the most steps.
            align: what the widths are multiples of.
            most: by group the greatest width.

        Returns:
            The number of steps; 0 if there is none.
        """
        return next((n for n in range(steps, 0, -1) if self._fits(n, align, most)), 0)

    def _fits(self, steps: int, align: int, most: Mapping[str, int]) -> bool:
        return all(
            width % align == 0 and width <= most.get(name, width)
            for name, width in self.widths(steps).items()
        )

    def __str__(self) -> str:
        return ", ".join(map(repr, self.names))


def joined_added(
    groups: ChannelGroups, added: Mapping[str, int], joined: Iterable[JoinedGroups]
) -> dict[str, int]:
    """The channels to add, with those of joined groups rounded up to equal steps.

    Args:
        groups: the channel groups.
        added: by group the number of channels to add.
        joined: the groups that grow in equal steps.
    """
    found = dict(added)
    for one in joined:
        wanted = [-(-found[name] // channels) for name, channels in one.channels(1).items() if name in found]
        if wanted and not one.by_factor:
            found |= one.channels(max(wanted))
    return {group.name: found[group.name] for group in groups.groups if group.name in found}


def joined_factors(factors: Mapping[str, int], joined: Iterable[JoinedGroups]) -> dict[str, int]:
    """The factors, with those of the groups that are joined to a group that has one.

    Raises:
        UsageError: joined groups have different factors, or would not grow in equal steps.
    """
    found = dict(factors)
    for one in joined:
        wanted = {found[name] for name in one.names if name in found}
        found |= {name: factor for factor in wanted for name in one.names}
        widths = {name: width * found.get(name, 1) for name, width in one.widths(0).items()}
        if len(wanted) > 1 or not one.are_equal(widths):
            raise UsageError(
                f"the factors {sorted(wanted)} do not suit {one}: the module has one size for these groups, "
                "so they must grow in equal steps"
            )
    return found


def check_joined(widths: Mapping[str, int], joined: Iterable[JoinedGroups]) -> None:
    """Refuse widths to which joined groups do not grow in equal steps.

    Args:
        widths: by group the grown width; groups that are absent keep theirs.
        joined: the groups that grow in equal steps.

    Raises:
        UsageError: joined groups grow in different steps.
    """
    for one in joined:
        if not one.are_equal(widths):
            told = ", ".join(
                f"{name!r} from {width} to {widths.get(name, width)}" for name, width in one.widths(0).items()
            )
            raise UsageError(
                f"the module has one size for groups that would grow in different steps: {told}; give the "
                "joined groups that fit_module finds to random_plan or net2net_plan"
            )
