"""The share of a sample's targets that a network gets right."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from growpipe.graph_ops.errors import UsageError
from growpipe.torch_module.outputs import output_tensors

__all__ = ["Metric", "binary_loss", "samples_right"]

Metric = Literal["classes", "labels"]
"""``classes``: the class with the highest score is the target. ``labels``: every score is above 0 if its
target is 1, and below 0 if its target is 0."""


def samples_right(metric: Metric, output: Any, target: Any) -> Tensor:
    """Per sample the share of its targets that is right, float64 [samples].

    Args:
        metric: what right means.
        output: what the network gave. The first tensor holds the scores: ``[samples, classes, ...]`` or
            ``[samples, ..., classes]`` for ``classes``, one per target for ``labels``.
        target: integer classes ``[samples, ...]`` for ``classes``; 0 and 1 for ``labels``.

    Raises:
        UsageError: scores and targets do not fit each other.
    """
    tensors = output_tensors(output)
    if not tensors or not isinstance(target, Tensor) or not target.ndim:
        raise UsageError("accuracy needs a tensor of scores and a tensor of targets, with samples on axis 0")
    scores = tensors[0]
    right = _classes_right(scores, target) if metric == "classes" else _labels_right(scores, target)
    return right.reshape(len(target), -1).to(torch.float64).mean(dim=1)


def binary_loss(output: Tensor, target: Tensor) -> Tensor:
    """The mean cross entropy of scores (logits) with targets of 0 and 1, as many as there are scores."""
    scores = output.reshape(target.shape)
    return nn.functional.binary_cross_entropy_with_logits(scores, target.to(scores.dtype))


def _classes_right(scores: Tensor, target: Tensor) -> Tensor:
    integers = not target.is_floating_point() and target.dtype != torch.bool
    if integers and scores.ndim == target.ndim + 1:
        if scores.shape[:1] + scores.shape[2:] == target.shape:
            return scores.argmax(dim=1) == target
        if scores.shape[:-1] == target.shape:
            return scores.argmax(dim=-1) == target
    raise UsageError(
        f"scores {_shown(scores)} and targets {_shown(target)} are not those of a classification, which has "
        "scores [samples, classes, ...] and integer targets [samples, ...]"
    )


def _labels_right(scores: Tensor, target: Tensor) -> Tensor:
    if scores.shape[:1] != target.shape[:1] or scores.numel() != target.numel():
        raise UsageError(
            f"scores {_shown(scores)} and targets {_shown(target)} do not fit: every target of 0 or 1 needs "
            "a score"
        )
    return (scores.reshape(target.shape) > 0) == (target > 0.5)


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
