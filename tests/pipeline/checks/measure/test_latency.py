"""The statistics of paired latency. Speed itself is measured in benchmarks, not asserted here."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx
import pytest

from growpipe.checks.measure.latency import LatencyRatio, Timing, _block, paired_latency, ratio_interval
from growpipe.graph_ops.errors import CheckFailed, UsageError

CHEAP = """
<ir_version: 8, opset_import: ["": 17]>
cheap (float[N, 8] x) => (float[N, 8] y) { y = Relu(x) }
"""
# The same function, with a slow branch that does not matter: 24 products of 96 x 96 matrices.
SLOW_STEPS = "\n".join(f"m{i + 1} = MatMul(m{i}, m{i})" for i in range(24))
SLOW = f"""
<ir_version: 8, opset_import: ["": 17]>
slow (float[N, 8] x) => (float[N, 8] y)
{{
    shape = Constant <value = int64[2] {{96, 96}}> ()
    top = ReduceMax <keepdims = 0> (x)
    zero = Sub(top, top)
    m0 = Expand(zero, shape)
    {SLOW_STEPS}
    nothing = ReduceMax <keepdims = 0> (m24)
    r = Relu(x)
    y = Add(r, nothing)
}}
"""
INPUTS = {"x": np.ones((1, 8), np.float32)}


def serialised(text: str) -> bytes:
    return onnx.parser.parse_model(text).SerializeToString()


def ratio(value: float, low: float, high: float, noise: float = 0.01) -> LatencyRatio:
    return LatencyRatio(value, low, high, 0.99, 1.0, value, 100, noise, "cpu", 1)


@pytest.mark.parametrize(
    ("measured", "limit", "expected"),
    [
        (ratio(1.00, 0.99, 1.01), 1.05, "pass"),
        (ratio(1.15, 1.12, 1.18), 1.05, "fail"),
        (ratio(1.06, 1.04, 1.08), 1.05, "inconclusive"),
        (ratio(1.15, 1.12, 1.18, noise=0.2), 1.05, "inconclusive"),
        (ratio(1.00, 0.99, 1.01, noise=0.06), 1.05, "inconclusive"),
        (ratio(2.00, 1.80, 2.20, noise=0.2), 1.05, "fail"),
        (ratio(0.80, 0.79, 0.81), 0.9, "pass"),
        (ratio(0.95, 0.94, 0.96), 0.9, "fail"),
    ],
)
def test_verdicts(measured: LatencyRatio, limit: float, expected: str) -> None:
    assert measured.verdict(limit) == expected


def test_a_much_slower_model_fails_and_the_model_itself_does_not() -> None:
    timing = Timing(min_runs=12, seconds=0.2, limit=1.5)
    slower = paired_latency(serialised(CHEAP), serialised(SLOW), INPUTS, timing)
    assert slower.verdict(1.5) == "fail"
    assert slower.candidate_ms > slower.reference_ms
    same = paired_latency(serialised(CHEAP), serialised(CHEAP), INPUTS, replace(timing, limit=None))
    assert same.verdict(1.5) != "fail"
    assert same.low <= same.ratio <= same.high


def test_the_interval_covers_the_median_at_its_level() -> None:
    random = np.random.default_rng(3)
    covered = 0
    for trial in range(100):
        blocks = [random.normal(0.1, 0.05, 20) + random.normal(0, 0.01) for _ in range(8)]
        median, low, high = ratio_interval(blocks, 0.9, trial)
        assert low <= median <= high
        covered += low <= 0.1 <= high
    assert covered >= 80


def test_outliers_do_not_move_the_median() -> None:
    random = np.random.default_rng(4)
    blocks = [random.normal(math.log(1.1), 0.01, 20) for _ in range(6)]
    for block in blocks:
        block[:4] += 3.0  # another process took the core
    median, low, high = ratio_interval(blocks, 0.99)
    assert 1.08 < math.exp(low) <= math.exp(median) <= math.exp(high) < 1.13


def test_arguments_out_of_range_and_models_that_do_not_run() -> None:
    model = serialised(CHEAP)
    with pytest.raises(UsageError, match="min_runs"):
        Timing(min_runs=1)
    with pytest.raises(UsageError, match="needs inputs"):
        paired_latency(model, model, {})
    with pytest.raises(CheckFailed, match="could not run"):
        paired_latency(model, model, {"x": np.ones((1, 7), np.float32)})
    with pytest.raises(UsageError, match="limit"):
        ratio(1.0, 0.9, 1.1).verdict(0.0)


def test_a_model_of_seconds_is_not_run_dozens_of_times() -> None:
    clock = 0.0
    count = 0

    def run() -> None:
        nonlocal clock, count
        clock += 5.0
        count += 1

    times = _block([run, run, run], lambda: clock, np.random.default_rng(0))
    assert times.shape == (1, 3)
    assert count == 6
