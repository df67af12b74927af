"""The steps that the channels of one group may take, best first.

A channel that goes from one copy to m adds m − 1 channels.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from growpipe.analyser.candidates import Candidates

__all__ = ["CopyQueue", "CopyStep", "channels_added"]


@dataclass
class CopyStep:
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


def _by_rate(step: CopyStep) -> tuple[float, int, int]:
    return -step.rate, step.channel, step.before


def _by_gain(step: CopyStep) -> tuple[float, int]:
    return -step.gain, step.channel


def channels_added(steps: Iterable[CopyStep]) -> int:
    """The number of channels that the steps add."""
    return sum(step.added for step in steps)


class CopyQueue:
    """The steps of one group, best gain per added channel first.

    Of a channel's options only those on the concave hull of gain over added channels are steps, so that a
    channel's own steps come in order. A gain counts from ``floor`` on; what a least width may be filled with
    is one more copy of a channel, whatever its gain.
    """

    def __init__(self, candidates: Candidates, floor: float) -> None:
        self.candidates, self.floor = candidates, floor
        self.unpromising = 0  # channels taken although they gain nothing
        self.chosen = np.zeros(candidates.width, dtype=np.int64)
        self.options: list[dict[int, float]] = [
            {0: 0.0, **{added: -float(value) for added, value in enumerate(values, 1) if np.isfinite(value)}}
            for values in candidates.exact_values.T
        ]
        self.steps: list[CopyStep] = []
        self.fill: list[CopyStep] = []
        for channel in range(candidates.width):
            self._extend(channel)

    def _extend(self, channel: int) -> None:
        """Take in the steps that this channel may take from where it is."""
        options, here = self.options[channel], int(self.chosen[channel])
        for step in _hull_steps(channel, options, here, self.floor):
            bisect.insort(self.steps, step, key=_by_rate)
        for step in self._moves(channel, forced=True)[:1]:
            bisect.insort(self.fill, step, key=_by_gain)

    def _drop(self, channel: int) -> None:
        """Take the steps of this channel out again."""
        options, here = self.options[channel], int(self.chosen[channel])
        for step in _hull_steps(channel, options, here, self.floor):
            del self.steps[bisect.bisect_left(self.steps, _by_rate(step), key=_by_rate)]
        for step in self._moves(channel, forced=True)[:1]:
            del self.fill[bisect.bisect_left(self.fill, _by_gain(step), key=_by_gain)]

    def _moves(self, channel: int, forced: bool) -> list[CopyStep]:
        """All ways to give the channel more copies, fewest first; those that gain, unless ``forced``."""
        options, here = self.options[channel], int(self.chosen[channel])
        moves = [CopyStep(channel, here, k, gain - options[here]) for k, gain in options.items() if k > here]
        return [move for move in moves if forced or move.gain > self.floor]

    def peek(self, room: int, forced: bool = False) -> list[CopyStep] | None:
        """The best single step with room 0; else the best steps adding exactly ``room`` channels, or None.

        Steps that gain nothing are taken into account only when ``forced``.
        """
        steps = self.fill if forced else self.steps
        if room == 0:
            return steps[:1] or None
        # A knapsack over the channels whose next steps are best; others could not displace them all.
        channels = list(dict.fromkeys(step.channel for step in steps))[: 4 * room]
        best: list[tuple[float, tuple[CopyStep, ...]] | None] = [(0.0, ()), *[None] * room]
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

    def worth(self, width: int, steps: Sequence[CopyStep]) -> float:
        """What the group's next steps are worth at its width so far.

        A measured worth is spread over the doubling as the logarithm of the width, so that the first channels
        of a narrow group are worth most.
        """
        if self.candidates.worth is None:
            return sum(step.gain for step in steps)
        return self.candidates.worth * math.log2(1 + channels_added(steps) / width)

    def take(self, steps: Sequence[CopyStep]) -> None:
        self.unpromising += channels_added([step for step in steps if step.gain <= self.floor])
        channels = dict.fromkeys(step.channel for step in steps)
        for channel in channels:
            self._drop(channel)
        for step in steps:
            self.chosen[step.channel] = step.after
        for channel in channels:
            self._extend(channel)

    def rows(self) -> npt.NDArray[np.int64]:
        """The chosen row of every channel, int64 [width], −1 for none."""
        last = np.maximum(self.chosen - 1, 0)
        return np.where(self.chosen > 0, self.candidates.exact_rows[last, np.arange(len(last))], -1)


def _hull_steps(channel: int, options: Mapping[int, float], start: int, floor: float) -> list[CopyStep]:
    hull = [(start, options[start])]
    while True:
        here, gained = hull[-1]
        further = [(k, gain) for k, gain in options.items() if k > here and gain > gained + floor]
        if not further:
            break
        hull.append(max(further, key=lambda o: ((o[1] - gained) / (o[0] - here), o[0])))
    return [CopyStep(channel, a, b, gain_b - gain_a) for (a, gain_a), (b, gain_b) in itertools.pairwise(hull)]
