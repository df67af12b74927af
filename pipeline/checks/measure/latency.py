"""Paired latency: two models in one process, interleaved, with an A/A calibration of the same moments.

Three sessions run in turn: the reference A, the candidate B and the reference once more, A'. B over the
mean of A and A' is what is asked; A'/A, measured in the same rounds, is what the machine makes of two equal
models. Sessions are made anew in every block, because where the allocator happened to put one is worth
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
from growpipe.graph_ops.errors import UsageError

__all__ = ["LatencyRatio", "Verdict", "paired_latency", "ratio_interval"]

Verdict = Literal["pass", "fail", "inconclusive"]

RESAMPLES = 1000
LEAST_ROUNDS, MOST_ROUNDS, BLOCK_SECONDS = 5, 40, 0.3
"""Rounds of one block: many short ones are worth more than few long ones, and new sessions cost time."""
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


def paired_latency(
    reference: Model,
    candidate: Model,
    inputs: Mapping[str, npt.NDArray],
    *,
    candidate_inputs: Mapping[str, npt.NDArray] | None = None,
    threads: int = 1,
    min_runs: int = 120,
    seconds: float = 30.0,
    limit: float | None = None,
    level: float = 0.95,
    blocks: int = 8,
    device: Device = "cpu",
    seed: int = 0,
) -> LatencyRatio:
    """Measure candidate over reference latency.

    With one thread on a CPU the clock is the thread's own CPU time: the run happens in the calling thread,
    and what other processes take is not counted. Otherwise it is the wall clock.

    Args:
        reference, candidate: paths or bytes.
        inputs: by name, for both models.
        candidate_inputs: for the candidate, where its inputs differ.
        threads: threads within an operator.
        min_runs: least number of paired samples.
        seconds: the most time spent on settling the verdict for ``limit``; a target, not a hard limit.
        limit: of the ratio. Without one a single look is taken, after ``min_runs`` and ``blocks``.
        level: confidence level of the intervals.
        blocks: number of times that the sessions are made anew before the first look at the result.
        seed: of the order and of the bootstrap.

    Raises:
        UsageError: an input is missing or an argument is out of range.
        MissingEnvironment, CheckFailed: as `growpipe.checks.measure.sessions.open_session`.
    """
    if min_runs < 2 or blocks < 2 or threads < 1 or not 0.5 < level < 1:
        raise UsageError("latency needs min_runs >= 2, blocks >= 2, threads >= 1 and 0.5 < level < 1")
    clock = "cpu" if device == "cpu" and threads == 1 else "wall"
    now = time.thread_time if clock == "cpu" else time.perf_counter
    random = np.random.default_rng(seed)
    started = time.perf_counter()
    looks = blocks
    samples: list[npt.NDArray[np.float64]] = []  # each [rounds, 3]: seconds per run of A, B, A'
    while True:
        models = (reference, candidate, reference)
        opened = {
            # In another order in every block: what is loaded first finds other memory than what comes later.
            position: open_session(models[position], device=device, threads=threads)
            for position in random.permutation(len(models))
        }
        sessions = [opened[position] for position in range(len(models))]
        feeds = [
            session.prepared(given)
            for session, given in zip(sessions, (inputs, candidate_inputs or inputs, inputs), strict=True)
        ]
        runners = [_runner(session, feed) for session, feed in zip(sessions, feeds, strict=True)]
        with readable_errors("onnxruntime could not run the model"):
            samples.append(_block(runners, now, random))
        del runners, sessions, opened
        runs = sum(len(block) for block in samples)
        over = time.perf_counter() - started >= seconds
        if runs < min_runs or len(samples) < 2 or (len(samples) < looks and not over):
            continue
        result = _result(samples, level, clock, threads, seed)
        if over or limit is None or not result.inconclusive(limit):
            return result
        # Looking seldom: every look takes time from the measurement and is a chance to be wrong.
        looks = math.ceil(1.3 * len(samples))


def _runner(session: Session, feed: dict[str, npt.NDArray]) -> Callable[[], object]:
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
        for _ in range(2):  # the first runs allocate
            run()
        begin = now()
        run()
        longest = max(longest, now() - begin)
    repeats = max(1, math.ceil(SAMPLE_SECONDS / max(longest, 1e-7)))
    rounds = int(BLOCK_SECONDS / (len(runners) * repeats * max(longest, 1e-7)))
    rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, rounds))
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


def _result(
    samples: list[npt.NDArray[np.float64]], level: float, clock: str, threads: int, seed: int
) -> LatencyRatio:
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
        clock=clock,
        threads=threads,
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
