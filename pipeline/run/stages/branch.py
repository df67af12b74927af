"""The branch of a round in a family: the network of the round, annealed; the trunk goes on without it."""

from __future__ import annotations

import json
from pathlib import Path

from growpipe.run.facts import JudgedFacts
from growpipe.run.stages.judged import train_and_judge
from growpipe.run.stages.names import BRANCH, OPTIMIZER, TRAIN, WEIGHTS, previous_stage, round_stage
from growpipe.run.stages.network import history_of
from growpipe.run.stages.train import discard_progress, training_config, training_stage
from growpipe.run.store import StageRecord
from growpipe.run.task import Task
from growpipe.torch_module.grow_module import load_grown
from growpipe.torch_module.optimizer_state import load_optimizer
from growpipe.training.optimizers import make_optimizer

__all__ = ["train_branch"]


def train_branch(task: Task, number: int) -> StageRecord[JudgedFacts]:
    """Train the network of round ``number`` on for ``train.final_epochs``, while the rate falls to zero.

    Publishes the files of a train stage, and ``growth.onnx``.

    Raises:
        UsageError: the round is not trained yet, or training fails.
        CheckFailed: the graph is wrong, or computes something else than the module.
    """
    run, recipe = task.run, task.run.recipe
    stage = round_stage(number, BRANCH)
    trunk, parent = previous_stage(run, number, TRAIN), history_of(run, number)
    epochs = recipe.train.final_epochs
    config = training_config(task, epochs=epochs, inputs=recipe.inputs, outputs=recipe.outputs)
    inputs = trunk.inputs(WEIGHTS, OPTIMIZER)
    if parent is not None:
        inputs |= parent.as_input()

    def produce(folder: Path) -> JudgedFacts:
        model = load_grown(task.build_seed(), trunk.folder / WEIGHTS).to(run.device)
        optimizer = make_optimizer(model, recipe.train, run.folder)
        load_optimizer(optimizer, model, trunk.folder / OPTIMIZER)
        key = json.dumps([config, inputs], sort_keys=True)
        training = training_stage(run, stage.name, epochs, "end", key, fresh=False)
        return train_and_judge(task, folder, model, optimizer, training, parent)

    record = run.stage(stage, produce, config=config, inputs=inputs, everywhere=True)
    discard_progress(run, stage.name)
    return record
