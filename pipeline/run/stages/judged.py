"""A network beside the rounds, trained, exported and judged by one stage: a control, a rival, a branch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.files.load_save import save_model
from growpipe.run.facts import JudgedFacts, NetworkSize
from growpipe.run.stages.check import structure_problems
from growpipe.run.stages.export import divergence_from_torch
from growpipe.run.stages.names import GROWTH_FORM
from growpipe.run.stages.network import add_history
from growpipe.run.stages.score import score_on_test
from growpipe.run.stages.train import fit
from growpipe.run.store import PublishedFile
from growpipe.run.task import Task
from growpipe.training.options import TrainingOptions
from growpipe.training.train import TrainingStage

__all__ = ["train_and_judge"]


def train_and_judge(
    task: Task,
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stage: TrainingStage,
    parent: PublishedFile | None = None,
    options: TrainingOptions | None = None,
) -> JudgedFacts:
    """Train ``model`` to the end of ``stage``; write the files of a train stage, and ``growth.onnx``.

    Args:
        task: the task of the run.
        folder: of the stage.
        model: on the device of the run.
        optimizer: of the model's parameters.
        stage: how to train.
        parent: the graph whose growth history the network continues; None if it has none.
        options: of the training; None for those of the recipe.

    Raises:
        UsageError: training fails.
        CheckFailed: the graph is wrong, or computes something else than the module.
    """
    trained = fit(task, folder, model, optimizer, stage, options)
    export = task.export(model)
    size = NetworkSize.of(export.groups())
    if task.run.peers.rank:
        return JudgedFacts(size, trained, None)
    if parent is not None:
        add_history(export.graph, parent)
    graph = folder / GROWTH_FORM
    save_model(export.graph, graph)
    divergence_from_torch(task, model, graph, stage.name)
    for problem in structure_problems(graph):
        raise CheckFailed(f"{stage.name} failed its check: {problem}")
    return JudgedFacts(size, trained, score_on_test(task, graph))
