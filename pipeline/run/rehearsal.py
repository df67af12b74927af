"""One batch through network, loss, metric and optimizer: what does not fit is said before training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from growpipe.analyser.samples import MicroBatch, check_mean_loss
from growpipe.data.loader_items import as_tuple, described, length_of, pairs, to_device
from growpipe.graph_ops.errors import CheckFailed, UsageError
from growpipe.progress import log
from growpipe.run.task import Task
from growpipe.seeding import seed_everything
from growpipe.torch_module.outputs import evaluation_mode
from growpipe.training.metrics import Metric
from growpipe.training.optimizers import try_optimizer
from growpipe.user_code import call_user_code

__all__ = ["rehearse"]


def rehearse(task: Task, model: nn.Module) -> None:
    """Try network, loss, metric and optimizer on the first training batch.

    Args:
        task: gives data, loss and metric.
        model: on the device of the run; it is not changed.

    Raises:
        UsageError: the network or the loss fails, the loss is not finite or not a mean over samples, or
            the metric cannot be measured, or the optimizer's state cannot follow growth.

    A network that ends in Softmax before the task's cross entropy is told in a warning on stderr.
    """
    objective, device = task.objective, task.run.device
    seed_everything(task.run.seed, "rehearsal")
    inputs, target = next(pairs(objective.loaders.train), (None, None))
    if target is None:
        raise UsageError("the training loader gave no batches; look at the recipe's data")
    inputs, target = to_device(as_tuple(inputs), device), to_device(target, device)
    with torch.no_grad(), evaluation_mode(model):
        try:
            check_mean_loss(
                lambda x, y: float(objective.loss_fn(model(*x), y)),
                MicroBatch(inputs, target, length_of(inputs), 0, 0, 1),
            )
            output = call_user_code("the network", model, *inputs)
            _warn_of_softmax(task, output)
            other_task = task.run.recipe.loss is None and bool(_hint(task, target))
            _try_metric(objective.metric, output, target, length_of(inputs), other_task)
        except CheckFailed:
            value = float(objective.loss_fn(model(*inputs), target))
            raise UsageError(f"the loss is {value} on the first training batch; look at the data") from None
        except UsageError as error:
            batch = f"the first training batch has inputs {described(inputs)} and targets {described(target)}"
            raise UsageError(f"{error}{_hint(task, target)}; {batch}") from error

    def loss(tried: nn.Module) -> torch.Tensor:
        return objective.loss_fn(call_user_code("the network", tried, *inputs), target)

    try_optimizer(model, task.run.recipe.train, task.run.folder, loss)


def _try_metric(metric: Metric, output: Any, target: Any, samples: int, other_task: bool) -> None:
    tally = metric.tally()
    try:
        tally.add(output, target, samples)
        tally.value()
    except UsageError as error:
        if other_task:  # which is told instead
            raise
        raise UsageError(
            f"the metric {metric.quality.name} does not fit: {error}; to judge networks by the loss set "
            'metric = "loss" in the recipe, or give a metric of your own'
        ) from error


def _warn_of_softmax(task: Task, output: Any) -> None:
    """Say so if scores are probabilities already: the task's own loss takes the softmax of them again."""
    recipe = task.run.recipe
    if recipe.task != "classification" or recipe.loss or not isinstance(output, torch.Tensor):
        return
    sums = output.sum(1)
    if output.min() >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        log(
            "warning: the network's outputs are probabilities, and the loss of a classification task applies "
            "softmax itself, so training will be poor; remove the network's last Softmax"
        )


def _hint(task: Task, target: Any) -> str:
    """Which ``task`` fits the targets, if it is another than the recipe's."""
    recipe = task.run.recipe
    if recipe.task != "classification" or not isinstance(target, torch.Tensor):
        return ""
    if not target.is_floating_point() and target.dtype != torch.bool:
        return ""
    if target.unique().tolist() in ([0.0], [1.0], [0.0, 1.0]):
        fitting = "binary" if target.numel() == len(target) else "multilabel"
        return f'; for targets of 0 and 1 set task = "{fitting}" in the recipe'
    return '; for targets that are not classes set task = "regression" in the recipe'
