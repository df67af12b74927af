"""The export stage of a round."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from growpipe.checks.measure.compare import compare, run_model
from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.files.load_save import load_model, save_model
from growpipe.run.facts import ExportFacts, NetworkSize
from growpipe.run.stages.names import EXPORT, GROWTH_FORM, TRAIN, WEIGHTS, previous_stage, round_stage
from growpipe.run.stages.network import history_of, trained_network
from growpipe.run.store import StageRecord
from growpipe.run.task import Task, as_feed, input_names
from growpipe.torch_module.outputs import output_tensors, to_numpy

__all__ = ["EXPORT_TOLERANCE", "divergence_from_torch", "export_round"]

EXPORT_TOLERANCE = 1e-4  # relative to the output's scale, float32 through two runtimes


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
        save_model(network.export.graph, folder / GROWTH_FORM)
        divergence = divergence_from_torch(task, network.module, folder / GROWTH_FORM, f"round {number}")
        return ExportFacts(NetworkSize.of(network.export.groups()), divergence)

    config = {**task.config, "inputs": run.recipe.inputs, "outputs": run.recipe.outputs}
    return run.stage(round_stage(number, EXPORT), produce, config=config, inputs=inputs)


def divergence_from_torch(task: Task, module: nn.Module, path: Path, where: str) -> float:
    """How far the graph at ``path`` is from its module, as a share of the output's scale.

    Args:
        task: gives the inputs.
        module: on the CPU, in evaluation mode.
        path: the graph.
        where: names the network in the message.

    Raises:
        CheckFailed: they differ by more than rounding explains.
    """
    examples = task.example_inputs()
    with torch.no_grad():
        expected = map(to_numpy, output_tensors(module(*examples)))
    outputs = run_model(path, as_feed(input_names(load_model(path)), examples))
    divergence = compare(dict(zip(outputs, expected, strict=True)), outputs).relative
    if not divergence <= EXPORT_TOLERANCE:
        raise CheckFailed(
            f"the graph of {where} differs from torch by {divergence:.1e} of the output's "
            f"scale, more than {EXPORT_TOLERANCE:.0e}; compare them operator by operator"
        )
    return divergence
