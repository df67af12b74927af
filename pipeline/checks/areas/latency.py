"""Latency: is it as fast as the reference, and as fast as it must be?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from growpipe.checks.child.model_process import ModelHung
from growpipe.checks.context import Context
from growpipe.checks.input_sets import Inputs
from growpipe.checks.measure.inputs import batch_dims
from growpipe.checks.measure.latency import LatencyRatio, Timing
from growpipe.checks.registry import register
from growpipe.checks.report import Outcome, failed, inconclusive, passed, skipped, warned
from growpipe.graph_ops.errors import InconclusiveMeasurement

__all__: list[str] = []


@register(
    "latency/ratio",
    "it is not slower than the reference allows",
    "ship a faster model or raise latency.max_ratio; if it is inconclusive use a quieter machine",
    runs=True,
)
def ratio(context: Context) -> Outcome:
    """Both models run in turn in one process: fixed threads, spinning off, alternating order, sessions made
    again in every block. The interval of the median ratio is bootstrapped, and two equal sessions of the
    reference are measured in the same rounds (A/A). When the machine is too noisy for the budget the verdict
    is inconclusive, exit code 5, never a guess.

    The reference is that of --reference, else the model that the baseline was measured on, if it is still
    there. Policy: `latency.max_ratio`, `warn_ratio`, `threads`, `seconds`, `min_runs`, `batch_size`.
    """
    other = _reference(context)
    if isinstance(other, str):
        return skipped(other)
    policy = context.policy.latency
    limit = policy.max_ratio
    result = measure(context, other, limit)
    measured: dict[str, Any] = {
        "value": result.ratio,
        "low": result.low,
        "high": result.high,
        "noise": result.noise,
        "reference_ms": result.reference_ms,
        "candidate_ms": result.candidate_ms,
        "runs": result.runs,
        "clock": result.clock,
    }
    text = (
        f"{result.ratio:.3f} times the reference's time [{result.low:.3f}, {result.high:.3f}], "
        f"{result.candidate_ms:.3g} ms against {result.reference_ms:.3g} ms, A/A noise {result.noise:.1%}"
    )
    if limit is None:
        if result.verdict(policy.warn_ratio) == "fail":
            return warned(f"{text}; set latency.max_ratio to make this a failure", **measured)
        return passed(f"{text}; no latency.max_ratio is set", **measured)
    match result.verdict(limit):
        case "pass":
            return passed(f"{text}, limit {limit}", **measured)
        case "fail":
            return failed(f"{text}, limit {limit}", **measured)
    return inconclusive(
        f"{text}: too noisy for the limit {limit}; use a quieter machine or raise latency.seconds", **measured
    )


@register(
    "latency/budget",
    "a run takes no longer than the budget",
    "ship a faster model or raise latency.max_ms; if it is inconclusive use a quieter machine",
    runs=True,
)
def budget(context: Context) -> Outcome:
    """The median time of one run on this machine. With one thread it is CPU time of the thread, so that
    other processes do not count.

    Policy: `latency.max_ms`, and as `latency/ratio`.
    """
    limit = context.policy.latency.max_ms
    if limit is None:
        return skipped("no latency.max_ms is set")
    result = measure(context, context.path, None)
    # Two equal models: what they differ by is what the measurement is uncertain by.
    low = min(result.reference_ms, result.candidate_ms) / (1 + result.noise)
    high = max(result.reference_ms, result.candidate_ms) * (1 + result.noise)
    measured: dict[str, Any] = {"value": result.candidate_ms, "low": low, "high": high, "noise": result.noise}
    text = f"{result.candidate_ms:.3g} ms [{low:.3g}, {high:.3g}] a run, limit {limit:g} ms"
    if high <= limit:
        return passed(text, **measured)
    if low > limit:
        return failed(text, **measured)
    return inconclusive(f"{text}: too noisy to tell", **measured)


def measure(context: Context, reference: Path, limit: float | None) -> LatencyRatio:
    """`growpipe.checks.measure.latency.paired_latency` in the child process.

    Raises:
        InconclusiveMeasurement: the models are too slow for the time there is.
    """
    policy = context.policy.latency
    given = _timed_inputs(context, policy.batch_size)
    is_other = context.reference is not None and reference == context.reference.path != context.path
    names = context.input_names if is_other else {name: name for name in given}
    timing = Timing(
        threads=policy.threads,
        min_runs=policy.min_runs,
        seconds=policy.seconds,
        limit=limit,
        device=context.device,
    )
    inputs = {names[name]: array for name, array in given.items() if name in names}
    candidate_names = {theirs: ours for ours, theirs in names.items()}
    try:
        return context.process.time_pair(reference, context.path, inputs, candidate_names, timing)
    except ModelHung:
        raise InconclusiveMeasurement(
            f"{policy.seconds:g} s are too few for runs of this length; raise latency.seconds"
        ) from None


def _timed_inputs(context: Context, batch_size: int) -> Inputs:
    """The first of the user's samples, as what a loop does may depend on them, else random inputs."""
    first = context.first()
    if first.is_random:
        return context.runs.maker.random(batch_size, 7, "latency", context.room).inputs
    batch = batch_dims(context.specs or ())
    free = {spec.name for spec in context.specs or () if spec.first in batch}
    return {name: array[:batch_size] if name in free else array for name, array in first.inputs.items()}


def _reference(context: Context) -> Path | str:
    if context.reference is not None:
        return context.reference.path
    baseline = context.baseline
    if baseline is None:
        return "no reference model; give one with --reference or --baseline"
    if not baseline.holds_model():
        return f"the model of the baseline is no longer at {baseline.model}; give it with --reference"
    return baseline.model
