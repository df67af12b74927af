"""ε by line search on real batches: the grown network itself is evaluated, not its prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from growpipe.graph_ops.errors import UsageError

__all__ = ["EPSILONS", "LineSearch", "Trial", "between", "descend", "line_search"]

EPSILONS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""The grid of steps, in the metric's unit."""

START = 0.4
"""Where the search begins, unless a better place is known."""

PER_OCTAVE = 16
"""How many steps there are between one and its double.

Steps are whole powers apart, so that losses which differ by rounding, on another device or with other
processes, lead to the same step."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One evaluated step: ε, the factor of every v+ (−1 turns all of them round), and the change of loss."""

    epsilon: float
    orientation: float
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


def descend(value: Callable[[int], float], count: int, start: int) -> tuple[int, float]:
    """The position of a least value and that value, going from ``start`` to whichever side is lower.

    Args:
        value: of a position, 0 to count − 1; infinite where there is none.
        count: of positions.
        start: the position looked at first.
    """
    best, least = start, value(start)
    # Where the loss has exploded only smaller steps can help.
    for direction in (1, -1) if math.isfinite(least) else (-1,):
        before = best
        while 0 <= best + direction < count:
            further = value(best + direction)
            if math.isfinite(least) and not further < least:
                break
            best, least = best + direction, further
        if best != before:
            break
    return best, least


def between(best: Trial, trials: Sequence[Trial]) -> float | None:
    """A step between the best one and its neighbours, or None if there is none worth trying.

    The change of loss is ``−a ε² + b ε⁴`` up to odd powers: the step is the vertex of the parabola in ε²
    through the three. If the neighbour above is not finite, it is the geometric mean of that one and the
    best. A neighbour below that is not finite is left out, and ε = 0 stands in.

    Args:
        best: the trial of least change.
        trials: all of its orientation; ε = 0 counts as one that changes nothing.
    """
    above = min((t for t in trials if t.epsilon > best.epsilon), key=lambda t: t.epsilon, default=None)
    below = max((t for t in trials if t.epsilon < best.epsilon), key=lambda t: t.epsilon, default=None)
    if above is None:
        return None
    if not math.isfinite(above.change):
        return math.sqrt(best.epsilon * above.epsilon)
    low, low_change = 0.0, 0.0
    if below is not None and math.isfinite(below.change):
        low, low_change = below.epsilon**2, below.change
    centre, high = best.epsilon**2, above.epsilon**2
    left = (best.change - low_change) / (centre - low)
    right = (above.change - best.change) / (high - centre)
    if not right > left:
        return None
    # The slopes of the two chords belong to their middles; between these the slope is linear.
    vertex = (low + centre) / 2 - left * (high - low) / 2 / (right - left)
    powers = round(PER_OCTAVE * math.log2(vertex / centre) / 2)
    return best.epsilon * 2 ** (powers / PER_OCTAVE) if powers else None


def line_search(
    change: Callable[[float, float], float],
    *,
    orientations: Sequence[float] = (1.0,),
    epsilons: Sequence[float] = EPSILONS,
    start: float = START,
    refinements: int = 2,
    smallest: float = 1e-4,
) -> LineSearch:
    """The ε (and the orientation of v+) of least realised loss.

    Descends on a geometric grid, goes on below it while the smallest step is the best or none lowers the
    loss, and then between the best step and its neighbours, see `between`.

    Args:
        change: ``(ε, orientation) →`` the change of loss; not finite counts as infinitely bad.
        orientations: the factors of every v+ to try: 1 and −1, where a split is not symmetric.
        epsilons: the grid.
        start: the search begins at the step of the grid that is nearest to this one.
        refinements: how many steps are tried between the best one and its neighbours.
        smallest: no step below this is tried.

    Raises:
        UsageError: the grid is empty or not positive.
    """
    if not epsilons or min(epsilons) <= 0:
        raise UsageError(f"the steps of a line search must be positive, not {list(epsilons)}")
    grid = sorted(epsilons)
    trials: dict[tuple[float, float], Trial] = {}

    def attempt(epsilon: float, orientation: float) -> Trial:
        key = (epsilon, orientation)
        if key not in trials:
            value = change(epsilon, orientation)
            trials[key] = Trial(epsilon, orientation, value if math.isfinite(value) else math.inf)
        return trials[key]

    def best() -> Trial:
        return min(trials.values(), key=lambda t: (t.change, t.epsilon, -t.orientation))

    nearest = min(range(len(grid)), key=lambda position: abs(math.log(grid[position] / start)))
    place, least = nearest, math.inf
    for number, orientation in enumerate(orientations):

        def at(position: int, orientation: float = orientation) -> float:
            return attempt(grid[position], orientation).change

        # Another orientation is followed only if it is better where the first one is best.
        if number == 0 or at(place) < least:
            place, least = descend(at, len(grid), place)
    low = grid[0]
    while (best().epsilon == low or best().change >= 0) and low / 3 >= smallest:
        low = low / 3
        for orientation in orientations:
            attempt(low, orientation)
        if best().change < 0 and best().epsilon > low:
            break
    for _ in range(refinements):
        centre = best()
        if centre.change >= 0:
            break
        same = [t for t in trials.values() if t.orientation == centre.orientation]
        further = between(centre, same)
        if further is None:
            break
        attempt(further, centre.orientation)
    found = best()
    lowered = found.change < 0
    if not lowered:
        found = min(trials.values(), key=lambda t: (t.epsilon, t.change))
    return LineSearch(found, tuple(trials.values()), lowered)
