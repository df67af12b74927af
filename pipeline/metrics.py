"""Metrics as functions of sums over samples, in numpy: what a recipe and a policy mean by a metric's name.

Sums over samples are the same for any number of batches and of processes. They also give the standard error
of any metric, by leaving out one sample at a time (the jackknife: Tukey, Ann. Math. Stat. 29, 1958, 614), and
that of the difference of two networks on the same samples, which is far smaller than that of either.
Imports no torch: `growpipe check` computes the same metrics where torch is missing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from growpipe.graph_ops.arrays import AnyArray
from growpipe.quality import METRICS, Quality, Score, TaskName

__all__ = [
    "Answer",
    "NamedMetric",
    "Rows",
    "difference_error",
    "jackknife_error",
    "mean_of",
    "named_metric",
    "score_of",
    "wilson_interval",
]

Rows = npt.NDArray[np.float64]
"""What is summed: per sample its statistics, ``[samples, statistics]``."""

OfSums = Callable[[Rows], Rows]
"""Sums ``[..., statistics]`` to metrics ``[...]``."""

Answer = Literal["classes", "ranks", "labels", "numbers"]
"""What a network's outputs are reduced to, in the shape of the targets.

- ``classes``: the class of the highest score; -1 if a score is NaN.
- ``ranks``: how many scores come before that of the right class; -1 if a score is NaN.
- ``labels``: 1 for a score above the threshold and 0 for others; -1 for NaN.
- ``numbers``: the outputs, in float64.
"""

_LEVEL = 0.95
_FIRST = 5  # the classes that count for ``top5_accuracy``


@dataclass(frozen=True)
class NamedMetric:
    """A metric that has a name.

    Attributes:
        quality: what it is, in words.
        answer: what the network's outputs are reduced to first.
        rows: ``(answers, targets, classes)`` to what is summed. Answers and targets have one shape
            ``[samples, ...]``; ``classes`` is how many classes the network knows, which counts for
            ``classes`` alone.
        of_sums: the metric.
    """

    quality: Quality
    answer: Answer
    rows: Callable[[AnyArray, AnyArray, int], Rows]
    of_sums: OfSums


def named_metric(name: str, task: TaskName) -> NamedMetric:
    """One of `growpipe.quality.METRICS_OF_TASKS`; ``loss`` is not among them.

    What ``accuracy``, ``f1`` and ``mean_iou`` count depends on the task: classes, or labels of 0 and 1.
    """
    own: Answer = "classes" if task == "classification" else "labels"
    answer, rows, of_sums = {
        "accuracy": (own, _classes_right if own == "classes" else _labels_right, mean_of),
        "top5_accuracy": ("ranks", _among_the_first, mean_of),
        "f1": (own, _counts_of(task), _f1),
        "mean_iou": (own, _counts_of(task), _mean_iou),
        "mae": ("numbers", _entries(lambda y, t: np.abs(y - t)), mean_of),
        "rmse": ("numbers", _entries(lambda y, t: np.square(y - t)), lambda sums: np.sqrt(mean_of(sums))),
        "r2": ("numbers", _residuals, _r2),
    }[name]
    assert answer in get_args(Answer)
    return NamedMetric(METRICS[name], answer, rows, of_sums)


def jackknife_error(rows: Rows, of_sums: OfSums) -> float | None:
    """The standard error of a metric; None for fewer than two samples, or if it is not finite."""
    return _spread(of_sums(rows.sum(0) - rows)) if len(rows) > 1 else None


def difference_error(first: Rows, second: Rows, of_sums: OfSums) -> float | None:
    """The standard error of the difference of a metric of two networks on the same samples.

    Raises:
        ValueError: there are not as many samples of one as of the other.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} samples cannot be paired")
    if len(first) < 2:
        return None
    return _spread(of_sums(first.sum(0) - first) - of_sums(second.sum(0) - second))


def _spread(without: Rows) -> float | None:
    count = len(without)
    error = math.sqrt((count - 1) / count * float(np.square(without - without.mean()).sum()))
    return error if math.isfinite(error) else None


def score_of(value: float, standard_error: float | None, samples: int, quality: Quality) -> Score:
    """A value of a metric with its 95 % interval.

    The interval of a share of right samples is Wilson's; that of another metric reaches 1.96 standard errors
    to both sides. Targets of one sample are not independent of each other, so samples are counted.
    """
    if standard_error is None:
        return Score(value, None, None, None, samples, quality)
    if quality in (METRICS["accuracy"], METRICS["top5_accuracy"]):
        error = math.sqrt(value * (1 - value) / samples)
        return Score(value, *wilson_interval(value, samples, _LEVEL), error, samples, quality)
    reach = float(ndtri(0.5 + _LEVEL / 2)) * standard_error
    return Score(value, value - reach, value + reach, standard_error, samples, quality)


