"""What a network is trained for, and how well it does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from growpipe.data import Loaders
from growpipe.data.loader_items import as_tuple, length_of, to_device
from growpipe.graph_ops.errors import UsageError
from growpipe.parallel.distributed import pieces
from growpipe.parallel.processes import ALONE, Processes
from growpipe.torch_module.outputs import LossFunction, evaluation_mode
from growpipe.training.metrics import ACCURACY, Metric
from growpipe.user_code import call_user_code

__all__ = ["Evaluation", "Objective", "evaluate"]


@dataclass(frozen=True, eq=False)
class Objective:
    """What a network is trained for.

    Attributes:
        loaders: the data.
        loss_fn: ``(output, target)`` to a mean over samples.
        metric: what networks are judged by.
    """

    loaders: Loaders
    loss_fn: LossFunction
    metric: Metric = ACCURACY


@dataclass(frozen=True)
class Evaluation:
    """How well a network does on a set.

    Attributes:
        loss: the mean over samples.
        score: the objective's metric.
    """

    loss: float
    score: float


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    objective: Objective,
    *,
    device: str = "cpu",
    peers: Processes = ALONE,
) -> Evaluation:
    """Loss and metric in evaluation mode.

    Args:
        model: on ``device``; its mode is restored afterwards.
        batches: gives ``(inputs, target)`` pairs, e.g. one of the objective's loaders.
        objective: its loss and its metric.
        device: where the batches are brought to.
        peers: the processes that share the batches; all get the same figures.

    Raises:
        UsageError: ``batches`` is empty, or the network, the loss or the metric fails.
    """
    total, samples = 0.0, 0.0
    tally = objective.metric.tally()
    with evaluation_mode(model):
        for piece in pieces(batches, peers, "evaluate"):
            target = to_device(piece.target, device)
            output = call_user_code("the network", model, *as_tuple(to_device(piece.inputs, device)))
            total += float(objective.loss_fn(output, target)) * piece.samples
            own = length_of(piece.inputs)
            tally.add(output, target, own, piece.samples / own if own else 0.0)
            samples += piece.samples
    if peers.world > 1:
        total, samples = peers.totals(total, samples, device=torch.device("cpu"))
    if samples == 0:
        raise UsageError("a data loader gave no batches; look at the recipe's data")
    return Evaluation(total / samples, tally.value(peers))
