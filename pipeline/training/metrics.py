"""How well a network does on a set: metrics that are functions of sums over samples, or a user's own.

Sums over samples are the same for any number of batches and of processes. They also give the standard error
of any metric, by leaving out one sample at a time (the jackknife: Tukey, Ann. Math. Stat. 29, 1958, 614).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from growpipe.graph_ops.errors import UsageError
from growpipe.parallel.processes import ALONE, Processes
from growpipe.quality import METRICS, Quality, TaskName
from growpipe.torch_module.outputs import output_tensors
from growpipe.user_code import call_user_code

__all__ = ["ACCURACY", "Metric", "Tally", "aligned", "classes_last", "metric_of", "own_metric"]

Statistics = Callable[[Any, Any], Tensor]
"""``(output, target)`` to what is summed, float64 [samples, statistics]."""

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
        of_sums: the metric, sums ``[..., statistics]`` to ``[...]``.
    """

    def __init__(self, statistics: Statistics, of_sums: Callable[[Tensor], Tensor]) -> None:
        self._statistics, self._of_sums = statistics, of_sums
        self._sums = torch.zeros(0, dtype=torch.float64)
        self._rows: list[Tensor] | None = []
        self._kept = 0

    def add(self, output: Any, target: Any, samples: int, weight: float = 1.0) -> None:
        rows = self._statistics(output, target).detach().to("cpu", torch.float64)
        self._sums = weight * rows.sum(0) + (self._sums if self._sums.numel() else 0)
        self._kept += rows.numel()
        if self._kept > _MOST_KEPT or weight != 1.0:
            self._rows = None
        elif self._rows is not None:
            self._rows.append(rows)

    def value(self, peers: Processes = ALONE) -> float:
        sums = self._sums
        if peers.world > 1:
            totals = peers.totals(*sums.tolist(), device=torch.device("cpu"))
            sums = torch.tensor(totals, dtype=torch.float64)
        return float(self._of_sums(sums))

    def standard_error(self) -> float | None:
        if not self._rows:
            return None
        rows = torch.cat(self._rows)
        if len(rows) < 2:
            return None
        without = self._of_sums(rows.sum(0) - rows)
        spread = float(((without - without.mean()) ** 2).sum())
        error = math.sqrt((len(rows) - 1) / len(rows) * spread)
        return error if math.isfinite(error) else None


def metric_of(name: str, task: TaskName) -> Metric:
    """The metric that a recipe names, one of those that fit its task; ``loss`` is not among them.

    What ``accuracy``, ``f1`` and ``mean_iou`` count depends on the task: classes, or labels of 0 and 1.
    """
    statistics, of_sums = {
        "accuracy": (_mean_of(_classes_right if task == "classification" else _labels_right), _mean),
        "top5_accuracy": (_mean_of(_among_the_first_five), _mean),
        "f1": (_counts_of(task), _f1),
        "mean_iou": (_counts_of(task), _mean_iou),
        "mae": (_mean_of(lambda y, t: (y - t).abs(), _numbers), _mean),
        "rmse": (_mean_of(lambda y, t: (y - t).square(), _numbers), lambda sums: _mean(sums).sqrt()),
        "r2": (_residuals, _r2),
    }[name]
    return Metric(METRICS[name], lambda: _Sums(statistics, of_sums))


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
        super().__init__(self._called, _mean)
        self._reference, self._function = reference, function
        self._samples = 0
        self._single = True

    def add(self, output: Any, target: Any, samples: int, weight: float = 1.0) -> None:
        self._samples = samples
        super().add(output, target, samples, weight)

    def _called(self, output: Any, target: Any) -> Tensor:
        found = call_user_code(self._reference, self._function, output, target)
        values = torch.as_tensor(found).detach().to("cpu", torch.float64).reshape(-1)
        if len(values) not in (1, self._samples):
            raise UsageError(
                f"{self._reference} gave {len(values)} values for {self._samples} samples; give one for "
                "each, or their mean"
            )
        self._single &= len(values) == self._samples
        values = values.expand(self._samples)
        return torch.stack([values, torch.ones_like(values)], dim=1)

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


# What single samples contribute.


def _mean(sums: Tensor) -> Tensor:
    return sums[..., 0] / sums[..., 1]


