"""What each group's splits are worth on real batches, and at which step: the ranking's correction.

The quadratic prediction ``½ ε² Σ w δᵀSδ`` holds within a trust region whose size differs between groups by
more than the predictions themselves: a small displacement of an early layer passes through every
nonlinearity behind it. So every group is split by itself, all its channels at once and into two, at several
steps, and groups compete by the decrease of loss at their own best step.

Directions are fitted to few samples, the more so the more inputs a filter has: on those samples the decrease
is several times what it is on others. In expectation the one exceeds what enough data would show by about as
much as the other falls short of it (the symmetry behind Akaike's criterion), so a trial sees as many samples
of both kinds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from growpipe.analyser.line_search import descend
from growpipe.analyser.selection import Candidates

__all__ = ["STEPS", "Calibration", "calibrate"]

Rows = npt.NDArray[np.int64]

STEPS = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""The steps at which a group is tried, in the metric's unit."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Every group split by itself.

    Attributes:
        step: by group the ε of least loss; 0 where none lowered it.
        decrease: by group the decrease of loss there, never below 0.
    """

    step: Mapping[str, float]
    decrease: Mapping[str, float]

    @property
    def largest(self) -> float:
        """The largest of the steps; 0 where no group lowered the loss."""
        return max(self.step.values(), default=0.0)

    def lengths(self) -> dict[str, float]:
        """By group its own best step over the largest: how long its displacements are when all split."""
        if not self.largest:
            return {}
        return {group: (step or min(STEPS)) / self.largest for group, step in self.step.items()}

    def report(self) -> dict[str, dict[str, float]]:
        """By group step and decrease, for the notes of a plan."""
        return {g: {"step": step, "decrease": self.decrease[g]} for g, step in self.step.items()}

    def measured(self, candidates: Sequence[Candidates]) -> tuple[Candidates, ...]:
        """The candidates with what was realised as their worth; groups that lowered nothing come last."""
        last = 1e-6 * max(self.decrease.values(), default=0.0) or 1.0
        return tuple(replace(c, worth=self.decrease[c.group] or last) for c in candidates)


def calibrate(
    candidates: Sequence[Candidates],
    change: Callable[[str, npt.NDArray[np.int64], float], float],
    steps: Sequence[float] = STEPS,
) -> Calibration:
    """Try every group by itself, climbing from the middle step to the best one.

    Args:
        candidates: of every group.
        change: ``(group, rows int64 [width], ε) →`` the change of loss when only this group splits so; not
            finite counts as infinitely bad.
        steps: ascending.
    """
    best_step: dict[str, float] = {}
    decrease: dict[str, float] = {}
    for offered in candidates:
        best_step[offered.group], decrease[offered.group] = 0.0, 0.0
        if not offered.values[0].min(initial=0.0) < 0:
            continue

        def at(position: int, group: str = offered.group, rows: Rows = offered.rows[0]) -> float:
            value = change(group, rows, steps[position])
            return value if math.isfinite(value) else math.inf

        position, least = descend(at, len(steps), len(steps) // 2)
        if least < 0:
            best_step[offered.group], decrease[offered.group] = steps[position], -least
    return Calibration(best_step, decrease)
