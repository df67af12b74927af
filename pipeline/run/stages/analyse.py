"""The analyse stage of a round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from growpipe.analyser.analysis import analysis_of
from growpipe.analyser.options import AnalysisOptions, SpectraOptions, TrialOptions
from growpipe.analyser.report import Analysis
from growpipe.budgets.budget import GrowthBudget
from growpipe.graph_ops.errors import NothingToSplit
from growpipe.run.facts import AnalyseFacts
from growpipe.run.recipe_limits import budget_for, budget_of, growth_of
from growpipe.run.stages.names import (
    ANALYSE,
    EXPORT,
    GROWTH_FORM,
    PLAN,
    TRAIN,
    WEIGHTS,
    previous_stage,
    round_stage,
)
from growpipe.run.stages.network import trained_network
from growpipe.run.store import StageRecord
from growpipe.run.task import Task

__all__ = ["analyse_round"]


def analyse_round(task: Task, number: int) -> StageRecord[AnalyseFacts]:
    """Find the split plan of the trained network.

    Publishes the folder ``plan`` (see `SplitPlan.save`), unless nothing is left to split; then the fact
    ``stopped`` says why.

    Raises:
        UsageError: the round has no train or export stage yet.
    """
    run = task.run
    growth, bounds = growth_of(run.recipe), budget_of(run.recipe, number)
    spectra = SpectraOptions(
        max_samples=growth.samples,
        rounded_products=growth.rounded_products,
        seed=run.seed,
        device=run.device,
    )
    trials = TrialOptions(ranking=growth.ranking)
    inputs = previous_stage(run, number, TRAIN).inputs(WEIGHTS)
    inputs |= previous_stage(run, number, EXPORT).inputs(GROWTH_FORM)

    def produce(folder: Path) -> AnalyseFacts:
        network = trained_network(task, number)
        budget = budget_for(task, network.export.graph, bounds)
        counter = FlopCounterMode(display=False)
        try:
            with counter:
                analysis = analysis_of(
                    network.module,
                    task.objective.loss_fn,
                    # The spectra's samples, and as many that they do not see as a trial wants.
                    task.analysis_batches(growth.samples + trials.ranking_samples // 2),
                    network.export,
                    AnalysisOptions(growth.options(), spectra, trials),
                    budget,
                )
        except NothingToSplit as nothing:
            return AnalyseFacts(stopped=str(nothing), analysis_macs=_macs(task, counter))
        analysis.plan.save(folder / PLAN)
        return replace(_facts(analysis, budget), analysis_macs=_macs(task, counter))

    config = {
        **task.config,
        "growth": growth.model_dump(mode="json", exclude={"rounds", "finish"}),
        "budget": bounds.model_dump(mode="json"),
        "batch_size": run.recipe.train.batch_size,
    }
    stage = round_stage(number, ANALYSE)
    return run.stage(stage, produce, config=config, inputs=inputs, everywhere=True)


def _macs(task: Task, counter: FlopCounterMode) -> int:
    """What all processes have multiplied; a multiplication and an addition are two operations."""
    own = counter.get_total_flops() / 2
    (macs,) = task.run.peers.totals(own, device=torch.device("cpu"))
    return round(macs)


def _facts(analysis: Analysis, budget: GrowthBudget) -> AnalyseFacts:
    plan, report = analysis.plan, analysis.report
    return AnalyseFacts(
        budget_spent=report.budget_spent,
        epsilon=plan.epsilon,
        predicted_change=plan.predicted_change,
        realised_change=plan.realised_change,
        added_channels=plan.added_channels,
        cost=None if budget.cost is None else report.cost,
        unit="" if budget.cost is None else budget.cost.unit,
    )
