"""The control of a run: the seed network, trained as long as the grown one, never grown."""

from __future__ import annotations

import json
from pathlib import Path

from growpipe.graph_ops.files.load_save import save_model
from growpipe.run.facts import ControlFacts, NetworkSize
from growpipe.run.stages.check import accuracy_on_test
from growpipe.run.stages.names import CONTROL, GROWTH_FORM
from growpipe.run.stages.train import discard_progress, fit, training_config, training_stage
from growpipe.run.store import StageRecord
from growpipe.run.task import Task
from growpipe.training.train import make_optimizer

__all__ = ["train_control"]


def train_control(task: Task, epochs: int) -> StageRecord[ControlFacts]:
    """Train the seed network for as many epochs as the grown network had in all.

    Publishes the files of a train stage, and ``growth.onnx``.

    Raises:
        UsageError: training fails.
    """
    run = task.run
    config = training_config(task, epochs)

    def produce(folder: Path) -> ControlFacts:
        model = task.build_seed().to(run.device)
        optimizer = make_optimizer(model, run.recipe.train)
        stage = training_stage(run, CONTROL.name, epochs, "end", json.dumps([config, {}], sort_keys=True))
        trained = fit(task, folder, model, optimizer, stage)
        export = task.export(model)
        size = NetworkSize.of(export.groups())
        if run.peers.rank:
            return ControlFacts(size, trained, None)
        save_model(export.graph, folder / GROWTH_FORM)
        return ControlFacts(size, trained, accuracy_on_test(task, folder / GROWTH_FORM))

    record = run.stage(CONTROL, produce, config=config, inputs={}, everywhere=True)
    discard_progress(run, CONTROL.name)
    return record
