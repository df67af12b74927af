"""How well a network does on a set: the metrics of `growpipe.metrics` on torch's tensors, or a user's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from growpipe.graph_ops.errors import UsageError
from growpipe.metrics import Answer, OfSums, Rows, jackknife_error, mean_of, named_metric
from growpipe.parallel.processes import ALONE, Processes
from growpipe.quality import Quality, TaskName
from growpipe.torch_module.outputs import output_tensors, to_numpy
from growpipe.user_code import call_user_code

__all__ = ["ACCURACY", "Metric", "Tally", "aligned", "classes_last", "metric_of", "own_metric"]

Statistics = Callable[[Any, Any], Rows]
"""``(output, target)`` to what is summed."""

_MOST_KEPT = 1 << 24  # entries of the statistics of single samples; beyond, there is no standard error


class Tally(Protocol):
    """What is known of a set whose batches come one after the other."""

    def add(self, output: Any, target: Any, samples: int, weight: float = 1.0) -> None:
        """Take in a batch.

        Args:
            output: what the network gave.
            target: what it should have given.
            samples: of the batch.
            weight: how much each sample counts.

        Raises:
            UsageError: output and target do not fit each other, or a user's metric fails.
        """

    def value(self, peers: Processes = ALONE) -> float:
        """The metric of all batches of all processes."""

    def standard_error(self) -> float | None:
        """Of the value of this process; None if the metric does not say how single samples do."""


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric.

    Attributes:
        quality: what it is, in words.
        tally: begins a set.
    """

    quality: Quality
    tally: Callable[[], Tally]


class _Sums:
    """A metric that is a function of sums over samples.

    Args:
        statistics: what is summed.
        of_sums: the metric.
    """

    def __init__(self, statistics: Statistics, of_sums: OfSums) -> None:
        self._statistics, self._of_sums = statistics, of_sums
        self._sums: Rows = np.zeros(0)
        self._rows: list[Rows] | None = []
        self._kept = 0

    def add(self, output: Any, target: Any, samples: int, weight: float = 1.0) -> None:
        rows = self._statistics(output, target)
        self._sums = weight * rows.sum(axis=0) + (self._sums if self._sums.size else 0)
        self._kept += rows.size
        if self._kept > _MOST_KEPT or weight != 1.0:
            self._rows = None
        elif self._rows is not None:
            self._rows.append(rows)

    def value(self, peers: Processes = ALONE) -> float:
        sums = self._sums
        if peers.world > 1:
            sums = np.array(peers.totals(*sums.tolist(), device=torch.device("cpu")))
        return float(self._of_sums(sums))

    def standard_error(self) -> float | None:
        return jackknife_error(np.concatenate(self._rows), self._of_sums) if self._rows else None


def metric_of(name: str, task: TaskName) -> Metric:
    """The metric that a recipe names, one of those that fit its task; ``loss`` is not among them."""
    named = named_metric(name, task)

    def statistics(output: Any, target: Any) -> Rows:
        scores, wanted = _tensors(output, target)
        answers = _answers(named.answer, scores, wanted)
        classes = scores.numel() // max(1, answers.numel())
        return named.rows(to_numpy(answers), to_numpy(wanted), classes)

    return Metric(named.quality, lambda: _Sums(statistics, named.of_sums))


def own_metric(
    reference: str, function: Callable[..., Any], options: Mapping[str, Any], quality: Quality
) -> Metric:
    """A user's metric.

    Args:
        reference: names it in messages.
        function: called with ``(output, target)``; gives a value per sample ``[samples]``, or their mean. Or
            a class with the methods ``update(output, target)`` and ``compute()``, as those of torchmetrics.
        options: what the function is called with besides, or the class is made with.
        quality: what it is, in words.
    """
    own = functools.partial(function, **options)
    if hasattr(function, "update") and hasattr(function, "compute"):
        return Metric(quality, lambda: _Accumulator(reference, own))
    return Metric(quality, lambda: _Own(reference, own))


