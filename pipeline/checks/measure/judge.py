"""How well a model does on samples that have targets, in onnxruntime: a named metric, or a user's own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from growpipe.checks.measure.sessions import Model, Session, open_session
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import CheckFailed, UsageError
from growpipe.metrics import Answer, OfSums, Rows, jackknife_error, mean_of, named_metric, score_of
from growpipe.quality import DEFAULT_METRICS, Quality, Score, TaskName, quality_of

__all__ = ["Judge", "Judged", "judge_samples", "outputs_of", "score", "task_of"]


@dataclass(frozen=True)
class Judge:
    """What a model is judged by.

    Attributes:
        task: what the targets are.
        metric: the name of one that fits the task, or ``file.py:name``; None for that of the task.
        metric_options: of a metric of the user's own.
        lower_is_better: of a metric of the user's own.
        threshold: of binary and multi-label scores: above it a label is there. 0 is that of logits.
        output: the output that is judged; the first by default.
        batch_size: samples of one run; a model with a fixed batch runs at its own.
    """

    task: TaskName = "classification"
    metric: str | None = None
    metric_options: Mapping[str, Any] = field(default_factory=dict)
    lower_is_better: bool | None = None
    threshold: float = 0.0
    output: str | None = None
    batch_size: int = 64

    @property
    def quality(self) -> Quality:
        """The metric in words."""
        return quality_of(self.task, self.metric, self.metric_options, self.lower_is_better)

    @property
    def name(self) -> str:
        """The metric's name, or its reference."""
        return self.metric or DEFAULT_METRICS[self.task]

    @property
    def is_own(self) -> bool:
        """Whether the metric is code of the user, which needs torch."""
        return ":" in self.name

    @property
    def of_sums(self) -> OfSums:
        """The metric of the sums of `Judged.rows`."""
        return mean_of if self.is_own else named_metric(self.name, self.task).of_sums


@dataclass(frozen=True, eq=False)
class Judged:
    """What a metric says of a model on samples.

    Attributes:
        value: of the metric.
        samples: how many there were.
        rows: what single samples contribute; None if the metric does not say.
    """

    value: float
    samples: int
    rows: Rows | None

    def score(self, judge: Judge) -> Score:
        """The value with its interval.

        Raises:
            CheckFailed: the value is not finite.
        """
        quality = judge.quality
        if not math.isfinite(self.value):
            raise CheckFailed(f"the {quality.name} is {self.value} on {self.samples} samples: {_WHY}")
        error = None if self.rows is None else jackknife_error(self.rows, judge.of_sums)
        return score_of(self.value, error, self.samples, quality)


_WHY = "an output is not finite, or the metric is not defined for such targets"


def task_of(targets: AnyArray) -> TaskName:
    """What targets seem to be: integers are classes, bool or 0 and 1 in floats labels, else numbers."""
    if targets.dtype.kind in "iu":
        return "classification"
    if targets.dtype.kind == "b" or bool(np.isin(targets, (0, 1)).all()):
        return "binary" if targets.ndim == 1 or targets.shape[1] == 1 else "multilabel"
    return "regression"


def score(model: Model, inputs: Mapping[str, AnyArray], targets: AnyArray, judge: Judge) -> Score:
    """How well a model does, with a 95 % interval.

    Args:
        model: path or bytes.
        inputs: by name, ``[samples, ...]``.
        targets: ``[samples, ...]``.
        judge: by a named metric.

    Raises:
        UsageError: inputs and targets do not fit each other, or there is no such output.
        CheckFailed: the model cannot be run, its outputs do not fit such targets, or the value is not finite.
    """
    return judge_samples(open_session(model), inputs, targets, judge).score(judge)


def judge_samples(
    session: Session, inputs: Mapping[str, AnyArray], targets: AnyArray, judge: Judge
) -> Judged:
    """What a named metric says.

    Raises:
        UsageError, CheckFailed: as `score`, but for a value that is not finite.
    """
    named = named_metric(judge.name, judge.task)
    if judge.task == "classification" and targets.dtype.kind not in "iu":
        raise UsageError(
            f"the targets of a classification are integer classes [samples, ...], not {_shown(targets)}; "
            "other tasks are accuracy.task = regression, binary and multilabel"
        )
    answers, classes = [], 0
    for outputs, wanted in outputs_of(session, inputs, targets, judge.batch_size):
        name = judge.output or next(iter(outputs))
        if name not in outputs:
            raise UsageError(f"the model has no output {name!r}; it has {list(outputs)}")
        answers.append(_answers(named.answer, name, outputs[name], wanted, judge.threshold))
        classes = outputs[name].size // max(1, wanted.size)
    found = np.concatenate(answers)
    if named.answer == "classes" and classes == 1:  # outputs that are classes do not say how many there are
        classes = 1 + int(max(found.max(initial=0), targets.max(initial=0)))
    rows = named.rows(found, targets, classes)
    return Judged(float(named.of_sums(rows.sum(axis=0))), len(rows), rows)


