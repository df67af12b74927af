"""How far an analysis is, what it will take, and who wants to know.

Work is counted in samples of a training step: what one forward pass and both backward passes of a sample
cost. The counts tell when a bar moves and what a long analysis is said to take. No result depends on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.errors import LiveError
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from growpipe.analyser.options import AnalysisOptions
from growpipe.progress import console, log

__all__ = ["LOSS", "PRODUCT", "SLOPES", "Estimate", "Pace", "Watch", "bar"]

PRODUCT, SLOPES, LOSS = 0.8, 1.2, 0.5
"""What a sample takes: in a block of products; in a shared trial, as a multiple of that; in the loss of a
grown network.

The first is a guess until the first products are measured, see `Pace`. All three were measured on the
networks of ``benchmarks/analyser/price.py`` on one CPU core."""

FIRST_VISITS, LAST_VISITS = 4, 2
"""How often products run over the first analysis set, and over what comes after it."""

STEPS = 5
"""How many losses a line search takes: that without a step, and those of the steps that it tries."""

LONG = 60.0
"""An analysis that is expected to take more seconds says so."""


class Watch:
    """Sees an analysis at work. This one does nothing.

    Attributes:
        product: what a block of products takes per sample, in samples of a training step.
    """

    product = PRODUCT

    def phase(self, name: str) -> None:
        """A phase begins: export, spectra, trials, choice, line search, plan."""

    def advance(self, work: float) -> None:
        """So much more work is done."""

    def expect(self, work: float) -> None:
        """So much work there is in all, at most."""


class Pace:
    """What products and the metric take, from the first two micro-batches of the spectra.

    Args:
        seconds: what one sample of a training step takes.
        known: called once both are known, with what a block of products takes per sample and what the metric
            of the first analysis set took, in samples of a training step.
    """

    def __init__(self, seconds: float, known: Callable[[float, float], None]) -> None:
        self._seconds, self._known = seconds, known
        self._times = [time.perf_counter()]

    def done(self, samples: float) -> None:
        """Products over so many samples are done. Those over 0 samples tell nothing: S was known to be 0."""
        if len(self._times) == 3 or samples <= 0:
            return
        self._times.append(time.perf_counter())
        if len(self._times) == 3:
            began, first, second = self._times
            took = second - first
            # The metric comes before the first products.
            metric = max(0.0, first - began - took)
            self._known(took / samples / self._seconds, metric / self._seconds)


@dataclass(frozen=True)
class Estimate:
    """What an analysis will take at most, in samples of a training step.

    Attributes:
        spectra: for the spectra.
        halved: for the spectra of half of the samples.
        trials: for the shared trials.
        line_search: for the search of ε.
        batch: the samples that are worked on at once.
        seconds: what one sample of a training step takes.
    """

    spectra: float
    halved: float
    trials: float
    line_search: float
    batch: int
    seconds: float

    @staticmethod
    def of(
        samples: int,
        held_out: int,
        options: AnalysisOptions,
        rounds: float,
        seconds: float,
        product: float = PRODUCT,
        metric: float = 0.0,
    ) -> Estimate:
        """From the samples that there are.

        Args:
            samples: those for the spectra.
            held_out: those that the spectra do not see.
            options: of the analysis.
            rounds: how often the samples of the steps are seen.
            seconds: what one sample of a training step takes.
            product: what a block of products takes per sample, in samples of a training step.
            metric: what the metric of the first analysis set takes.
        """
        trials, spectra = options.trials, options.spectra
        there = samples + held_out

        def products(count: int) -> float:
            first = min(count, max(4 * min(spectra.micro_batch, -(-count // 4)), count // 8))
            # The metric of a larger set takes new roots, and the moments of what is new.
            work = FIRST_VISITS * product * first + metric
            return work if first == count else work + LAST_VISITS * product * count + 2 * metric

        realised = trials.ranking == "realised"
        slopes = min(there, trials.step_samples) * rounds + min(there, trials.ranking_samples)
        searched = options.growth.epsilon is None
        return Estimate(
            products(samples),
            products(samples // 2),
            SLOPES * product * slopes if realised else 0.0,
            LOSS * STEPS * min(there, trials.line_search_samples) if searched else 0.0,
            min(spectra.micro_batch, samples),
            seconds,
        )

    @property
    def work(self) -> float:
        """All of it."""
        return self.spectra + self.trials + self.line_search

    def sentence(self, samples: int) -> str:
        """What a long analysis says first."""
        steps = max(1, round(self.work / self.batch))
        saved = (self.spectra - self.halved) / self.work
        return (
            f"the analysis takes up to about {steps:,} training steps of {self.batch} samples, "
            f"{_duration(self.seconds * self.work)}; max_samples={samples // 2} saves about {saved:.0%}"
        )

    def announce(self, samples: int) -> None:
        """Say it if it is long."""
        if self.seconds * self.work > LONG:
            log(self.sentence(samples))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


class _Bar(Watch):
    """A bar on the terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("analysis", total=None)

    def phase(self, name: str) -> None:
        self._progress.update(self._task, description=f"analysis: {name}")

    def advance(self, work: float) -> None:
        self._progress.update(self._task, advance=work)

    def expect(self, work: float) -> None:
        self._progress.update(self._task, total=work)


@contextmanager
def bar() -> Iterator[Watch]:
    """A bar with the time left while the block runs; nothing where there is no terminal or another bar."""
    target = console()
    if not target.is_terminal or target.quiet:
        yield Watch()
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    progress = Progress(*columns, console=target, transient=True)
    try:
        progress.start()
    except LiveError:
        yield Watch()
        return
    try:
        yield _Bar(progress)
    finally:
        progress.stop()
