"""How a plan came about: what an analysis measured, tried and chose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from growpipe.analyser.choice.calibration import GroupTrial
from growpipe.analyser.choice.line_search import LineSearch
from growpipe.analyser.spectra.spectra import AnalysisStage, GroupReport
from growpipe.graph_ops.plan.split_plan import SplitPlan

__all__ = ["AddedCost", "Analysis", "AnalysisReport"]


@dataclass(frozen=True)
class AddedCost:
    """What the growth of one group costs if no other group grows.

    Attributes:
        parameters: the parameters more.
        macs: the multiply-accumulates more, per sample.
    """

    parameters: int
    macs: int


@dataclass(frozen=True)
class AnalysisReport:
    """What an analysis measured, tried and chose.

    Attributes:
        stages: the analysis sets, in order.
        ranking_stable: whether the ranking became stable before the samples were used up.
        groups: the spectra by group.
        samples: the samples for the spectra.
        held_out: the samples that the spectra did not see.
        displaced: the kinds of tensors that are displaced.
        damping: the damping of the input metric; None for the euclidean one.
        rounded_products: whether spectra and shared trials multiplied rounded numbers.
        sketched: the tensors whose input metric keeps the leading eigenpairs only, as a matrix was too large.
        selection: why the selection ended, and which least widths took splits that promise nothing.
        budget_spent: whether the budget leaves room for no more.
        cost: the cost of the grown network in the unit of the budget's own cost; None if it has none.
        added: by group that grows what its growth alone costs.
        calibration: by group what the shared trials showed; None if groups are ranked by prediction.
        rigid: by group why ``forward`` cannot grow it.
        joined: the groups that ``forward`` follows only if they grow in equal steps.
        factors: by group the number of copies that every channel got, as was asked.
        base_loss: the mean loss of the module on the trial samples; None if nothing was tried.
        epsilon: the step that was asked for; None if it was searched.
        line_search: the trials of the step; None if there were none.
        seed: the seed of the start vectors.
    """

    stages: tuple[AnalysisStage, ...]
    ranking_stable: bool
    groups: Mapping[str, GroupReport]
    samples: int
    held_out: int
    displaced: tuple[str, ...]
    damping: float | None
    rounded_products: bool
    sketched: tuple[str, ...]
    selection: str
    budget_spent: bool
    cost: float | None
    added: Mapping[str, AddedCost]
    calibration: Mapping[str, GroupTrial] | None
    rigid: Mapping[str, str]
    joined: tuple[tuple[str, ...], ...]
    factors: Mapping[str, int]
    base_loss: float | None
    epsilon: float | None
    line_search: LineSearch | None
    seed: int

    @property
    def products(self) -> int:
        """How often the splitting operator was applied."""
        return sum(stage.products for stage in self.stages)

    def notes(self) -> dict[str, Any]:
        """The report as JSON values, for the notes of a plan."""
        stable = "the ranking is stable" if self.ranking_stable else "the analysis set is used up"
        report = {**asdict(self), "products": self.products, "stopped": stable}
        del report["epsilon"]
        return {**report, "stages": list(report["stages"]), "displaced": list(self.displaced),
                "sketched": list(self.sketched), "joined": [list(names) for names in self.joined],
                "line_search": self._line_search()}  # fmt: skip

    def _line_search(self) -> dict[str, Any]:
        found = self.line_search
        if found is None:
            return {"epsilon": self.epsilon, "searched": False}
        trials = [
            [trial.epsilon, trial.change if math.isfinite(trial.change) else None] for trial in found.trials
        ]
        return {"searched": True, "lowered_the_loss": found.lowered, "trials": trials}


@dataclass(frozen=True, eq=False)
class Analysis:
    """A plan and how it came about.

    Attributes:
        plan: the split plan; its notes are written from the report.
        report: what was measured, tried and chose.
    """

    plan: SplitPlan
    report: AnalysisReport
