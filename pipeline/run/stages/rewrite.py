"""The rewrite stage of a round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import nn

from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import CheckFailed, UsageError
from growpipe.graph_ops.files.load_save import save_model
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.run.facts import NetworkSize, RewriteFacts
from growpipe.run.stages.names import (
    ANALYSE,
    CHILD,
    EXPORT,
    GROWTH_FORM,
    OPTIMIZER,
    PLAN,
    PLAN_FILES,
    REWRITE,
    TRAIN,
    WEIGHTS,
    previous_stage,
    round_stage,
)
from growpipe.run.stages.network import trained_network
from growpipe.run.store import StageRecord
from growpipe.run.task import Task
from growpipe.torch_module.added_copies import gradient_ratio
from growpipe.torch_module.export import named_tensors
from growpipe.torch_module.grow_module import grow, save_grown
from growpipe.torch_module.optimizer_state import load_optimizer, save_optimizer
from growpipe.torch_module.outputs import to_numpy
from growpipe.training.optimizers import make_optimizer

__all__ = ["rewrite_round"]


def rewrite_round(task: Task, number: int) -> StageRecord[RewriteFacts]:
    """Apply the plan to the ONNX graph and to the torch module, optimizer included; the two must agree.

    Publishes ``child.onnx``, ``weights.safetensors`` and ``optimizer.safetensors``.

    Raises:
        CheckFailed: a grown parameter differs between the two.
        UsageError: the round has no plan: the analysis is not done yet, or found nothing to split.
    """
    run = task.run
    trained, exported = previous_stage(run, number, TRAIN), previous_stage(run, number, EXPORT)
    analysed = previous_stage(run, number, ANALYSE)
    if analysed.facts.stopped is not None:
        raise UsageError(f"round {number} has nothing to rewrite: {analysed.facts.stopped}")

    def produce(folder: Path) -> RewriteFacts:
        network = trained_network(task, number)
        plan = SplitPlan.load(analysed.folder / PLAN)
        child = grow_graph(network.export.graph, plan, network.export.solution)
        save_model(child, folder / CHILD)
        optimizer = make_optimizer(network.module, run.recipe.train, run.folder)
        load_optimizer(optimizer, network.module, trained.folder / OPTIMIZER)
        grown = grow(network.module, plan, optimizer=optimizer)
        _assert_lockstep(grown, child)
        save_grown(grown, folder / WEIGHTS)
        save_optimizer(optimizer, grown, folder / OPTIMIZER)
        ratio = gradient_ratio(grown, plan, task.loss_on_a_batch)
        return RewriteFacts(NetworkSize.of(network.export.groups(), plan.widths), ratio)

    config = {**task.config, "train": run.recipe.train.optimizer}
    inputs = trained.inputs(WEIGHTS, OPTIMIZER) | exported.inputs(GROWTH_FORM) | analysed.inputs(*PLAN_FILES)
    return run.stage(round_stage(number, REWRITE), produce, config=config, inputs=inputs)


def _assert_lockstep(grown: nn.Module, child: ir.Model) -> None:
    tensors = named_tensors(grown)
    for name, value in child.graph.initializers.items():
        if name not in tensors or value.const_value is None:
            continue  # a constant of the graph alone
        if not np.array_equal(value.const_value.numpy(), to_numpy(tensors[name]), equal_nan=True):
            raise CheckFailed(f"after the split {name!r} differs between the torch module and the ONNX graph")
