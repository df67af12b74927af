"""Which channels split, and into how many copies: the best gain per added cost within the limits.

What one more channel costs depends on the widths of the neighbouring groups, which grow too, so marginal
costs are taken again as the widths change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from growpipe.analyser.candidates import Candidates
from growpipe.analyser.choice.copy_queue import CopyQueue, CopyStep, channels_added
from growpipe.analyser.choice.growth_limits import Bundle, GrowthLimits, balanced_widths
from growpipe.budgets.budget import Expenses
from growpipe.graph_ops.cost.cost import CostModel
from growpipe.graph_ops.errors import NothingToSplit, UsageError
from growpipe.graph_ops.plan.joined_groups import JoinedGroups

__all__ = ["Selection", "select"]

_SHARE_REACHED = "the growth share is reached"


@dataclass(frozen=True, eq=False)
class Selection:
    """The chosen row of every channel.

    Attributes:
        rows: by group int64 [width], the row in `ROWS`, −1 where the channel stays.
        widths: by group the grown width; groups that do not grow are absent.
        notes: why the selection ended, and which least widths took splits that promise nothing.
    """

    rows: Mapping[str, npt.NDArray[np.int64]]
    widths: Mapping[str, int]
    notes: str


_Offer = Mapping[str, Sequence[CopyStep]]
"""By group of one bundle the steps that it takes next."""


def select(
    candidates: Sequence[Candidates],
    cost: CostModel,
    limits: GrowthLimits,
    total_channels: int | None = None,
    own: Mapping[str, int] | None = None,
) -> Selection:
    """The best splits by gain per cost, group by group and channel by channel, greedily.

    A step that adds k channels to a group has the rate ``gain / (k · priceᵉ)``: gain is the decrease of
    ``Σ w δᵀSδ`` it brings, price what one more channel costs at the current widths of all groups, e the cost
    exponent. The step of the highest rate is taken until a limit is reached. Prices are taken again as widths
    change, since a wider group makes its consumers dearer.

    A group with a measured ``worth`` competes by that instead, so that all such groups speak of one loss: a
    step from width W to W + k has the gain ``worth · log2(1 + k / W)``, which adds up to ``worth`` when the
    group has doubled. Which of its channels split is still decided by ``Σ w δᵀSδ``.

    Joined groups (`JoinedGroups`) take their steps together. They compete by the sum of what they are worth
    over the sum of what they cost. One of them may take splits that promise nothing, if together they promise
    something.

    Groups below their least width go first, then groups below their balanced width, then all others (see
    `GrowthLimits`). If a group below its least width has no split left that lowers the loss, it takes those
    that raise the loss least, to second order: along v− with the least λ− ≥ 0, and so on through the rows of
    the scheme. Copies without displacement would not raise the loss at all, but equal copies get equal
    gradients and stay one neuron.

    Args:
        candidates: of every group that may split.
        cost: of the whole network.
        limits: what bounds the growth.
        total_channels: the number of channels of which the growth share is taken; those of ``candidates`` by
            default.
        own: the widths of all groups of the network, for a budget's own cost; those of ``candidates`` by
            default.

    Raises:
        NothingToSplit: the network is over the budget already.
        UsageError: a limit names no group, or a least width cannot be reached with the copies of the scheme
            or within the budget.
    """
    start = {c.group: c.width for c in candidates}
    unknown = sorted(limits.limited - set(start))
    if unknown:
        raise UsageError(f"there is no splittable group {unknown[0]!r} to limit; see growpipe inspect")
    expenses = Expenses(cost, {**(own or {}), **start}, limits.budget)
    if not expenses.affordable({}):
        raise NothingToSplit("the budget is spent: the network costs more already; give a larger budget")
    room = _Room(expenses, start, limits, sum(start.values()) if total_channels is None else total_channels)
    largest = max((float(-c.values.min(initial=0.0)) for c in candidates), default=0.0)
    queues = {c.group: CopyQueue(c, floor=1e-9 * largest) for c in candidates}
    open_bundles = set(limits.bundles(start))
    moves: dict[Bundle, _Offer | None] = {}
    reason = "no candidate lowers the loss any further"
    while open_bundles:
        turn, required = room.turn(open_bundles)
        for bundle in turn:
            if bundle not in moves:
                moves[bundle] = _moves(queues, bundle, room.widths, start, limits)
        offers = {bundle: offer for bundle in turn if (offer := moves[bundle]) is not None}
        open_bundles -= set(turn) - offers.keys()
        if not offers:
            continue
        rates = room.rates(queues, offers)
        bundle = max(offers, key=rates.__getitem__)
        refusal = room.refusal(offers[bundle], required)
        if refusal is not None:
            reason = refusal
            open_bundles.discard(bundle)
            continue
        for group, steps in offers[bundle].items():
            queues[group].take(steps)
        room.grow(bundle, offers[bundle])
        del moves[bundle]
        if room.share_reached and not required:
            reason = _SHARE_REACHED
            break
    room.check_least_widths()
    notes = [reason]
    notes += [
        f"{queue.unpromising} channels of {group!r} promise nothing: {_demand(group, limits)} asked for them"
        for group, queue in queues.items()
        if queue.unpromising
    ]
    rows = {group: queue.rows() for group, queue in queues.items()}
    return Selection(rows, room.grown, "; ".join(notes))


class _Room:
    """The widths so far, and what is left of the growth share and of the budget.

    Args:
        expenses: what the network costs at any widths.
        start: by group the width before this round.
        limits: what bounds the growth.
        channels: the number of channels of which ``limits.share`` is a share.
    """

    def __init__(
        self, expenses: Expenses, start: Mapping[str, int], limits: GrowthLimits, channels: int
    ) -> None:
        self.widths = dict(start)
        self.added = 0
        self._expenses, self._start, self._limits = expenses, start, limits
        share = limits.share
        self._share = None if share is None else max(1, round(share * channels))
        self._balanced = balanced_widths(expenses, start, self._share, limits.options)
        self._prices: dict[str, float] = {}
        self._priced_at = 0
        self._rates: dict[Bundle, float] = {}

    @property
    def grown(self) -> dict[str, int]:
        """By group the width so far, of the groups that have grown."""
        return {group: width for group, width in self.widths.items() if width != self._start[group]}

    @property
    def share_reached(self) -> bool:
        return self._share is not None and self.added >= self._share

    def turn(self, bundles: Iterable[Bundle]) -> tuple[list[Bundle], bool]:
        """The bundles that may grow next, and whether their least widths require it.

        Those of groups below their least width come first, then of those below their balanced width, then
        all.
        """
        least, balanced = self._limits.least, self._balanced
        below = [b for b in bundles if any(self.widths[group] < least(group) for group in b)]
        behind = [b for b in bundles if any(self.widths[group] < balanced[group] for group in b)]
        return sorted(below or behind or bundles), bool(below)

    def rates(
        self, queues: Mapping[str, CopyQueue], offers: Mapping[Bundle, _Offer]
    ) -> Mapping[Bundle, float]:
        """What the next steps of each bundle are worth per channel and price.

        Prices change with the widths of all groups. They are computed again after every 32nd part of the
        channels added so far.
        """
        if not self._prices or self.added - self._priced_at >= max(1, self.added // 32):
            self._prices = self._expenses.prices(self.widths, self._limits.options.cost_exponent)
            self._priced_at = self.added
            self._rates.clear()
        for bundle, offer in offers.items():
            if bundle not in self._rates:
                worth = sum(queues[group].worth(self.widths[group], steps) for group, steps in offer.items())
                cost = sum(channels_added(steps) * self._prices[group] for group, steps in offer.items())
                self._rates[bundle] = worth / cost
        return self._rates

    def refusal(self, offer: _Offer, required: bool) -> str | None:
        """Why the groups cannot take these steps; None if they can. A required step may exceed the share."""
        wider = {group: self.widths[group] + channels_added(steps) for group, steps in offer.items()}
        count = sum(map(channels_added, offer.values()))
        # The first step is taken even if it is larger than the share: a round adds something.
        if self._share is not None and not required and self.added > 0 and self.added + count > self._share:
            return _SHARE_REACHED
        if not self._expenses.affordable({**self.grown, **wider}):
            return "the budget is spent"
        return None

    def grow(self, bundle: Bundle, offer: _Offer) -> None:
        del self._rates[bundle]
        for group, steps in offer.items():
            self.widths[group] += channels_added(steps)
            self.added += channels_added(steps)

    def check_least_widths(self) -> None:
        """Raise a UsageError if a group has not reached its least width."""
        for group in self._limits.options.min_widths:
            least, width = self._limits.least(group), self.widths[group]
            if width < least:
                raise UsageError(f"group {group!r} cannot reach its least width {least}: {width} is the most")


def _demand(group: str, limits: GrowthLimits) -> str:
    """What makes a group take splits that promise nothing."""
    return "a group that grows in equal steps" if limits.joined_with(group) else "its least width"


def _moves(
    queues: Mapping[str, CopyQueue],
    bundle: Bundle,
    widths: Mapping[str, int],
    start: Mapping[str, int],
    limits: GrowthLimits,
) -> _Offer | None:
    """The next steps of the groups of a bundle, within their limits; None when there are none."""
    joined = limits.joined_with(bundle[0])
    if joined is not None:
        return _joint_moves(queues, joined, widths, start, limits)
    (group,) = bundle
    steps = _move(queues[group], widths[group], start[group], limits)
    return None if steps is None else {group: steps}


def _joint_moves(
    queues: Mapping[str, CopyQueue],
    joined: JoinedGroups,
    widths: Mapping[str, int],
    start: Mapping[str, int],
    limits: GrowthLimits,
) -> _Offer | None:
    """The next steps of groups that grow in equal steps, to the next aligned widths."""
    now = joined.steps(widths)
    first, target = (joined.aligned(steps + 1, limits.align) for steps in (0, now))
    if first is None or target is None:
        return None
    for group, width in joined.widths(target).items():
        most = limits.most(group)
        if most is not None and width > most:
            return None
        if target > first and width > _ceiling(group, start[group], limits):
            return None
    offer: dict[str, list[CopyStep]] = {}
    for group, count in joined.channels(target - now).items():
        steps = queues[group].peek(count) or queues[group].peek(count, forced=True)
        if steps is None:
            return None
        offer[group] = steps
    required = any(widths[group] < limits.least(group) for group in joined.names)
    gain = sum(step.gain for steps in offer.values() for step in steps)
    return offer if required or gain > queues[joined.names[0]].floor else None


def _ceiling(group: str, start: int, limits: GrowthLimits) -> int:
    """The greatest width that a group may grow to in this round."""
    align, least, most = limits.align, limits.least(group), limits.most(group)
    ceiling = max(start + 1, int(limits.options.max_factor * start))
    if align > 1:
        ceiling = max(ceiling, -(-(start + 1) // align) * align)
    ceiling = max(ceiling, least)
    return ceiling if most is None else min(ceiling, most)


def _move(queue: CopyQueue, width: int, start: int, limits: GrowthLimits) -> list[CopyStep] | None:
    """The group's next steps, to the next aligned width and within its limits; None when there are none."""
    align, group = limits.align, queue.candidates.group
    target = 0 if align == 1 else align - width % align
    ceiling = _ceiling(group, start, limits)
    for forced in (False, True) if width < limits.least(group) else (False,):
        steps = queue.peek(target, forced)
        if steps is not None and width + channels_added(steps) > ceiling:
            # The best step may be too large for what is left, a smaller one not.
            steps = queue.peek(ceiling - width, forced) if align == 1 and ceiling > width else None
        if steps is not None:
            return steps
    return None