class _Own(_Sums):
    """The mean of what a user's function gives."""

    def __init__(self, reference: str, function: Callable[..., Any]) -> None:
        super().__init__(self._called, mean_of)
        self._reference, self._function = reference, function
        self._samples = 0
        self._single = True

    def add(self, output: Any, target: Any, samples: int, weight: float = 1.0) -> None:
        self._samples = samples
        super().add(output, target, samples, weight)

    def _called(self, output: Any, target: Any) -> Rows:
        found = call_user_code(self._reference, self._function, output, target)
        values = to_numpy(torch.as_tensor(found).to(torch.float64)).reshape(-1)
        if len(values) not in (1, self._samples):
            raise UsageError(
                f"{self._reference} gave {len(values)} values for {self._samples} samples; give one for "
                "each, or their mean"
            )
        self._single &= len(values) == self._samples
        values = np.broadcast_to(values, (self._samples,))
        return np.stack([values, np.ones_like(values)], axis=1)

    def standard_error(self) -> float | None:
        return super().standard_error() if self._single else None


class _Accumulator:
    """A user's object that gathers batches by itself."""

    def __init__(self, reference: str, make: Callable[..., Any]) -> None:
        self._reference = reference
        self._object = call_user_code(reference, make)

    def add(self, output: Any, target: Any, samples: int, weight: float = 1.0) -> None:
        tensors = output_tensors(output)
        device = tensors[0].device if tensors else "cpu"
        if hasattr(self._object, "to"):
            self._object.to(device)
        call_user_code(self._reference, self._object.update, output, target)

    def value(self, peers: Processes = ALONE) -> float:
        if peers.world > 1:
            raise UsageError(
                f"{self._reference} gathers the batches of one process alone; train with one process, or "
                "give a function of (output, target)"
            )
        return float(call_user_code(self._reference, self._object.compute))

    def standard_error(self) -> float | None:
        return None


# What a network's outputs say, in the shape of the targets: found on their device, which little then leaves.


def _tensors(output: Any, target: Any) -> tuple[Tensor, Tensor]:
    tensors = output_tensors(output)
    if not tensors or not isinstance(target, Tensor) or not target.ndim:
        raise UsageError(
            "the metric needs a tensor of scores and a tensor of targets, with samples on axis 0"
        )
    return tensors[0], target


def _answers(answer: Answer, scores: Tensor, target: Tensor) -> Tensor:
    if answer == "numbers":
        return aligned(scores, target).to(torch.float64)
    if answer == "labels":
        found = aligned(scores, target)
        return (found > 0).long().masked_fill(found.isnan(), -1)
    found = classes_last(scores, target)
    # A NaN is the largest for argmax, and would make a broken network look like a constant one.
    broken = found.isnan().any(dim=-1)
    if answer == "classes":
        return found.argmax(dim=-1).masked_fill(broken, -1)
    known = target.clamp(0, found.shape[-1] - 1).unsqueeze(-1)
    own, position = found.gather(-1, known), torch.arange(found.shape[-1], device=found.device)
    before = (found > own) | ((found == own) & (position < known))  # of equal scores the first one counts
    outside = target != known.squeeze(-1)
    return before.sum(dim=-1).masked_fill(broken | outside, -1)


def aligned(values: Tensor, target: Tensor) -> Tensor:
    """Values in the shape of their targets: ``[samples, 1]`` for ``[samples]`` and the like.

    Raises:
        UsageError: there is not one value per target. Torch would repeat some, and judge them so.
    """
    if values.shape[:1] != target.shape[:1] or values.numel() != target.numel():
        raise UsageError(
            f"outputs {_shown(values)} and targets {_shown(target)} do not fit: every target needs an output"
        )
    return values.reshape(target.shape)


def classes_last(scores: Tensor, target: Tensor) -> Tensor:
    """Scores ``[samples, ..., classes]`` for integer targets ``[samples, ...]``, given so or with the classes
    on axis 1, as torch has them. If both fit, axis 1 is that of the classes.

    Raises:
        UsageError: the scores are not those of such targets.
    """
    integers = not target.is_floating_point() and target.dtype != torch.bool
    if integers and scores.ndim == target.ndim + 1:
        if scores.shape[:1] + scores.shape[2:] == target.shape:
            return scores.movedim(1, -1)
        if scores.shape[:-1] == target.shape:
            return scores
    raise UsageError(
        f"scores {_shown(scores)} and targets {_shown(target)} are not those of a classification, which has "
        "scores [samples, classes, ...] or [samples, ..., classes] and integer targets [samples, ...]"
    )


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


ACCURACY = metric_of("accuracy", "classification")