def _tensors(output: Any, target: Any) -> tuple[Tensor, Tensor]:
    tensors = output_tensors(output)
    if not tensors or not isinstance(target, Tensor) or not target.ndim:
        raise UsageError(
            "the metric needs a tensor of scores and a tensor of targets, with samples on axis 0"
        )
    return tensors[0], target


def _mean_of(
    entries: Callable[[Tensor, Tensor], Tensor],
    fit: Callable[[Any, Any], tuple[Tensor, Tensor]] = _tensors,
) -> Statistics:
    """The mean of a sample's entries, and 1."""

    def statistics(output: Any, target: Any) -> Tensor:
        scores, wanted = fit(output, target)
        means = entries(scores, wanted).reshape(len(wanted), -1).to(torch.float64).mean(dim=1)
        return torch.stack([means, torch.ones_like(means)], dim=1)

    return statistics


def _numbers(output: Any, target: Any) -> tuple[Tensor, Tensor]:
    values, wanted = _tensors(output, target)
    return aligned(values, wanted).to(torch.float64), wanted.to(torch.float64)


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


def _classes_right(scores: Tensor, target: Tensor) -> Tensor:
    found = classes_last(scores, target)
    # A NaN is the largest for argmax, and would make a broken network look like a constant one.
    return (found.argmax(dim=-1) == target) & ~found.isnan().any(dim=-1)


def _among_the_first_five(scores: Tensor, target: Tensor) -> Tensor:
    found = classes_last(scores, target)
    first = found.topk(min(5, found.shape[-1]), dim=-1).indices
    return (first == target.unsqueeze(-1)).any(dim=-1) & ~found.isnan().any(dim=-1)


def _labels_right(scores: Tensor, target: Tensor) -> Tensor:
    found = aligned(scores, target)
    return ((found > 0) == (target > 0.5)) & ~found.isnan()


def _counts_of(task: TaskName) -> Statistics:
    """Per sample and class: true positives, false positives, false negatives, one after the other."""

    def statistics(output: Any, target: Any) -> Tensor:
        scores, wanted = _tensors(output, target)
        if task == "classification":
            found = classes_last(scores, wanted)
            classes = found.shape[-1]
            given = torch.nn.functional.one_hot(found.argmax(dim=-1), classes).bool()
            right = wanted.unsqueeze(-1) == torch.arange(classes, device=wanted.device)
        else:
            given, right = aligned(scores, wanted) > 0, wanted > 0.5
            if task == "binary":
                given, right = given.unsqueeze(-1), right.unsqueeze(-1)
            else:  # the labels of [samples, labels, ...] are on axis 1
                given, right = given.movedim(1, -1), right.movedim(1, -1)
        counts = [given & right, given & ~right, ~given & right]
        return torch.cat([count.reshape(len(wanted), -1, count.shape[-1]).sum(dim=1) for count in counts], 1)

    return statistics


def _f1(sums: Tensor) -> Tensor:
    """The mean of F1 over classes that were there or were given."""
    right, wrong, missed = sums.chunk(3, dim=-1)
    return (2 * right / (2 * right + wrong + missed)).nanmean(dim=-1)


def _mean_iou(sums: Tensor) -> Tensor:
    """The mean of intersection over union over classes that were there or were given."""
    right, wrong, missed = sums.chunk(3, dim=-1)
    return (right / (right + wrong + missed)).nanmean(dim=-1)


def _residuals(output: Any, target: Any) -> Tensor:
    """Squared residuals, targets and squared targets of every entry of a sample, and 1."""
    values, wanted = (numbers.reshape(len(numbers), -1) for numbers in _numbers(output, target))
    parts = [(values - wanted).square(), wanted, wanted.square(), torch.ones_like(wanted[:, :1])]
    return torch.cat(parts, dim=1)


def _r2(sums: Tensor) -> Tensor:
    """The coefficient of determination, the mean over entries whose targets differ."""
    count = sums[..., -1:]
    residuals, total, squares = sums[..., :-1].chunk(3, dim=-1)
    variation = squares - total.square() / count
    constant = variation <= 1e-12 * squares
    return (1 - residuals / variation.masked_fill(constant, math.nan)).nanmean(dim=-1)


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


ACCURACY = metric_of("accuracy", "classification")
