"""Accuracy: is it still good at what it is for?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from growpipe.checks.context import Context
from growpipe.checks.measure.accuracy import wilson_interval
from growpipe.checks.measure.inputs import Dataset
from growpipe.checks.registry import register
from growpipe.checks.report import Outcome, failed, inconclusive, passed, skipped

__all__: list[str] = []

_NO_DATA = "no data with targets; give an .npz of inputs and targets with --data"


@register(
    "accuracy/floor",
    "the accuracy is not below the floor",
    "train longer or lower accuracy.floor; if it is inconclusive give more samples with --data",
    runs=True,
)
def floor(context: Context) -> Outcome:
    """Top-1 accuracy on the data that has targets, with its Wilson interval. It fails when the whole interval
    is below the floor; below the floor with an interval that reaches it is inconclusive: more samples decide.

    Policy: `accuracy.floor`, `accuracy.batch_size`, `accuracy.output`.
    """
    labelled = [d for d in context.datasets if d.targets is not None]
    if not labelled:
        return skipped(_NO_DATA)
    right = np.concatenate([_right(context, d) for d in labelled])
    value, samples = float(right.mean()), len(right)
    low, high = wilson_interval(value, samples)
    measured: dict[str, Any] = {"value": value, "low": low, "high": high, "samples": samples}
    text = f"accuracy {value:.4f} [{low:.4f}, {high:.4f}] on {samples} samples"
    wanted = context.policy.accuracy.floor
    if wanted is None:
        return passed(f"{text}; no floor is set", **measured)
    if value >= wanted:
        return passed(f"{text}, floor {wanted}", **measured)
    if high < wanted:
        return failed(f"{text}, below the floor {wanted}", **measured)
    return inconclusive(f"{text}: the interval reaches the floor {wanted}; give more samples", **measured)


@register(
    "accuracy/drop",
    "the accuracy did not drop against the reference",
    "keep the reference, or raise accuracy.max_drop; if it is inconclusive give more samples with --data",
    runs=True,
)
def drop(context: Context) -> Outcome:
    """The difference to the accuracy of the reference on the same samples, paired: only samples on which the
    two disagree count, so the interval is far narrower than that of either. It fails when the drop is above
    the limit and the interval excludes no drop at all; above it by chance is inconclusive.

    Policy: `accuracy.max_drop` (0.01 is one point of a hundred; 0.01 when nothing is set).
    """
    labelled = [d for d in context.datasets if d.targets is not None]
    if not labelled:
        return skipped(_NO_DATA)
    if context.reference is None:
        return _against_baseline(context, labelled)
    new = np.concatenate([_right(context, d) for d in labelled])
    old = np.concatenate([_right(context, d, of_reference=True) for d in labelled])
    difference = old - new
    loss = float(difference.mean())
    half = float(ndtri(0.975)) * float(difference.std(ddof=1)) / math.sqrt(len(new)) if len(new) > 1 else 1
    limit = 0.01 if context.policy.accuracy.max_drop is None else context.policy.accuracy.max_drop
    measured: dict[str, Any] = {"value": loss, "low": loss - half, "high": loss + half, "samples": len(new)}
    text = (
        f"accuracy {new.mean():.4f}, reference {old.mean():.4f}: "
        f"drop {loss:.4f} [{loss - half:.4f}, {loss + half:.4f}], limit {limit}"
    )
    if loss <= limit:
        return passed(text, **measured)
    if loss - half > 0:
        return failed(text, **measured)
    return inconclusive(f"{text}; too few samples to tell from chance", **measured)


def _against_baseline(context: Context, labelled: list[Dataset]) -> Outcome:
    before = None if context.baseline is None else context.baseline.value("accuracy/floor")
    if before is None:
        return skipped("no reference, and no baseline with an accuracy")
    right = np.concatenate([_right(context, d) for d in labelled])
    value = float(right.mean())
    low, high = wilson_interval(value, len(right))
    limit = 0.01 if context.policy.accuracy.max_drop is None else context.policy.accuracy.max_drop
    text = f"accuracy {value:.4f} [{low:.4f}, {high:.4f}], baseline {before:.4f}, limit {limit}"
    measured: dict[str, Any] = {"value": before - value, "samples": len(right)}
    if before - value <= limit:
        return passed(text, **measured)
    if high < before:
        return failed(f"{text}: it dropped by {before - value:.4f}", **measured)
    return inconclusive(f"{text}; too few samples to tell from chance", **measured)


def _right(context: Context, data: Dataset, of_reference: bool = False) -> npt.NDArray[np.float64]:
    """Per sample, whether the class is right."""
    assert data.targets is not None
    policy = context.policy.accuracy
    path, inputs = context.path, data.inputs
    if of_reference:
        assert context.reference is not None
        path, inputs = context.reference.path, context.reference_inputs(inputs)
    return context.process.correct_samples(
        path, inputs, data.targets, context.device, batch_size=policy.batch_size, output=policy.output
    )
