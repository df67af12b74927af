"""What the grown network is compared with: its uniform rival, and the seed network that never grows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from growpipe.budgets.budget import NetworkCost
from growpipe.graph_ops.groups.channel_groups import ChannelGroups
from growpipe.run.facts import JudgedFacts, NetworkSize, TrainFacts
from growpipe.run.recipe_limits import alignment, budget_for, budget_of
from growpipe.run.stages.judged import train_and_judge
from growpipe.run.stages.names import (
    BRANCH,
    CONTROL,
    EXPORT,
    RIVAL,
    TRAIN,
    previous_stage,
    rival_of_branch,
)
from growpipe.run.stages.train import discard_progress, training_config, training_stage
from growpipe.run.stages.training_cost import TRAIN_COST, macs_of_branch, macs_of_growth
from growpipe.run.store import Stage, StageRecord
from growpipe.run.task import Task
from growpipe.seeding import seed_everything
from growpipe.torch_module.export import GrowthExport
from growpipe.torch_module.module_fit import ModuleFit, fit_module
from growpipe.torch_module.widen import largest_multiple, with_widths
from growpipe.training.optimizers import make_optimizer
from growpipe.training.options import TrainingOptions

__all__ = ["train_control", "train_rival", "train_rival_of_branch"]

_SHRINKING = 0.97  # of the allowed cost, per network that was measured and is too slow


def train_control(task: Task, epochs: int) -> StageRecord[JudgedFacts]:
    """Train the seed network for as many epochs as the grown network had in all.

    Publishes the files of a train stage, and ``growth.onnx``.

    Raises:
        UsageError: training fails.
        CheckFailed: the graph is wrong, or computes something else than the module.
    """
    config = training_config(task, epochs=epochs)

    def produce(folder: Path) -> JudgedFacts:
        return _from_scratch(task, CONTROL, folder, task.build_seed(), epochs, config, task.run.recipe.train)

    record = task.run.stage(CONTROL, produce, config=config, inputs={}, everywhere=True)
    discard_progress(task.run, CONTROL.name)
    return record


def train_rival(task: Task, number: int) -> StageRecord[JudgedFacts]:
    """Train the rival of the network of round ``number`` from scratch; see `_train_rival`.

    It has at most the training MACs of growth and its analyses.
    """
    run = task.run
    size, trained = previous_stage(run, number, EXPORT).facts.size, previous_stage(run, number, TRAIN).facts
    return _train_rival(task, RIVAL, size, trained, macs_of_growth(run, number))


def train_rival_of_branch(task: Task, number: int) -> StageRecord[JudgedFacts]:
    """Train the rival of the branch of round ``number`` from scratch; see `_train_rival`.

    It has at most the training MACs that this branch took by itself: the trunk up to the round, the analyses
    and its own annealing.
    """
    branch = previous_stage(task.run, number, BRANCH).facts
    spent = macs_of_branch(task.run, number)
    return _train_rival(task, rival_of_branch(number), branch.size, branch.training, spent)


def _train_rival(
    task: Task, stage: Stage[JudgedFacts], final: NetworkSize, trained: TrainFacts, spent: int
) -> StageRecord[JudgedFacts]:
    """Train a rival from scratch.

    The rival has the widths of the first round, all multiplied by the largest factor with which it costs no
    more than the grown network, in what the budget bounds; groups that grow by whole factors have the widths
    of the grown network. It is trained for as many whole epochs as fit into
    ``spent``, at least one.

    Publishes the files of a train stage, and ``growth.onnx``.

    Args:
        task: the task of the run.
        stage: of the rival.
        final: the size of the grown network.
        trained: the last training of the grown network, which says how many samples an epoch has.
        spent: the most training MACs.

    Raises:
        UsageError: the network cannot be initialised again, or training fails.
        CheckFailed: the graph is wrong, or computes something else than the module.
    """
    run, recipe = task.run, task.run.recipe
    first = previous_stage(run, 0, EXPORT).facts.size
    bounds, rate = budget_of(recipe, 0), recipe.control.learning_rate
    options = recipe.train if rate is None else recipe.train.model_copy(update={"learning_rate": rate})
    config = {
        **training_config(task),
        "learning_rate": options.learning_rate,
        "first": dataclasses.asdict(first),
        "final": dataclasses.asdict(final),
        "training_macs": spent,
        "budget": bounds.model_dump(mode="json"),
        "align": alignment(recipe),
        "freeze": recipe.growth.freeze,
        "max_widths": recipe.growth.max_widths,
    }

    def produce(folder: Path) -> JudgedFacts:
        seed = task.build_seed()
        export = task.export(seed)
        cost = budget_for(task, export.graph, bounds).cost
        whole = _by_whole_factors(export.groups(recipe.growth.freeze), final)
        follows = fit_module(seed, export.graph, export.groups(), task.example_inputs(), whole)
        widths = run.peers.broadcast(
            {} if run.peers.rank else _rival_widths(task, follows, export, cost, first.widths, final)
        )
        seed_everything(run.seed, "rival")
        model = with_widths(seed, export, export.groups(), widths, follows.sizes)
        stage_macs = TRAIN_COST * NetworkSize.of(export.groups(), widths).macs * trained.samples
        epochs = max(1, spent * trained.epochs // stage_macs)
        whole_config = {**config, "widths": dict(widths)}
        facts = _from_scratch(task, stage, folder, model, epochs, whole_config, options)
        if cost is None:
            return facts
        all_widths = {group.name: widths.get(group.name, group.width) for group in export.groups().groups}
        return dataclasses.replace(facts, cost=cost.tried(all_widths), unit=cost.unit)

    record = run.stage(stage, produce, config=config, inputs={}, everywhere=True)
    discard_progress(run, stage.name)
    return record


def _from_scratch(
    task: Task,
    stage: Stage[JudgedFacts],
    folder: Path,
    model: nn.Module,
    epochs: int,
    config: Mapping[str, Any],
    options: TrainingOptions,
) -> JudgedFacts:
    run = task.run
    optimizer = make_optimizer(model.to(run.device), options, run.folder)
    key = json.dumps(config, sort_keys=True)
    training = training_stage(run, stage.name, epochs, "end", key, fresh=True)
    return train_and_judge(task, folder, model, optimizer, training, options=options)


def _by_whole_factors(groups: ChannelGroups, final: NetworkSize) -> dict[str, int]:
    """The widths of the groups that took a whole factor on the way to the final network."""
    return {
        group.name: final.widths[group.name]
        for group in groups.groups
        if group.whole_factor is not None and final.widths[group.name] != group.width
    }


def _rival_widths(
    task: Task,
    follows: ModuleFit,
    export: GrowthExport,
    cost: NetworkCost | None,
    first: Mapping[str, int],
    final: NetworkSize,
) -> dict[str, int]:
    """The widths of the first round, uniformly multiplied to the cost of the final network."""
    recipe = task.run.recipe
    groups = export.groups(recipe.growth.freeze)
    joined = [one for one in follows.joined if not one.by_factor]
    by_factor = {name for one in follows.joined if one.by_factor for name in one.names}
    whole = _by_whole_factors(groups, final) | {name: final.widths[name] for name in by_factor}
    base = {
        group.name: first[group.name]
        for group in groups.groups
        if group.splittable and group.name not in follows.rigid.keys() | by_factor
    }
    own = {**{group.name: group.width for group in groups.groups}, **whole}
    bounded = budget_of(recipe, 0)

    def fits(widths: Mapping[str, int], share: float = 1.0) -> bool:
        if bounded.parameters is not None and groups.cost.parameters({**whole, **widths}) > final.parameters:
            return False
        by_macs = bounded.macs is not None or (bounded.parameters is None and cost is None)
        if by_macs and groups.cost.macs({**whole, **widths}) > final.macs:
            return False
        return cost is None or cost.of({**own, **widths}) <= share * cost.of({**own, **final.widths})

    def largest(share: float) -> dict[str, int]:
        return largest_multiple(
            base,
            lambda widths: fits(widths, share),
            align=alignment(recipe),
            most=recipe.growth.max_widths,
            joined=joined,
        )

    widths = largest(1.0)
    if cost is None or cost.resolution == 0:
        return {**whole, **widths}
    # An estimate has chosen the factor; what counts is the cost of the network itself.
    allowed = cost.tried({**own, **final.widths}) * (1 + cost.resolution)
    share = 1.0
    while widths != base and cost.tried({**own, **widths}) > allowed:
        share *= _SHRINKING
        widths = largest(share)
    return {**whole, **widths}
