"""ε by line search on real batches: the grown network itself is evaluated, not its prediction.

The change of loss along a plan is ``−a ε² + b ε⁴`` up to odd powers, a parabola in ε² through 0. So a few
steps say where the least loss is: each next step is the vertex of the parabola through the best one and its
neighbours. The shared trials say where to begin (see `shared_trials`), and mostly this is near the vertex.
The second step is a smaller one, since too large a step costs more than one that is too small: beyond the
trust region the loss soon rises faster than any parabola.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from growpipe.graph_ops.errors import UsageError

__all__ = ["START", "LineSearch", "Trial", "following", "line_search", "on_grid"]

START = 0.4
"""Where the search begins, unless a better place is known."""

PER_OCTAVE = 16
"""How many steps there are between one and its double.

Steps are whole powers apart, so that losses which differ by rounding, on another device or with other
processes, lead to the same step."""

SECOND = -PER_OCTAVE // 2
"""How many powers the second step is from the first, where that one lowers the loss."""

FARTHEST = PER_OCTAVE
"""How many powers above the largest step the next one is without a vertex; with one, at most twice."""

LEAST = PER_OCTAVE // 2
"""How many powers above the largest step the next one is at least, as the loss may fall for longer."""

WALL = 4
"""A loss that rises beyond the best step as this power of ε is no parabola in ε²."""

NEAR = 2
"""A step that is fewer powers from one that was tried is not worth it.

Then ε² differs by less than 15 %, so that the loss differs by about 2 % of what there is to gain."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One evaluated step: ε and the change of loss."""

    epsilon: float
    change: float


@dataclass(frozen=True, slots=True)
class LineSearch:
    """What the search found.

    Attributes:
        best: the trial of least change of loss; where none lowered the loss, the smallest step tried.
        trials: all of them, in order.
        lowered: whether the best trial lowers the loss.
    """

    best: Trial
    trials: tuple[Trial, ...]
    lowered: bool

    @staticmethod
    def of(trials: Sequence[Trial]) -> LineSearch:
        """From all trials."""
        found = min(trials, key=lambda t: (t.change, t.epsilon))
        if found.change < 0:
            return LineSearch(found, tuple(trials), True)
        return LineSearch(min(trials, key=lambda t: (t.epsilon, t.change)), tuple(trials), False)


def on_grid(power: int) -> float:
    """The step of so many powers."""
    return math.pow(2.0, power / PER_OCTAVE)


def _power(epsilon: float) -> int:
    """Of the step of the grid that is nearest."""
    return round(PER_OCTAVE * math.log2(epsilon))


def _vertex(points: Sequence[tuple[float, float]]) -> float | None:
    """Of the parabola through three points (ε², change) in order; None if it is not convex."""
    (low, first), (centre, second), (high, third) = points
    left, right = (second - first) / (centre - low), (third - second) / (high - centre)
    if not right > left:
        return None
    # The slopes of the two chords belong to their middles; between these the slope is linear.
    return (low + centre) / 2 - left * (high - low) / 2 / (right - left)


def following(changes: dict[int, float]) -> int | None:
    """The power of the step to try next, or None if none is worth it.

    Args:
        changes: by power the change of loss of the steps that were tried, infinite where it is not finite.
    """
    finite = sorted(power for power, change in changes.items() if math.isfinite(change))
    best = min(changes, key=lambda power: (changes[power], power))
    points = [(0.0, 0.0), *((on_grid(power) ** 2, changes[power]) for power in finite)]
    if not changes[best] < 0:
        return _below(min(changes), len(changes), points)
    place = 1 + finite.index(best)
    above = min((power for power in changes if power > best), default=None)
    if above is None and place == 1:
        further = best + SECOND
    elif above is None:
        vertex = _vertex(points[place - 2 : place + 1])
        further = best + FARTHEST if vertex is None else min(_power(math.sqrt(vertex)), best + 2 * FARTHEST)
        if further >= best + NEAR:
            further = max(further, best + LEAST)
    elif changes[above] < -changes[best] * on_grid(above - best) ** WALL:
        vertex = _vertex(points[place - 1 : place + 2])
        # The middle one is the least of three, so that there is none only if all are equal.
        further = best if vertex is None else _power(math.sqrt(vertex))
    else:
        further = (best + above) // 2
    known = further in changes or any(abs(further - power) < NEAR for power in finite)
    return None if known else further


def _below(least: int, tried: int, points: Sequence[tuple[float, float]]) -> int:
    """The power of a smaller step, where no step lowered the loss.

    It is the vertex of the parabola through 0 and the two smallest steps, if there is one and it is not too
    far. Otherwise every next step is further below the last one.
    """
    farthest = least - tried * PER_OCTAVE
    vertex = _vertex(points[:3]) if len(points) > 2 else None
    if vertex is None or vertex <= 0:
        return farthest
    return max(farthest, min(_power(math.sqrt(vertex)), least - PER_OCTAVE // 2))


def line_search(
    change: Callable[[float], float], *, start: float = START, most: int = 8, smallest: float = 1e-4
) -> LineSearch:
    """The ε of least realised loss; see `following` for the way to it.

    Args:
        change: ``ε →`` the change of loss; not finite counts as infinitely bad.
        start: the search begins at the step of the grid that is nearest to this one.
        most: how many steps are tried at most, once one lowers the loss.
        smallest: no step below this is tried.

    Raises:
        UsageError: the start is not positive.
    """
    if not start > 0:
        raise UsageError(f"a line search must start at a positive step, not {start}")
    trials: list[Trial] = []
    changes: dict[int, float] = {}
    power: int | None = _power(start)
    while power is not None and (on_grid(power) >= smallest or not changes):
        value = change(on_grid(power))
        changes[power] = value if math.isfinite(value) else math.inf
        trials.append(Trial(on_grid(power), changes[power]))
        power = None if min(changes.values()) < 0 and len(changes) >= most else following(changes)
    return LineSearch.of(trials)