def outputs_of(
    session: Session, inputs: Mapping[str, AnyArray], targets: AnyArray, batch_size: int
) -> Iterator[tuple[dict[str, AnyArray], AnyArray]]:
    """Batches of outputs by name, and of targets.

    Raises:
        UsageError: inputs and targets do not fit each other.
        CheckFailed: the model cannot be run.
    """
    if targets.ndim < 1 or len(targets) == 0 or targets.dtype.kind not in "biuf":
        raise UsageError(f"targets must be numbers [samples, ...], not {_shown(targets)}")
    feed = session.prepared(inputs)
    wrong = {name: array.shape for name, array in feed.items() if array.shape[:1] != targets.shape[:1]}
    if wrong:
        raise UsageError(f"inputs {wrong} do not have the {len(targets)} samples of the targets")
    fixed = {s[0] for s, _ in session.inputs.values() if s and isinstance(s[0], int)}
    if len(fixed) > 1:
        raise UsageError(f"the inputs of the model have different fixed batches: {sorted(fixed)}")
    size = max(1, fixed.pop() if fixed else batch_size)
    for start in range(0, len(targets), size):
        wanted = targets[start : start + size]
        batch = {name: array[start : start + size] for name, array in feed.items()}
        # A model with a fixed batch takes no other: the last batch is filled up with its last sample.
        outputs = session.run({name: _filled_up(array, size) for name, array in batch.items()})
        yield {name: array[: len(wanted)] for name, array in outputs.items()}, wanted


def _filled_up(array: AnyArray, size: int) -> AnyArray:
    missing = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


# What outputs say, in the shape of the targets.


def _answers(answer: Answer, name: str, output: AnyArray, targets: AnyArray, threshold: float) -> AnyArray:
    if answer == "numbers":
        return _aligned(name, output, targets).astype(np.float64)
    if answer == "labels":
        found = _aligned(name, output, targets)
        return np.where(_is_nan(found), -1, found > threshold)
    if answer == "classes" and output.shape == targets.shape and output.dtype.kind in "iu":
        return output
    scores = _classes_last(name, output, targets)
    # A NaN is the largest for argmax, and would make a broken model look like a constant one.
    broken = _is_nan(scores).any(axis=-1)
    if answer == "classes":
        return np.where(broken, -1, scores.argmax(axis=-1))
    known = np.clip(targets, 0, scores.shape[-1] - 1)[..., None]
    own = np.take_along_axis(scores, known, axis=-1)
    # Of equal scores the first one counts.
    before = (scores > own) | ((scores == own) & (np.arange(scores.shape[-1]) < known))
    return np.where(broken | (targets != known[..., 0]), -1, before.sum(axis=-1))


def _aligned(name: str, output: AnyArray, targets: AnyArray) -> AnyArray:
    """Values in the shape of their targets: ``[samples, 1]`` for ``[samples]`` and the like."""
    if output.shape[:1] != targets.shape[:1] or output.size != targets.size:
        raise CheckFailed(
            f"output {name!r} is {_shown(output)} and the targets are {_shown(targets)}: every target needs "
            "one number; is it the right output (accuracy.output) and task (accuracy.task)?"
        )
    return output.reshape(targets.shape)


def _classes_last(name: str, output: AnyArray, targets: AnyArray) -> AnyArray:
    """Scores ``[samples, ..., classes]``. If two axes could be that of the classes, it is axis 1."""
    if output.ndim == targets.ndim + 1:
        if output.shape[:1] + output.shape[2:] == targets.shape:
            return np.moveaxis(output, 1, -1)
        if output.shape[:-1] == targets.shape:
            return output
    hint = ""
    if output.size == targets.size and np.isin(targets, (0, 1)).all():
        hint = "; if the targets are labels of 0 and 1, set accuracy.task to binary or multilabel"
    raise CheckFailed(
        f"output {name!r} is {_shown(output)} and gives no classes for targets {_shown(targets)}{hint}"
    )


def _is_nan(array: AnyArray) -> AnyArray:
    return np.isnan(array.astype(np.float64, copy=False))


def _shown(array: AnyArray) -> str:
    return f"{array.dtype} {list(array.shape)}"
