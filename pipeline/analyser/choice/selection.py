"""Which channels split, and into how many copies: the best gain per added cost within the limits.

A channel that goes from one copy to m adds m − 1 channels. What one more channel costs depends on the widths
of the neighbouring groups, which grow too, so marginal costs are taken anew as the widths change.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from growpipe.analyser.choice.schemes import Scheme, exact_rows
from growpipe.budgets.budget import Expenses, Limits, balanced_widths
from growpipe.graph_ops.cost.cost import CostModel
from growpipe.graph_ops.errors import NothingToSplit, UsageError

__all__ = ["Candidates", "Selection", "select"]


@dataclass(frozen=True, eq=False)
class Candidates:
    """The splits on offer in one group.

    Attributes:
        group: the group's name.
        exact_values: float [copies − 1, width], the least Σ w δᵀSδ with exactly 2, 3, … copies, of any sign;
            inf where the scheme has no such split.
        exact_rows: int64 of the same shape, the row of the table that reaches it, −1 for none.
        worth: what doubling the group's width was measured to lower the loss by. Where it is given, groups
            compete by it and ``values`` only orders the channels within the group.
    """

    group: str
    exact_values: npt.NDArray[np.float64]
    exact_rows: npt.NDArray[np.int64]
    worth: float | None = None

    @staticmethod
    def of(group: str, low: npt.NDArray, high: npt.NDArray, scheme: Scheme) -> Candidates:
        """From the extreme eigenvalues λ−, λ+ of the group's channels, float [width] each."""
        best = [exact_rows(low, high, scheme.c, m) for m in range(2, scheme.max_copies + 1)]
        return Candidates(group, np.stack([b[0] for b in best]), np.stack([b[1] for b in best]))

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """float [copies − 1, width], the least Σ w δᵀSδ with at most 2, 3, … copies; never above 0."""
        return np.minimum(np.minimum.accumulate(self.exact_values), 0.0)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """int64 of the same shape, the row of the table that reaches it, −1 where not to split is best."""
        fewer = range(1, len(self.exact_values) + 1)
        choice = np.stack([self.exact_values[:count].argmin(axis=0) for count in fewer])
        return np.where(self.values < 0, np.take_along_axis(self.exact_rows, choice, axis=0), -1)

    @property
    def width(self) -> int:
        return self.exact_values.shape[1]


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


@dataclass
class _Step:
    """A channel taking further copies: from ``before`` added channels to ``after``."""

    channel: int
    before: int
    after: int
    gain: float

    @property
    def added(self) -> int:
        return self.after - self.before

    @property
    def rate(self) -> float:
        return self.gain / self.added


