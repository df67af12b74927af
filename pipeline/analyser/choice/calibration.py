"""What each group's splits are worth on real batches, and at which step: the ranking's correction.

The quadratic prediction ``½ ε² Σ w δᵀSδ`` holds within a trust region whose size differs between groups by
more than the predictions themselves: a small displacement of an early layer passes through every
nonlinearity behind it. So every group is split by itself, all its channels at once and into two, at several
steps, and groups compete by the decrease of loss at their own best step.

Directions are fitted to few samples, the more so the more inputs a filter has: on those samples the decrease
is several times what it is on others. In expectation the one exceeds what enough data would show by about as
much as the other falls short of it (the symmetry behind Akaike's criterion), so a trial sees samples of both
kinds, with equal weight.

A decrease is the mean of differences that vary more from sample to sample than groups differ, and the largest
of several noisy figures is mostly noise. So the step is found on a few samples, the decrease at that step is
measured again on more of them, and what groups compete by is that decrease drawn towards the mean of all
groups as far as its standard error says: the linear empirical Bayes estimate (Efron and Morris, 1973).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from growpipe.analyser.candidates import Candidates
from growpipe.analyser.choice.line_search import descend

__all__ = ["STEPS", "Calibration", "GroupTrial", "Measured", "calibrate"]

Rows = npt.NDArray[np.int64]

STEPS = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""The steps at which a group is tried, in the metric's unit."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A change of loss and its standard error."""

    change: float
    error: float


@dataclass(frozen=True, slots=True)
class GroupTrial:
    """What one group showed by itself.

    Attributes:
        step: the ε of least loss; 0 if none lowered it.
        decrease: the decrease of loss at that step, measured again, of any sign.
        standard_error: the standard error of ``decrease``.
        worth: the decrease drawn towards the mean of all groups; see `Calibration`.
    """

    step: float
    decrease: float
    standard_error: float
    worth: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """Every group split by itself.

    Attributes:
        step: by group the ε of least loss; 0 where none lowered it.
        decrease: by group the decrease of loss at its step, measured again, of any sign; groups without a
            split that promises anything are absent.
        error: by group its standard error.
    """

    step: Mapping[str, float]
    decrease: Mapping[str, float]
    error: Mapping[str, float]

    @property
    def largest(self) -> float:
        """The largest of the steps; 0 where no group lowered the loss."""
        return max(self.step.values(), default=0.0)

    @property
    def worth(self) -> dict[str, float]:
        """By group what its splits are worth: ``d̄ + (d − d̄) τ² / (τ² + s²)``.

        d is the decrease, s its standard error, d̄ the mean of d over groups; τ², by how much groups differ
        beyond the noise, is the variance of d less the mean of s², at least 0.
        """
        found = np.array([self.decrease[group] for group in self.decrease])
        noise = np.array([self.error[group] for group in self.decrease]) ** 2
        if len(found) < 2:
            return dict(self.decrease)
        between = max(0.0, float(np.var(found, ddof=1) - noise.mean()))
        share = np.ones_like(found)
        np.divide(between, between + noise, out=share, where=noise > 0)
        mean = found.mean()
        return dict(zip(self.decrease, (mean + share * (found - mean)).tolist(), strict=True))

    def lengths(self) -> dict[str, float]:
        """By group its own best step over the largest: how long its displacements are when all split."""
        if not self.largest:
            return {}
        return {group: (step or min(STEPS)) / self.largest for group, step in self.step.items()}

    def trials(self) -> dict[str, GroupTrial]:
        """What every group showed by itself."""
        worth = self.worth
        return {
            group: GroupTrial(
                step, self.decrease.get(group, 0.0), self.error.get(group, 0.0), worth.get(group, 0.0)
            )
            for group, step in self.step.items()
        }

    def measured(self, candidates: Sequence[Candidates]) -> tuple[Candidates, ...]:
        """The candidates with their worth; groups that are worth nothing come last."""
        worth = self.worth
        last = 1e-6 * max(worth.values(), default=0.0)
        last = last if last > 0 else 1.0
        return tuple(replace(c, worth=max(worth.get(c.group, 0.0), last)) for c in candidates)


def calibrate(
    candidates: Sequence[Candidates],
    change: Callable[[str, Rows, float], float],
    measure: Callable[[str, Rows, float], Measured] | None,
    steps: Sequence[float] = STEPS,
) -> Calibration:
    """Try every group by itself, climbing from the middle step to the best one, and measure it there.

    Args:
        candidates: of every group.
        change: ``(group, rows int64 [width], ε) →`` the change of loss on a few samples when only this group
            splits so; not finite counts as infinitely bad.
        measure: the same on many; not finite counts as nothing gained. None leaves it at the few, where
            groups do not compete.
        steps: ascending.
    """
    best_step: dict[str, float] = {}
    decrease: dict[str, float] = {}
    error: dict[str, float] = {}
    for offered in candidates:
        name, rows = offered.group, offered.rows[0]
        best_step[name] = 0.0
        if not offered.values[0].min(initial=0.0) < 0:
            continue

        def at(position: int, name: str = name, rows: Rows = rows) -> float:
            value = change(name, rows, steps[position])
            return value if math.isfinite(value) else math.inf

        position, least = descend(at, len(steps), len(steps) // 2)
        if least < 0:
            best_step[name] = steps[position]
        found = Measured(least, 0.0)
        if measure is not None and math.isfinite(least):
            found = measure(name, rows, steps[position])
        finite = math.isfinite(found.change) and math.isfinite(found.error)
        decrease[name], error[name] = (-found.change, found.error) if finite else (0.0, 0.0)
    return Calibration(best_step, decrease, error)
