"""ε by line search on real batches: the grown network itself is evaluated, not its prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from growpipe.graph_ops.errors import UsageError

__all__ = ["EPSILONS", "LineSearch", "Trial", "line_search"]

EPSILONS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""The steps tried first, in the metric's unit."""


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


def line_search(
    change: Callable[[float, float], float],
    *,
    orientations: Sequence[float] = (1.0,),
    epsilons: Sequence[float] = EPSILONS,
    refinements: int = 2,
    smallest: float = 1e-4,
) -> LineSearch:
    """The ε (and the orientation of v+) of least realised loss.

    Tries a geometric grid, goes on below it while the smallest step is the best or none lowers the loss, and
    then between the best step and its neighbours.

    Args:
        change: ``(ε, orientation) →`` the change of loss; not finite counts as infinitely bad.
        orientations: the factors of every v+ to try: 1 and −1, where a split is not symmetric.
        epsilons: the grid.
        refinements: how often the interval around the best step is halved (geometrically).
        smallest: no step below this is tried.

    Raises:
        UsageError: the grid is empty or not positive.
    """
    if not epsilons or min(epsilons) <= 0:
        raise UsageError(f"the steps of a line search must be positive, not {list(epsilons)}")
    trials: dict[tuple[float, float], Trial] = {}

    def attempt(epsilon: float, orientation: float) -> Trial:
        key = (epsilon, orientation)
        if key not in trials:
            value = change(epsilon, orientation)
            trials[key] = Trial(epsilon, orientation, value if math.isfinite(value) else math.inf)
        return trials[key]

    def best() -> Trial:
        return min(trials.values(), key=lambda t: (t.change, t.epsilon, -t.orientation))

    for orientation in orientations:
        for epsilon in sorted(epsilons):
            attempt(epsilon, orientation)
            # Far beyond the best step the loss only explodes.
            if trials[epsilon, orientation].change > 10 * abs(best().change) + 1.0:
                break
    low = min(epsilons)
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
        steps = sorted(t.epsilon for t in trials.values() if t.orientation == centre.orientation)
        position = steps.index(centre.epsilon)
        for neighbour in steps[max(0, position - 1) : position] + steps[position + 1 : position + 2]:
            attempt(math.sqrt(centre.epsilon * neighbour), centre.orientation)
    found = best()
    lowered = found.change < 0
    if not lowered:
        found = min(trials.values(), key=lambda t: (t.epsilon, t.change))
    return LineSearch(found, tuple(trials.values()), lowered)
