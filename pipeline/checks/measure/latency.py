"""Paired latency: two models in one process, interleaved, with an A/A calibration of the same moments.

Three sessions run in turn: the reference A, the candidate B and the reference once more, A'. B over the
mean of A and A' is what is asked; A'/A, measured in the same rounds, is what the machine makes of two equal
models. Sessions are made again in every block, because where the allocator happened to put one is worth
several percent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from growpipe.checks.measure.sessions import Device, Model, Session, open_session, readable_errors
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import UsageError

__all__ = ["LatencyRatio", "Timing", "Verdict", "paired_latency", "ratio_interval"]

Verdict = Literal["pass", "fail", "inconclusive"]

RESAMPLES = 1000
LEAST_ROUNDS, MOST_ROUNDS, BLOCK_SECONDS = 5, 40, 0.3
"""Rounds of one block: many short ones are worth more than few long ones, and new sessions cost time."""
SLOW_SECONDS = 1.0
"""Longer runs are not repeated within a block: the verdict is worth minutes, not hours."""
SAMPLE_SECONDS = 2e-4
"""The least duration of one sample; shorter runs are repeated, so that clock and call do not count."""


@dataclass(frozen=True, slots=True)
class LatencyRatio:
    """How much slower the candidate is than the reference.

    Attributes:
        ratio: the median of candidate over reference time, paired.
        low, high: the bootstrap interval of ``ratio``, widened where the A/A interval misses 1.
        level: the confidence level of the interval.
        reference_ms, candidate_ms: median time of one run, in milliseconds.
        runs: paired samples of each.
        noise: what this machine, now, makes of two equal models: half the width of the A/A interval, and the
            distance by which it misses 1.
        clock: ``cpu`` (time of the thread, which leaves out waiting for other processes) or ``wall``.
        threads: threads within an operator.
    """

    ratio: float
    low: float
    high: float
    level: float
    reference_ms: float
    candidate_ms: float
    runs: int
    noise: float
    clock: str
    threads: int

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.ratio <= self.high:
            raise UsageError(f"not a latency ratio: {self.ratio} in [{self.low}, {self.high}]")

    def verdict(self, limit: float) -> Verdict:
        """Is the ratio within ``limit`` (1.05: at most 5 % slower)? Never a guess.

        ``fail`` when the whole interval is above the limit, ``pass`` when the whole interval is within it,
        else ``inconclusive``. Where two equal models differ by more than the budget, the interval must clear
        the limit by that much too: nothing passes then, and only what is far slower fails.
        """
        if limit <= 0:
            raise UsageError(f"the limit of a latency ratio must be above 0, not {limit}")
        margin = 1.0 + self.noise if limit > 1.0 and self.noise > limit - 1.0 else 1.0
        if self.low > limit * margin:
            return "fail"
        return "pass" if self.high * margin <= limit else "inconclusive"

    def inconclusive(self, limit: float) -> bool:
        return self.verdict(limit) == "inconclusive"


@dataclass(frozen=True, slots=True)
class Timing:
    """How long and how to measure.

    Attributes:
        threads: threads within an operator. With one thread on a CPU the clock is the CPU time of the calling
            thread, so that other processes do not count; otherwise it is the wall clock.
        min_runs: least number of paired samples, unless the time is over.
        seconds: the most time spent on settling the verdict for ``limit``; a target, not a hard limit.
        limit: of the ratio. None for a single look, after ``min_runs`` and ``blocks``.
        level: confidence level of the intervals.
        blocks: number of times that the sessions are made again before the first look at the result.
        device: where the models run.
        seed: of the order and of the bootstrap.

    Raises:
        UsageError: a value is out of range.
    """

    threads: int = 1
    min_runs: int = 120
    seconds: float = 30.0
    limit: float | None = None
    level: float = 0.95
    blocks: int = 8
    device: Device = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.min_runs < 2 or self.blocks < 2 or self.threads < 1 or not 0.5 < self.level < 1:
            raise UsageError("latency needs min_runs >= 2, blocks >= 2, threads >= 1 and 0.5 < level < 1")

    @property
    def clock(self) -> str:
        """``cpu`` or ``wall``; see ``threads``."""
        return "cpu" if self.device == "cpu" and self.threads == 1 else "wall"


def paired_latency(
    reference: Model,
    candidate: Model,
    inputs: Mapping[str, AnyArray],
    timing: Timing | None = None,
    *,
    candidate_inputs: Mapping[str, AnyArray] | None = None,
) -> LatencyRatio:
    """Measure candidate over reference latency.

    Args:
        reference: path or bytes.
        candidate: path or bytes.
        inputs: by name, for both models.
        timing: how long and how to measure; None for the defaults of `Timing`.
        candidate_inputs: for the candidate, if its inputs differ.

    Raises:
        UsageError: an input is missing.
        MissingEnvironment, CheckFailed: as `growpipe.checks.measure.sessions.open_session`.
    """
    timing = timing or Timing()
    now = time.thread_time if timing.clock == "cpu" else time.perf_counter
    random = np.random.default_rng(timing.seed)
    started = time.perf_counter()
    looks = timing.blocks
    models = (reference, candidate, reference)
    given = (inputs, candidate_inputs or inputs, inputs)
    samples: list[npt.NDArray[np.float64]] = []  # each [rounds, 3]: seconds per run of A, B, A'
    while True:
        opened = {
            # In another order in every block: what is loaded first finds other memory than what comes later.
            position: open_session(models[position], device=timing.device, threads=timing.threads)
            for position in random.permutation(len(models))
        }
        sessions = [opened[position] for position in range(len(models))]
        runners = [
            _runner(session, session.prepared(feed)) for session, feed in zip(sessions, given, strict=True)
        ]
        with readable_errors("onnxruntime could not run the model"):
            samples.append(_block(runners, now, random))
        del runners, sessions, opened
        runs = sum(len(block) for block in samples)
        over = time.perf_counter() - started >= timing.seconds
        if len(samples) < 2 or (not over and (runs < timing.min_runs or len(samples) < looks)):
            continue
        result = _result(samples, timing)
        if over or timing.limit is None or not result.inconclusive(timing.limit):
            return result
        # Looking seldom: every look takes time from the measurement and is a chance to be wrong.
        looks = math.ceil(1.3 * len(samples))


def _runner(session: Session, feed: dict[str, AnyArray]) -> Callable[[], object]:
    run = session.raw.run
    return lambda: run(None, feed)


def _block(
    runners: list[Callable[[], object]],
    now: Callable[[], float],
    random: np.random.Generator,
) -> npt.NDArray[np.float64]:
    """Seconds per run, [rounds, models]. The order turns with every round: no model is always first."""
    longest = 0.0
    for run in runners:
        for _ in range(3):  # the first runs allocate
            begin = now()
            run()
            last = now() - begin
            if last > SLOW_SECONDS:
                break
        longest = max(longest, last)
    repeats = max(1, math.ceil(SAMPLE_SECONDS / max(longest, 1e-7)))
    rounds = int(BLOCK_SECONDS / (len(runners) * repeats * max(longest, 1e-7)))
    rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS if longest < SLOW_SECONDS else 1, rounds))
    times = np.empty((rounds, len(runners)))
    order = list(random.permutation(len(runners)))
    for round_ in range(rounds):
        for position in order:
            run = runners[position]
            begin = now()
            for _ in range(repeats):
                run()
            times[round_, position] = max(now() - begin, 1e-9) / repeats
        order = order[::-1] if round_ % 2 == 0 else list(random.permutation(len(runners)))
    return times


def _result(samples: list[npt.NDArray[np.float64]], timing: Timing) -> LatencyRatio:
    level, seed = timing.level, timing.seed
    logs = [np.log(block) for block in samples]
    # Both sessions of the reference: the mean of two is a steadier yardstick than one.
    ratio, low, high = ratio_interval([b[:, 1] - (b[:, 0] + b[:, 2]) / 2 for b in logs], level, seed)
    _, same_low, same_high = ratio_interval([b[:, 2] - b[:, 0] for b in logs], level, seed + 1)
    # An A/A interval that does not even hold 0 shows a bias that the interval of B/A cannot see.
    bias = max(same_low, 0.0, -same_high)
    times = np.concatenate(samples)
    return LatencyRatio(
        ratio=math.exp(ratio),
        low=math.exp(low - bias),
        high=math.exp(high + bias),
        level=level,
        reference_ms=1e3 * float(np.median(times[:, [0, 2]])),
        candidate_ms=1e3 * float(np.median(times[:, 1])),
        runs=len(times),
        noise=math.expm1((same_high - same_low) / 2 + bias),
        clock=timing.clock,
        threads=timing.threads,
    )


def ratio_interval(
    blocks: list[npt.NDArray[np.float64]], level: float, seed: int = 0
) -> tuple[float, float, float]:
    """The median of paired log ratios, and its interval by a bootstrap over blocks.

    Rounds of one block share their sessions and are not independent, so whole blocks are drawn.

    Args:
        blocks: log ratios, each [rounds].
        level: the confidence level.

    Returns:
        Median and both ends of the interval (the median always lies within), as logarithms.
    """
    values = np.concatenate(blocks)
    block_of = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    order = np.argsort(values)
    drawn = np.random.default_rng(seed).multinomial(
        len(blocks), np.full(len(blocks), 1 / len(blocks)), size=RESAMPLES
    )
    middle = []
    for part in np.array_split(drawn, math.ceil(RESAMPLES * len(values) / 4e6)):  # to bound the memory
        # weights[r, i]: how often resample r holds the i smallest values; half of all is at the median.
        weights = np.cumsum(part[:, block_of[order]], axis=1, dtype=np.int32)
        middle.append(np.argmax(2 * weights >= weights[:, -1:], axis=1))
    medians = values[order][np.concatenate(middle)]
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    median = float(np.median(values))
    # The bootstrap is too narrow for few blocks, as the normal interval is for few samples: Student's factor.
    count = len(blocks)
    wider = math.sqrt(count / (count - 1)) * stdtrit(count - 1, 0.5 + level / 2) / ndtri(0.5 + level / 2)
    return median, median - wider * max(median - float(low), 0), median + wider * max(float(high) - median, 0)