class _Queue:
    """The steps of one group, best gain per added channel first.

    Of a channel's options only those on the concave hull of gain over added channels are steps, so that a
    channel's own steps come in order. A gain counts from ``floor`` on; what a least width may be filled with
    is one more copy of a channel, whatever its gain.
    """

    def __init__(self, candidates: Candidates, floor: float) -> None:
        self.candidates, self.floor = candidates, floor
        self.chosen = np.zeros(candidates.width, dtype=np.int64)
        self.options: list[dict[int, float]] = [
            {0: 0.0, **{added: -float(value) for added, value in enumerate(values, 1) if np.isfinite(value)}}
            for values in candidates.exact_values.T
        ]
        self.steps: list[_Step] = []
        self.fill: list[_Step] = []
        self._extend(range(candidates.width))

    def _extend(self, channels: Iterable[int]) -> None:
        """The steps that these channels may take from where they are."""
        for channel in channels:
            options, here = self.options[channel], int(self.chosen[channel])
            self.steps.extend(_hull_steps(channel, options, here, self.floor))
            self.fill.extend(self._moves(channel, forced=True)[:1])
        self.steps.sort(key=lambda s: (-s.rate, s.channel, s.before))
        self.fill.sort(key=lambda s: (-s.gain, s.channel))

    def _moves(self, channel: int, forced: bool) -> list[_Step]:
        """All ways to give the channel more copies, fewest first; those that gain, unless ``forced``."""
        options, here = self.options[channel], int(self.chosen[channel])
        moves = [_Step(channel, here, k, gain - options[here]) for k, gain in options.items() if k > here]
        return [move for move in moves if forced or move.gain > self.floor]

    def peek(self, room: int, forced: bool = False) -> list[_Step] | None:
        """The best single step with room 0; else the best steps adding exactly ``room`` channels, or None.

        Steps that gain nothing are taken into account only when ``forced``.
        """
        steps = self.fill if forced else self.steps
        if room == 0:
            return steps[:1] or None
        # A knapsack over the channels whose next steps are best; others could not displace them all.
        channels = list(dict.fromkeys(step.channel for step in steps))[: 4 * room]
        best: list[tuple[float, tuple[_Step, ...]] | None] = [(0.0, ()), *[None] * room]
        for channel in channels:
            moves = self._moves(channel, forced)
            for filled in range(room, 0, -1):
                for move in moves:
                    before = best[filled - move.added] if move.added <= filled else None
                    held = best[filled]
                    if before is not None and (held is None or before[0] + move.gain > held[0]):
                        best[filled] = (before[0] + move.gain, (*before[1], move))
        full = best[room]
        return None if full is None else list(full[1])

    def worth(self, width: int, steps: Sequence[_Step]) -> float:
        """What the group's next steps are worth at its width so far.

        A measured worth is spread over the doubling as the logarithm of the width, so that the first channels
        of a narrow group are worth most.
        """
        if self.candidates.worth is None:
            return sum(step.gain for step in steps)
        return self.candidates.worth * math.log2(1 + sum(step.added for step in steps) / width)

    def take(self, steps: Sequence[_Step]) -> None:
        for step in steps:
            self.chosen[step.channel] = step.after
        changed = {step.channel for step in steps}
        self.steps = [step for step in self.steps if step.channel not in changed]
        self.fill = [step for step in self.fill if step.channel not in changed]
        self._extend(sorted(changed))

    def rows(self) -> npt.NDArray[np.int64]:
        """The chosen row of every channel, int64 [width], −1 for none."""
        last = np.maximum(self.chosen - 1, 0)
        return np.where(self.chosen > 0, self.candidates.exact_rows[last, np.arange(len(last))], -1)


def _hull_steps(channel: int, options: Mapping[int, float], start: int, floor: float) -> list[_Step]:
    hull = [(start, options[start])]
    while True:
        here, gained = hull[-1]
        further = [(k, gain) for k, gain in options.items() if k > here and gain > gained + floor]
        if not further:
            break
        hull.append(max(further, key=lambda o: ((o[1] - gained) / (o[0] - here), o[0])))
    return [_Step(channel, a, b, gain_b - gain_a) for (a, gain_a), (b, gain_b) in itertools.pairwise(hull)]


