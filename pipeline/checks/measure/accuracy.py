"""The accuracy of a model on labelled samples, with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from growpipe.checks.measure.sessions import Device, Model, Session, open_session
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import CheckFailed, UsageError

__all__ = ["Accuracy", "accuracy", "correct_samples", "wilson_interval"]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The share of samples whose class is right.

    Attributes:
        value: between 0 and 1.
        low, high: the Wilson interval of ``value``.
        samples: the number of samples.
        level: the confidence level of the interval.
    """

    value: float
    low: float
    high: float
    samples: int
    level: float = 0.95

    def __post_init__(self) -> None:
        # The ends of the interval touch the value at 0 and at 1, up to rounding.
        if not -1e-9 <= self.low <= self.value + 1e-9 <= self.high + 2e-9 <= 1 + 3e-9 or self.samples < 1:
            raise UsageError(f"not an accuracy: {self.value} in [{self.low}, {self.high}], {self.samples}")


def wilson_interval(value: float, samples: int, level: float = 0.95) -> tuple[float, float]:
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


def accuracy(
    model: Model,
    inputs: Mapping[str, AnyArray],
    targets: AnyArray,
    *,
    batch_size: int = 64,
    output: str | None = None,
    optimised: bool = True,
    device: Device = "cpu",
    level: float = 0.95,
) -> Accuracy:
    """Top-1 accuracy of a classifier.

    Args:
        model: path or bytes.
        inputs: by name, [samples, ...].
        targets: integer classes, [samples], or [samples, ...] for a class per position.
        batch_size: samples per run; a model with a fixed batch runs at its own.
        output: the output with the scores, [samples, classes, ...], or with the classes, [samples, ...];
            the first by default.
        level: the confidence level of the Wilson interval. With a class per position the interval still
            counts samples: positions of one sample are not independent.

    Raises:
        UsageError: inputs and targets do not fit each other, or there is no such output.
        CheckFailed: the model cannot be run, or its output is not a score for such targets.
    """
    right = correct_samples(
        open_session(model, optimised=optimised, device=device),
        inputs,
        targets,
        batch_size=batch_size,
        output=output,
    )
    value = float(right.mean())
    low, high = wilson_interval(value, len(right), level)
    return Accuracy(value, low, high, len(right), level)


def correct_samples(
    session: Session,
    inputs: Mapping[str, AnyArray],
    targets: AnyArray,
    *,
    batch_size: int = 64,
    output: str | None = None,
) -> npt.NDArray[np.float64]:
    """Per sample 1 where the class is right and 0 where not; a share, with a class per position.

    Raises:
        UsageError, CheckFailed: as `accuracy`.
    """
    if targets.dtype.kind not in "iu" or targets.ndim < 1 or len(targets) == 0:
        raise UsageError(
            f"targets must be integer classes [samples, ...], not {targets.dtype}{targets.shape}"
        )
    feed = session.prepared(inputs)
    wrong = {name: array.shape for name, array in feed.items() if array.shape[:1] != targets.shape[:1]}
    if wrong:
        raise UsageError(f"inputs {wrong} do not have the {len(targets)} samples of the targets")
    fixed = {s[0] for s, _ in session.inputs.values() if s and isinstance(s[0], int)}
    if len(fixed) > 1:
        raise UsageError(f"the inputs of the model have different fixed batches: {sorted(fixed)}")
    batch_size = max(1, fixed.pop() if fixed else batch_size)
    right = [
        _correct(
            session, {k: v[i : i + batch_size] for k, v in feed.items()}, targets[i : i + batch_size], output
        )
        if i + batch_size <= len(targets)
        else _correct_padded(session, {k: v[i:] for k, v in feed.items()}, targets[i:], output, batch_size)
        for i in range(0, len(targets), batch_size)
    ]
    return np.concatenate(right)


def _correct_padded(
    session: Session,
    feed: Mapping[str, AnyArray],
    targets: AnyArray,
    output: str | None,
    batch_size: int,
) -> npt.NDArray[np.float64]:
    """The last batch, filled up with its last sample: a model with a fixed batch takes no other."""
    padding = batch_size - len(targets)
    padded = {k: np.concatenate([v, np.repeat(v[-1:], padding, axis=0)]) for k, v in feed.items()}
    filled = np.concatenate([targets, np.repeat(targets[-1:], padding, axis=0)])
    return _correct(session, padded, filled, output)[: len(targets)]


def _correct(
    session: Session, feed: Mapping[str, AnyArray], targets: AnyArray, output: str | None
) -> npt.NDArray[np.float64]:
    outputs = session.run(feed)
    name = next(iter(outputs)) if output is None else output
    if name not in outputs:
        raise UsageError(f"the model has no output {name!r}; it has {list(outputs)}")
    scores = outputs[name]
    if scores.ndim == targets.ndim + 1 and scores.shape[:1] + scores.shape[2:] == targets.shape:
        # A NaN is the largest for argmax, and would make a broken model look like a constant one.
        predicted = np.where(np.isnan(scores.astype(np.float64)).any(axis=1), -1, scores.argmax(axis=1))
    elif scores.shape == targets.shape and scores.dtype.kind in "iu":
        predicted = scores
    elif scores.shape[-1:] and scores.shape[:-1] == targets.shape:
        predicted = np.where(np.isnan(scores.astype(np.float64)).any(axis=-1), -1, scores.argmax(axis=-1))
    else:
        raise CheckFailed(
            f"output {name!r} of shape {scores.shape} gives no classes for targets of shape {targets.shape}"
        )
    same = (predicted == targets).reshape(len(targets), -1)
    return np.asarray(same.mean(axis=1), dtype=np.float64)
