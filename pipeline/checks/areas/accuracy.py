"""Accuracy, or another metric: is it still good at what it is for?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from growpipe.checks.context import Context
from growpipe.checks.measure.inputs import Dataset
from growpipe.checks.measure.judge import Judge, Judged, task_of
from growpipe.checks.registry import register
from growpipe.checks.report import Outcome, failed, inconclusive, passed, skipped
from growpipe.graph_ops.errors import CheckFailed, UsageError
from growpipe.metrics import difference_error
from growpipe.quality import METRICS, Quality, Score

__all__: list[str] = []

_NO_DATA = "no data with targets; give an .npz of inputs and targets with --data"
_MAX_DROP = (
    0.01  # of a metric that is a share or has 1 as its best value; of others, a share of the reference's
)


@register(
    "accuracy/floor",
    "the accuracy, or another metric, is within its limit",
    "train longer, or change accuracy.floor (accuracy.ceiling of a metric that is better if it is lower); if "
    "it is inconclusive give more samples with --data",
    runs=True,
)
def floor(context: Context) -> Outcome:
    """How good the model is on the data that has targets, with a 95 % interval: top-1 accuracy of integer
    classes (per position too), the accuracy of labels of 0 and 1, the RMSE of numbers, or the metric that the
    policy names. It fails if the whole interval is on the wrong side of the limit. A value on the wrong side
    whose interval reaches the limit is inconclusive: more samples decide.

    Policy: `accuracy.task`, `accuracy.metric`, `accuracy.metric_options`, `accuracy.lower_is_better`,
    `accuracy.threshold`, `accuracy.floor`, `accuracy.ceiling`, `accuracy.batch_size`, `accuracy.output`.
    """
    labelled = _labelled(context)
    if not labelled:
        return skipped(_NO_DATA)
    judge = _judge(context, labelled)
    found = _judged(context, labelled, judge).score(judge)
    policy = context.policy.accuracy
    measured = _measured(found)
    text = f"{found.quality.name} {_shown(found)} on {found.samples} samples"
    name, wanted = ("ceiling", policy.ceiling) if found.quality.lower_is_better else ("floor", policy.floor)
    if wanted is None:
        return passed(f"{text}; no {name} is set", **measured)
    worse = "above" if found.quality.lower_is_better else "below"
    if not found.quality.better(wanted, found.value):
        return passed(f"{text}, {name} {wanted}", **measured)
    best = found.low if found.quality.lower_is_better else found.high
    if best is None or found.quality.better(wanted, best):
        return failed(f"{text}, {worse} the {name} {wanted}", **measured)
    return inconclusive(f"{text}: the interval reaches the {name} {wanted}; give more samples", **measured)


@register(
    "accuracy/drop",
    "the accuracy, or another metric, did not get worse against the reference",
    "keep the reference, or raise accuracy.max_drop; if it is inconclusive give more samples with --data",
    runs=True,
)
def drop(context: Context) -> Outcome:
    """How much worse than the reference the model is on the same samples, in the metric's own direction: a
    lower accuracy, a higher error. The samples are paired: only those on which the two differ count, so the
    interval is far narrower than that of either. It fails if the drop is above the limit and the interval
    excludes no drop at all; above it by chance is inconclusive.

    Policy: `accuracy.max_drop` in units of the metric (0.01 is one point of a hundred) or
    `accuracy.max_relative_drop` as a share of the reference's value; 0.01 when nothing is set, which is a
    share unless the metric has 1 as its best value. The metric is that of `accuracy/floor`.
    """
    labelled = _labelled(context)
    if not labelled:
        return skipped(_NO_DATA)
    judge = _judge(context, labelled)
    if context.reference is None:
        return _against_baseline(context, labelled, judge)
    new = _judged(context, labelled, judge)
    old = _judged(context, labelled, judge, of_reference=True)
    try:
        before = old.score(judge)
    except CheckFailed as fault:
        raise CheckFailed(f"the reference has no value to compare with: {fault}") from None
    error = None
    if new.rows is not None and old.rows is not None:
        error = difference_error(new.rows, old.rows, judge.of_sums)
    drop = _Drop(judge.quality, before.value, new.score(judge).value, error, "reference")
    return drop.outcome(*_limit(context, before.value, judge.quality), samples=new.samples)


@dataclass(frozen=True)
class _Drop:
    """How a model compares with an earlier one.

    Attributes:
        quality: the metric.
        before: its value of the earlier model.
        after: its value of the model.
        error: the standard error of the difference; None if it is not known.
        against: what the earlier model is: the reference or the baseline.
    """

    quality: Quality
    before: float
    after: float
    error: float | None
    against: str

    def outcome(self, limit: float, words: str, samples: int) -> Outcome:
        """The verdict under a limit, which ``words`` tell."""
        lower = self.quality.lower_is_better
        worse = self.after - self.before if lower else self.before - self.after
        measured: dict[str, Any] = {"value": worse, "samples": samples, "metric": self.quality.name}
        interval = ""
        half = None if self.error is None else float(ndtri(0.975)) * self.error
        if half is not None:
            measured |= {"low": worse - half, "high": worse + half}
            interval = f" [{_number(worse - half, self.quality)}, {_number(worse + half, self.quality)}]"
        text = (
            f"{self.quality.name} {_number(self.after, self.quality)}, {self.against} "
            f"{_number(self.before, self.quality)}: {'rise' if lower else 'drop'} "
            f"{_number(worse, self.quality)}{interval}, limit {words}"
        )
        if worse <= limit:
            return passed(text, **measured)
        if half is None or worse - half > 0:
            return failed(text, **measured)
        return inconclusive(f"{text}; too few samples to tell from chance", **measured)


def _against_baseline(context: Context, labelled: list[Dataset], judge: Judge) -> Outcome:
    before = None if context.baseline is None else context.baseline.value("accuracy/floor")
    if context.baseline is None or before is None:
        return skipped("no reference, and no baseline with an accuracy")
    known = context.baseline.measured["accuracy/floor"].get("metric", "accuracy")
    if known != judge.quality.name:
        return skipped(f"the baseline holds the {known} and not the {judge.quality.name}; write it again")
    found = _judged(context, labelled, judge).score(judge)
    # The samples of the baseline are not at hand: only the error of the model's own value is known.
    drop = _Drop(judge.quality, before, found.value, found.standard_error, "baseline")
    return drop.outcome(*_limit(context, before, judge.quality), samples=found.samples)


def _limit(context: Context, before: float, quality: Quality) -> tuple[float, str]:
    """How much worse a model may be, and that in words."""
    policy = context.policy.accuracy
    bounded = quality.percent or quality == METRICS["r2"]
    if policy.max_drop is not None or (policy.max_relative_drop is None and bounded):
        limit = _MAX_DROP if policy.max_drop is None else policy.max_drop
        return limit, f"{limit}"
    share = _MAX_DROP if policy.max_relative_drop is None else policy.max_relative_drop
    return share * abs(before), f"{_number(share * abs(before), quality)} ({share} of the reference's)"


def _labelled(context: Context) -> list[Dataset]:
    return [data for data in context.datasets if data.targets is not None]


def _judge(context: Context, labelled: list[Dataset]) -> Judge:
    """By what all data are judged.

    Raises:
        UsageError: the policy does not fit the targets, or the files have targets of different tasks.
    """
    policy = context.policy.accuracy
    found = [data.targets for data in labelled if data.targets is not None]
    tasks = {policy.task or task_of(targets) for targets in found}
    if len(tasks) > 1:
        raise UsageError("the data files have targets of different tasks; set accuracy.task")
    (task,) = tasks
    fault = policy.fault(task)
    if fault:
        raise UsageError(
            f"the targets are {found[0].dtype} {list(found[0].shape)} and taken as {task} (accuracy.task): "
            f"{fault}"
        )
    return Judge(
        task,
        policy.metric,
        policy.metric_options,
        policy.lower_is_better,
        policy.threshold,
        policy.output,
        policy.batch_size,
    )


def _judged(context: Context, labelled: list[Dataset], judge: Judge, of_reference: bool = False) -> Judged:
    """What the metric says of all data together."""
    parts = [context.judged(data, judge, of_reference) for data in labelled]
    if len(parts) == 1:
        return parts[0]
    rows = [part.rows for part in parts if part.rows is not None]
    if len(rows) < len(parts) or len({part.shape[1] for part in rows}) > 1:
        raise UsageError(f"the {judge.quality.name} of several data files does not add up; give one file")
    together = np.concatenate(rows)
    return Judged(float(judge.of_sums(together.sum(axis=0))), len(together), together)


def _measured(found: Score) -> dict[str, Any]:
    measured: dict[str, Any] = {"value": found.value, "samples": found.samples, "metric": found.quality.name}
    return measured if found.low is None else {**measured, "low": found.low, "high": found.high}


def _shown(found: Score) -> str:
    value = _number(found.value, found.quality)
    if found.low is None or found.high is None:
        return value
    return f"{value} [{_number(found.low, found.quality)}, {_number(found.high, found.quality)}]"


def _number(value: float, quality: Quality) -> str:
    return f"{value:.4f}" if quality.percent else f"{value:.4g}"