def select(
    candidates: Sequence[Candidates],
    cost: CostModel,
    limits: Limits,
    total_channels: int | None = None,
    own: Mapping[str, int] | None = None,
) -> Selection:
    """The best splits by gain per cost, group by group and channel by channel, greedily.

    A step that adds k channels to a group has the rate ``gain / (k · priceᵉ)``: gain is the decrease of
    ``Σ w δᵀSδ`` it brings, price what one more channel costs at the current widths of all groups, e the cost
    exponent. The step of the highest rate is taken until a limit is reached. Prices are taken anew as widths
    change, since a wider group makes its consumers dearer.

    A group with a measured ``worth`` competes by that instead, so that all such groups speak of one loss: a
    step from width W to W + k has the gain ``worth · log2(1 + k / W)``, which adds up to ``worth`` when the
    group has doubled. Which of its channels split is still decided by ``Σ w δᵀSδ``.

    Groups below their balanced width go before the others (see `Limits`), and those below their least width
    before all. One of the latter that has no split left that lowers the loss goes on with
    those that raise it least, to second order: along v− where λ− ≥ 0 is least, and so on through the rows of
    the scheme. Copies that are not displaced would raise it by nothing, but copies that are equal get equal
    gradients and stay one neuron.

    Args:
        candidates: of every group that may split.
        cost: of the whole network.
        limits: what bounds the growth.
        total_channels: of which ``growth`` is a share; the channels of ``candidates`` by default.
        own: the widths of all groups of the network, for a budget's own cost; those of ``candidates`` by
            default.

    Raises:
        NothingToSplit: the network is over the budget already.
        UsageError: a limit names no group, or a least width cannot be reached with the copies of the scheme
            or within the budget.
    """
    widths = {c.group: c.width for c in candidates}
    start = dict(widths)
    unknown = sorted(set(limits.widths) - set(widths))
    if unknown:
        raise UsageError(f"there is no splittable group {unknown[0]!r} to limit; see growpipe inspect")
    channels = sum(widths.values()) if total_channels is None else total_channels
    room = None if limits.growth is None else max(1, round(limits.growth * channels))
    expenses = Expenses(cost, {**(own or {}), **start}, limits.budget)
    if not expenses.affordable({}):
        raise NothingToSplit("the budget is spent: the network costs more already; give a larger budget")
    largest = max((float(-c.values.min(initial=0.0)) for c in candidates), default=0.0)
    floor = 1e-9 * largest
    queues = {c.group: _Queue(c, floor) for c in candidates}
    unpromising = dict.fromkeys(queues, 0)
    open_groups = set(queues)
    balanced = balanced_widths(expenses, widths, room, limits)
    prices: dict[str, float] = {}
    added = priced_at = 0
    reason = "no candidate lowers the loss any further"
    while open_groups:
        if not prices or added - priced_at >= max(1, added // 32):
            prices, priced_at = expenses.prices(widths, limits.cost_exponent), added
        below = [g for g in open_groups if widths[g] < (limits.widths.get(g, (None, None))[0] or 0)]
        behind = [g for g in open_groups if widths[g] < balanced[g]]
        best: tuple[float, str, list[_Step]] | None = None
        for group in sorted(below or behind or open_groups):
            steps = _move(queues[group], widths[group], start[group], limits, group)
            if steps is None:
                open_groups.discard(group)
                continue
            count = sum(s.added for s in steps)
            score = queues[group].worth(widths[group], steps) / count / prices[group]
            if best is None or score > best[0]:
                best = (score, group, steps)
        if best is None:
            continue
        _, group, steps = best
        count = sum(s.added for s in steps)
        wider = {**widths, group: widths[group] + count}
        grown = {g: w for g, w in wider.items() if w != start[g]}
        if room is not None and added + count > room and added > 0 and not below:
            reason = "the growth share is reached"
            open_groups.discard(group)
            continue
        if not expenses.affordable(grown):
            reason = "the budget is spent"
            open_groups.discard(group)
            continue
        queues[group].take(steps)
        unpromising[group] += sum(step.added for step in steps if step.gain <= floor)
        widths = wider
        added += count
        if room is not None and added >= room and not below:
            reason = "the growth share is reached"
            break
    for group, (least, _) in limits.widths.items():
        if least is not None and widths[group] < least:
            raise UsageError(
                f"group {group!r} cannot reach its least width {least}: {widths[group]} is the most"
            )
    notes = [reason]
    notes += [
        f"{count} channels of {group!r} promise nothing: its least width asked for them"
        for group, count in unpromising.items()
        if count
    ]
    rows = {group: queue.rows() for group, queue in queues.items()}
    return Selection(rows, {g: w for g, w in widths.items() if w != start[g]}, "; ".join(notes))


def _move(queue: _Queue, width: int, start: int, limits: Limits, group: str) -> list[_Step] | None:
    """The group's next steps, to the next aligned width and within its limits; None when there are none."""
    target = 0 if limits.align == 1 else limits.align - width % limits.align
    least, most = limits.widths.get(group, (None, None))
    ceiling = max(start + 1, int(limits.max_factor * start))
    if limits.align > 1:
        ceiling = max(ceiling, -(-(start + 1) // limits.align) * limits.align)
    ceiling = max(ceiling, least or 0)
    if most is not None:
        ceiling = min(ceiling, most)
    for forced in (False, True) if width < (least or 0) else (False,):
        steps = queue.peek(target, forced)
        if steps is not None and width + sum(s.added for s in steps) > ceiling:
            # The best step may be too large for what is left, a smaller one not.
            steps = queue.peek(ceiling - width, forced) if limits.align == 1 and ceiling > width else None
        if steps is not None:
            return steps
    return None
