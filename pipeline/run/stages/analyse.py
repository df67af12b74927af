"""The analyse stage of a round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from growpipe import analyser
from growpipe.graph_ops.errors import NothingToSplit
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.run.facts import AnalyseFacts
from growpipe.run.recipe_limits import alignment, budget_for, width_limits
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
    run, growth = task.run, task.run.recipe.growth
    inputs = previous_stage(run, number, TRAIN).inputs(WEIGHTS)
    inputs |= previous_stage(run, number, EXPORT).inputs(GROWTH_FORM)

    def produce(folder: Path) -> AnalyseFacts:
        network = trained_network(task, number)
        budget = budget_for(task, network.export.graph)
        counter = FlopCounterMode(display=False)
        try:
            with counter:
                plan = analyser.analyse(
                    network.module,
                    task.objective.loss_fn,
                    # The spectra's samples, and as many that they do not see as a trial wants.
                    task.analysis_batches(growth.samples + analyser.RANKING_SAMPLES // 2),
                    task.example_inputs(),
                    scheme=growth.scheme,
                    c=growth.c,
                    growth=growth.share,
                    epsilon=growth.epsilon,
                    budget=budget,
                    metric=growth.metric,
                    ranking=growth.ranking,
                    max_factor=growth.max_factor,
                    balance=growth.balance,
                    align=alignment(run.recipe),
                    widths=width_limits(growth),
                    freeze=growth.freeze,
                    max_samples=growth.samples,
                    seed=run.seed,
                    device=run.device,
                )
        except NothingToSplit as nothing:
            return AnalyseFacts(stopped=str(nothing), analysis_macs=_macs(task, counter))
        plan.save(folder / PLAN)
        return replace(_facts(plan, budget), analysis_macs=_macs(task, counter))

    config = {
        **task.config,
        "growth": growth.model_dump(mode="json", exclude={"rounds", "finish"}),
        "budget": run.recipe.budget.model_dump(mode="json"),
        "batch_size": run.recipe.train.batch_size,
    }
    stage = round_stage(number, ANALYSE)
    return run.stage(stage, produce, config=config, inputs=inputs, everywhere=True)


def _macs(task: Task, counter: FlopCounterMode) -> int:
    """What all processes have multiplied; a multiplication and an addition are two operations."""
    own = counter.get_total_flops() / 2
    (macs,) = task.run.peers.totals(own, device=torch.device("cpu"))
    return round(macs)


def _facts(plan: SplitPlan, budget: analyser.GrowthBudget) -> AnalyseFacts:
    found = plan.notes["analysis"]
    return AnalyseFacts(
        budget_spent=found["budget_spent"],
        epsilon=plan.epsilon,
        predicted_change=plan.predicted_change,
        realised_change=plan.realised_change,
        added_channels=plan.added_channels,
        cost=None if budget.cost is None else found["cost"],
        unit="" if budget.cost is None else budget.cost.unit,
    )
