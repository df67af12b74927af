"""What each group's splits are worth on real batches, and at which step: the ranking's correction.

Both are measured by trials that all groups share, see `shared_trials`. A worth is the mean of differences
that vary more from sample to sample than groups differ. So what groups compete by is the worth drawn towards
the mean of all groups as far as its standard error says: the linear empirical Bayes estimate (Efron and
Morris, 1973).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from growpipe.analyser.candidates import Candidates
from growpipe.analyser.choice.shared_trials import SharedTrials
from growpipe.analyser.samples import MicroBatch

__all__ = ["Calibration", "GroupTrial", "calibrate"]


@dataclass(frozen=True, slots=True)
class GroupTrial:
    """What the shared trials showed of one group.

    Attributes:
        step: the ε that suits it when all groups split; 0 if its splits promise nothing.
        decrease: its share of the decrease of loss at these steps, of any sign.
        standard_error: the standard error of ``decrease``.
        worth: the decrease drawn towards the mean of all groups; see `Calibration`.
    """

    step: float
    decrease: float
    standard_error: float
    worth: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """All groups split at once.

    Attributes:
        step: by group the ε that suits it; 0 if its splits promise nothing.
        decrease: by group its share of the decrease of loss at these steps, of any sign; groups without a
            split that promises anything are absent.
        error: by group its standard error.
    """

    step: Mapping[str, float]
    decrease: Mapping[str, float]
    error: Mapping[str, float]

    @property
    def largest(self) -> float:
        """The largest of the steps; 0 if no group promises anything."""
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
        """By group its step over the largest: how long its displacements are.

        Groups that promise nothing go as far as the one that goes least.
        """
        if not self.largest:
            return {}
        least = min(step for step in self.step.values() if step)
        return {group: (step or least) / self.largest for group, step in self.step.items()}

    def trials(self) -> dict[str, GroupTrial]:
        """What the trials showed of every group."""
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
    trials: SharedTrials | None,
    rounds: Sequence[Sequence[MicroBatch]],
    sets: Sequence[Sequence[MicroBatch]] | None,
) -> Calibration:
    """The step of every group, and what it is worth there.

    Args:
        candidates: of every group.
        trials: of the groups among them whose splits promise something, in order; None if there are none.
        rounds: by round the micro-batches on which steps are found.
        sets: those on which worths are measured, see `SharedTrials.worth`; None if groups do not compete.
    """
    step = {offered.group: 0.0 for offered in candidates}
    if trials is None:
        return Calibration(step, {}, {})
    steps = trials.steps(rounds)
    step |= dict(zip(trials.groups, steps.tolist(), strict=True))
    if sets is None:
        return Calibration(step, {}, {})
    worth, error = trials.worth(sets, steps)
    return Calibration(
        step,
        dict(zip(trials.groups, worth.tolist(), strict=True)),
        dict(zip(trials.groups, error.tolist(), strict=True)),
    )
