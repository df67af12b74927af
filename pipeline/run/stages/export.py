"""The export stage of a round."""

from __future__ import annotations

from pathlib import Path

import torch

from growpipe.checks.measure.compare import compare, run_model
from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.files.load_save import save_model
from growpipe.run.facts import ExportFacts, NetworkSize
from growpipe.run.stages.names import EXPORT, GROWTH_FORM, TRAIN, WEIGHTS, previous_stage, round_stage
from growpipe.run.stages.network import history_of, trained_network
from growpipe.run.store import StageRecord
from growpipe.run.task import Task, as_feed, input_names
from growpipe.torch_module.outputs import output_tensors, to_numpy

__all__ = ["export_round"]

_EXPORT_TOLERANCE = 1e-4  # relative to the output's scale, float32 through two runtimes


def export_round(task: Task, number: int) -> StageRecord[ExportFacts]:
    """Export the trained network to growth form; torch and onnxruntime must agree.

    Publishes ``growth.onnx``.

    Raises:
        CheckFailed: a parameter or an output differs.
        UsageError: the round has no train stage yet.
    """
    run = task.run
    inputs = previous_stage(run, number, TRAIN).inputs(WEIGHTS)
    parent = history_of(run, number)
    if parent is not None:
        inputs |= parent.as_input()

    def produce(folder: Path) -> ExportFacts:
        network = trained_network(task, number)
        graph = network.export.graph
        save_model(graph, folder / GROWTH_FORM)
        examples = task.example_inputs()
        with torch.no_grad():
            expected = map(to_numpy, output_tensors(network.module(*examples)))
        outputs = run_model(folder / GROWTH_FORM, as_feed(input_names(graph), examples))
        divergence = compare(dict(zip(outputs, expected, strict=True)), outputs).relative
        if not divergence <= _EXPORT_TOLERANCE:
            raise CheckFailed(
                f"the graph of round {number} differs from torch by {divergence:.1e} of the output's "
                f"scale, more than {_EXPORT_TOLERANCE:.0e}; compare them operator by operator"
            )
        return ExportFacts(NetworkSize.of(network.export.groups()), divergence)

    config = {**task.config, "inputs": run.recipe.inputs, "outputs": run.recipe.outputs}
    return run.stage(round_stage(number, EXPORT), produce, config=config, inputs=inputs)
