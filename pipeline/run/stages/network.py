"""The trained network of a round: loaded, exported and solved once, for all stages that follow."""

from __future__ import annotations

import onnx_ir as ir

from growpipe.graph_ops.files.load_save import load_model
from growpipe.run.stages.names import (
    ANALYSE,
    CHILD,
    EXPORT,
    GROWTH_FORM,
    REWRITE,
    TRAIN,
    WEIGHTS,
    previous_stage,
)
from growpipe.run.store import PublishedFile, Run
from growpipe.run.task import Task, TrainedNetwork
from growpipe.torch_module.grow_module import load_grown

__all__ = ["add_history", "history_of", "trained_network"]

_HISTORY_PREFIX = "growpipe."


def trained_network(task: Task, number: int) -> TrainedNetwork:
    """The network that round ``number`` has trained.

    Raises:
        UsageError: the round has no train stage yet.
    """
    weights = previous_stage(task.run, number, TRAIN).file(WEIGHTS)
    parent = history_of(task.run, number)
    key = (weights.digest, parent.digest if parent else "")
    if task.network is None or task.network.key != key:
        task.network = None  # never two networks in memory
        module = load_grown(task.build_seed(), weights.path).eval()
        export = task.export(module)
        if parent is not None:
            add_history(export.graph, parent)
        task.network = TrainedNetwork(key, module, export)
    return task.network


def add_history(graph: ir.Model, parent: PublishedFile) -> None:
    """Give an exported graph the growth history of its parent's graph: the exporter knows nothing of it."""
    history = load_model(parent.path).metadata_props
    graph.metadata_props.update(
        {key: value for key, value in history.items() if key.startswith(_HISTORY_PREFIX)}
    )


def history_of(run: Run, number: int) -> PublishedFile | None:
    """The graph whose growth history the network of round ``number`` continues; None in the first round.

    Raises:
        UsageError: the round before has not come so far.
    """
    if number == 0:
        return None
    if previous_stage(run, number - 1, ANALYSE).facts.stopped is None:
        return previous_stage(run, number - 1, REWRITE).file(CHILD)
    return previous_stage(run, number - 1, EXPORT).file(GROWTH_FORM)
