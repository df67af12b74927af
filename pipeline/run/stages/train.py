"""The train stage of a round."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.reading import hash_file
from growpipe.graph_ops.plan.whole_factors import growth_by_factors
from growpipe.run.facts import TrainFacts
from growpipe.run.recipe_limits import check_limits
from growpipe.run.rehearsal import rehearse
from growpipe.run.stages.names import (
    ANALYSE,
    OPTIMIZER,
    REWRITE,
    TRAIN,
    WEIGHTS,
    previous_stage,
    round_stage,
)
from growpipe.run.store import METRICS, Run, StageRecord
from growpipe.run.task import Task
from growpipe.seeding import seed_everything
from growpipe.torch_module.grow_module import load_grown, save_grown
from growpipe.torch_module.optimizer_state import load_optimizer, save_optimizer
from growpipe.torch_module.weights import load_weights
from growpipe.torch_module.widen import obstacle_to_reinitialising, reinitialise
from growpipe.training.checkpoint import Epoch
from growpipe.training.evaluation import evaluate
from growpipe.training.optimizers import make_optimizer
from growpipe.training.options import TrainingOptions
from growpipe.training.train import TrainingStage, Until, train

__all__ = ["discard_progress", "fit", "train_round", "training_config", "training_stage"]


def train_round(task: Task, number: int) -> StageRecord[TrainFacts]:
    """Train the seed network (round 0) or what the last rewrite made, for the epochs of the recipe.

    If the recipe gives weights, round 0 judges the network that has them, and trains nothing.

    Publishes ``weights.safetensors``, ``optimizer.safetensors`` and ``metrics.jsonl``.

    Raises:
        UsageError: the round before has not come so far, the seed network cannot grow, or training fails.
    """
    run, recipe = task.run, task.run.recipe
    stage = round_stage(number, TRAIN)
    parent = _parent(run, number)
    last = _is_last(run, number)
    retrain = last and number > 0 and recipe.growth.finish == "retrain"
    epochs = recipe.train.final_epochs if last else recipe.train.epochs
    config = training_config(task, epochs=epochs, last=last, retrain=retrain)
    inputs = {} if parent is None else parent.inputs(WEIGHTS, OPTIMIZER)
    given = _given_weights(run) if number == 0 else None
    if given is not None:
        config |= {"epochs": 0}
        inputs = {"weights": hash_file(given)}

    def produce(folder: Path) -> TrainFacts:
        model = task.build_seed()
        if given is not None:
            load_weights(model, given)
        if parent is not None:
            load_grown(model, parent.folder / WEIGHTS)
        elif run.peers.rank == 0:
            # A network that cannot be exported or grown should say so before it is trained, not after.
            _require_growth(task, model)
        if retrain:
            seed_everything(run.seed, "retrain")
            reinitialise(model)
        model.to(run.device)
        optimizer = make_optimizer(model, recipe.train, run.folder)
        if parent is not None and not retrain:
            load_optimizer(optimizer, model, parent.folder / OPTIMIZER)
        if given is not None:
            return _judged(task, folder, model, optimizer)
        until: Until = "end" if last else recipe.train.trigger
        key = json.dumps([config, inputs], sort_keys=True)
        fresh = retrain or number == 0
        training = training_stage(run, stage.name, epochs, until, key, fresh=fresh)
        return fit(task, folder, model, optimizer, training)

    record = run.stage(stage, produce, config=config, inputs=inputs, everywhere=True)
    discard_progress(run, stage.name)
    return record


def _given_weights(run: Run) -> Path | None:
    """The file of trained weights that the run begins with."""
    weights = run.recipe.train.weights
    return None if weights is None else (run.folder or Path()) / weights


def _judged(task: Task, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainFacts:
    """Publish a network as it is."""
    run, objective = task.run, task.objective
    found = evaluate(model, objective.loaders.validation, objective, device=run.device, peers=run.peers)
    _write(folder, model, optimizer, [])
    return TrainFacts(0, 0, None, found.loss, found.score)


def _write(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, history: Sequence[Epoch]
) -> None:
    save_grown(model, folder / WEIGHTS)
    save_optimizer(optimizer, model, folder / OPTIMIZER)
    lines = (json.dumps(dataclasses.asdict(epoch)) + "\n" for epoch in history)
    (folder / METRICS).write_text("".join(lines), encoding="utf-8")


def _parent(run: Run, number: int) -> StageRecord[Any] | None:
    """The stage whose weights round ``number`` begins with; None for the seed network."""
    if number == 0:
        return None
    # If nothing was left to split, the same network gets the last stage of training.
    stopped = previous_stage(run, number - 1, ANALYSE).facts.stopped
    return previous_stage(run, number - 1, REWRITE if stopped is None else TRAIN)


def _is_last(run: Run, number: int) -> bool:
    """Whether no growth follows round ``number``."""
    if run.recipe.family is not None:
        return False  # what is annealed is a branch; see `growpipe.run.stages.branch`
    if number >= run.recipe.growth.rounds:
        return True
    if number == 0:
        return False
    found = previous_stage(run, number - 1, ANALYSE).facts
    return found.stopped is not None or found.budget_spent


def _require_growth(task: Task, model: nn.Module) -> None:
    """Refuse a network that the run cannot bring to its end, before anything is trained."""
    rehearse(task, model.to(task.run.device))
    groups = task.export(model).groups(task.run.recipe.growth.freeze)
    if not any(group.splittable for group in groups.groups):
        barrier = next((str(group.barrier) for group in groups.groups if group.barrier), "it has no channels")
        reason = growth_by_factors(groups) or f"{barrier}; see growpipe inspect"
        raise UsageError(f"the seed network has no channel group that can split: {reason}")
    check_limits(task.run.recipe, groups)
    obstacle = obstacle_to_reinitialising(model)
    if obstacle is not None and task.run.recipe.growth.finish in ("retrain", "rival"):
        raise UsageError(obstacle)


def training_config(task: Task, **more: Any) -> dict[str, Any]:
    """What a stage of training depends on, which is not how many epochs other stages have."""
    settings = task.run.recipe.train.model_dump(mode="json", exclude={"epochs", "final_epochs", "weights"})
    return {**task.config, "train": settings, **more}


def training_stage(run: Run, name: str, epochs: int, until: Until, key: str, *, fresh: bool) -> TrainingStage:
    """A stage of training that keeps its progress in the run directory until it is published."""
    told = functools.partial(run.tell_epochs, name)
    return TrainingStage(name, epochs, until, run.seed, _progress_folder(run, name), key, fresh, told)


def fit(
    task: Task,
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stage: TrainingStage,
    options: TrainingOptions | None = None,
) -> TrainFacts:
    """Train ``model`` in place, by the recipe's options if there are no ``options``.

    Writes weights, optimizer state and metrics into ``folder``.
    """
    run = task.run
    options = options or run.recipe.train
    history = train(model, optimizer, task.objective, options, stage, device=run.device, peers=run.peers)
    _write(folder, model, optimizer, history)
    done = history[-1]
    processes = run.peers.world if run.peers.world > 1 else None
    return TrainFacts(
        epochs=len(history),
        samples=sum(epoch.samples for epoch in history),
        train_loss=done.train_loss,
        validation_loss=done.validation_loss,
        validation_score=done.validation_score,
        processes=processes,
    )


def _progress_folder(run: Run, name: str) -> Path:
    """Where a stage that trains keeps its checkpoint until it is published."""
    return run.path / Path(name).parent / f".progress-{Path(name).name}"


def discard_progress(run: Run, name: str) -> None:
    """Remove the checkpoint of a stage that is published."""
    if run.peers.rank == 0:
        shutil.rmtree(_progress_folder(run, name), ignore_errors=True)