def wilson_interval(value: float, samples: int, level: float = _LEVEL) -> tuple[float, float]:
    """The Wilson score interval of a share (E. B. Wilson, JASA 22, 1927, 209-212).

    Args:
        value: the observed share, between 0 and 1.
        samples: the number of independent samples.
        level: the confidence level.
    """
    z = float(ndtri(0.5 + level / 2))
    denominator = 1 + z * z / samples
    centre = (value + z * z / (2 * samples)) / denominator
    half = z / denominator * math.sqrt(value * (1 - value) / samples + z * z / (4 * samples * samples))
    return max(0.0, centre - half), min(1.0, centre + half)


# What single samples contribute.


def mean_of(sums: Rows) -> Rows:
    """The mean over samples, of the sums of values and of ones."""
    return np.asarray(sums[..., 0] / sums[..., 1])


def _means(entries: AnyArray) -> Rows:
    """The mean of a sample's entries, and 1."""
    means = entries.reshape(len(entries), -1).mean(axis=1, dtype=np.float64)
    return np.stack([means, np.ones_like(means)], axis=1)


def _entries(of: Callable[[Any, Any], AnyArray]) -> Callable[[AnyArray, AnyArray, int], Rows]:
    return lambda answers, targets, _: _means(of(answers, targets.astype(np.float64)))


def _ones(targets: AnyArray) -> npt.NDArray[np.bool_]:
    """Which labels are there."""
    return np.asarray(targets if targets.dtype == np.bool_ else targets > 0.5)


def _classes_right(answers: AnyArray, targets: AnyArray, _: int) -> Rows:
    return _means(answers == targets)


def _labels_right(answers: AnyArray, targets: AnyArray, _: int) -> Rows:
    return _means(answers == _ones(targets))


def _among_the_first(answers: AnyArray, targets: AnyArray, _: int) -> Rows:
    return _means((answers >= 0) & (answers < _FIRST))


def _counts_of(task: TaskName) -> Callable[[AnyArray, AnyArray, int], Rows]:
    """Per sample and class: true positives, false positives, false negatives, one after the other."""
    if task == "classification":
        return _counts_of_classes

    def of_labels(answers: AnyArray, targets: AnyArray, _: int) -> Rows:
        given, right = answers == 1, _ones(targets)
        if task == "binary":
            given, right = given[..., None], right[..., None]
        else:  # the labels of [samples, labels, ...] are on axis 1
            given, right = np.moveaxis(given, 1, -1), np.moveaxis(right, 1, -1)
        counts = [given & right, given & ~right, ~given & right]
        summed = [count.reshape(len(count), -1, count.shape[-1]).sum(axis=1) for count in counts]
        return np.concatenate(summed, axis=1).astype(np.float64)

    return of_labels


def _counts_of_classes(answers: AnyArray, targets: AnyArray, classes: int) -> Rows:
    samples = len(targets)
    sample = np.repeat(np.arange(samples), targets.size // samples)
    given, wanted = answers.reshape(-1), targets.reshape(-1)

    def counted(of: AnyArray, where: AnyArray) -> Rows:
        known = where & (of >= 0) & (of < classes)  # a target outside the classes is one that is ignored
        cells = sample[known] * classes + of[known]
        return np.bincount(cells, minlength=samples * classes).reshape(samples, classes).astype(np.float64)

    same = given == wanted
    return np.concatenate([counted(given, same), counted(given, ~same), counted(wanted, ~same)], axis=1)


def _f1(sums: Rows) -> Rows:
    """The mean of F1 over classes that were there or were given."""
    right, wrong, missed = np.split(sums, 3, axis=-1)
    return _mean_of_known(2 * right, 2 * right + wrong + missed)


def _mean_iou(sums: Rows) -> Rows:
    """The mean of intersection over union over classes that were there or were given."""
    right, wrong, missed = np.split(sums, 3, axis=-1)
    return _mean_of_known(right, right + wrong + missed)


def _residuals(answers: AnyArray, targets: AnyArray, _: int) -> Rows:
    """Squared residuals, targets and squared targets of every entry of a sample, and 1."""
    values, wanted = (numbers.reshape(len(numbers), -1).astype(np.float64) for numbers in (answers, targets))
    parts = [np.square(values - wanted), wanted, np.square(wanted), np.ones_like(wanted[:, :1])]
    return np.concatenate(parts, axis=1)


def _r2(sums: Rows) -> Rows:
    """The coefficient of determination, the mean over entries whose targets differ."""
    count = sums[..., -1:]
    residuals, total, squares = np.split(sums[..., :-1], 3, axis=-1)
    variation = squares - np.square(total) / count
    constant = variation <= 1e-12 * squares
    return 1 - _mean_of_known(residuals, np.where(constant, 0.0, variation))


def _mean_of_known(numerators: Rows, denominators: Rows) -> Rows:
    """The mean of fractions over those whose denominator is not 0; NaN without any."""
    known = denominators != 0
    fractions = np.where(known, numerators / np.where(known, denominators, 1.0), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # of a mean of nothing, which is the NaN that is wanted
        return np.asarray(np.nanmean(fractions, axis=-1))
