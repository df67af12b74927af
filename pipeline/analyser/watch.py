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

__all__ = ["LOSS", "Estimate", "Pace", "Prices", "Watch", "bar"]

SLOPES, LOSS = 0.7, 0.5
"""What a sample takes in a shared trial, in visits with a block of products; and in the loss of a grown
network, in training steps. Measured on the networks of ``benchmarks/analyser/price.py`` on one CPU core."""

FIRST_PASSES, LAST_PASSES = 5, 1.5
"""How often products run over the first analysis set, and over what comes after it."""

STEPS = 5
"""How many losses a line search takes: that without a step, and those of the steps that it tries."""

LONG = 60.0
"""An analysis that is expected to take more seconds says so."""


@dataclass(frozen=True)
class Prices:
    """What the spectra take per sample, in samples of a training step. The defaults are a guess.

    Attributes:
        product: a block of products for all groups, if what it needs of the sample is kept.
        visit: the passes through the network that make what products need.
        again: which share of the samples is visited again by every further block of products.
    """

    product: float = 0.6
    visit: float = 0.9
    again: float = 0.0

    def of(self, samples: int, share: float, visited: bool) -> float:
        """What products over some samples take, see `SplittingProducts.done`."""
        return samples * (self.product * share + self.visit * visited)

    @property
    def slopes(self) -> float:
        """What a shared trial takes."""
        return SLOPES * (self.product + self.visit)


class Watch:
    """Sees an analysis at work. This one does nothing.

    Attributes:
        prices: what the spectra take per sample.
    """

    prices = Prices()

    def phase(self, name: str) -> None:
        """A phase begins: export, spectra, trials, choice, line search, plan."""

    def advance(self, work: float) -> None:
        """So much more work is done."""

    def expect(self, work: float) -> None:
        """So much work there is in all, at most."""


@dataclass
class _Pass:
    """One pass of products over the analysis set.

    Attributes:
        began: when its first micro-batch was done.
        products: its samples, times their share of a block of products for all groups.
        visits: its samples that were visited.
        samples: all of them.
    """

    began: float
    products: float = 0.0
    visits: int = 0
    samples: int = 0


class Pace:
    """What products, visits and the metric take, from the first two passes of the spectra.

    What is kept of a micro-batch is made by a visit in the first pass, so that later ones cost less.

    Args:
        seconds: what one sample of a training step takes.
        known: called once the prices are known, with them and with what the metric of the first analysis set
            took, in samples of a training step.
    """

    def __init__(self, seconds: float, known: Callable[[Prices, float], None]) -> None:
        self._seconds, self._known = seconds, known
        self._began = time.perf_counter()
        self._first = 0.0, 0
        self._passes: list[_Pass] = []
        self._number: int | None = None

    def done(self, number: int, samples: int, share: float, visited: bool) -> None:
        """Products over a micro-batch are done. Those of groups with S = 0 alone tell nothing.

        Args:
            number: of the pass.
            samples: see `SplittingProducts.done`.
            share: likewise.
            visited: likewise.
        """
        if len(self._passes) == 3 or share <= 0:
            return
        if number != self._number:
            self._number = number
            self._passes.append(_Pass(time.perf_counter()))
            if len(self._passes) == 1:
                self._first = samples * share, samples * visited
            if len(self._passes) == 3:
                self._tell()
                return
        latest = self._passes[-1]
        latest.products += samples * share
        latest.visits += samples * visited
        latest.samples += samples

    def ended(self) -> None:
        """The spectra are done, perhaps after fewer passes."""
        if 0 < len(self._passes) < 3:
            now = time.perf_counter()
            self._passes += [_Pass(now) for _ in range(3 - len(self._passes))]
            self._tell()

    def _tell(self) -> None:
        """Solve for the two prices that explain how long the two passes took."""
        first, second, third = self._passes
        took = second.began - first.began, third.began - second.began
        guess = Prices()
        ratio = guess.visit / guess.product
        # Both equations say the same if the second pass visits what the first one did.
        scale = first.products * second.visits - second.products * first.visits
        if abs(scale) > 0.2 * second.products * max(first.visits, 1):
            visit = (first.products * took[1] - second.products * took[0]) / scale
            product = (took[1] - second.visits * visit) / second.products
        else:
            product = -1.0
        if product <= 0 or visit < 0:
            product = sum(took) / sum(one.products + ratio * one.visits for one in (first, second))
            visit = ratio * product
        # The metric comes before the first micro-batch.
        metric = first.began - self._began - self._first[0] * product - self._first[1] * visit
        prices = Prices(
            product / self._seconds, visit / self._seconds, second.visits / max(1, second.samples)
        )
        self._known(prices, max(0.0, metric) / self._seconds)


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
        prices: Prices = Prices(),
        metric: float = 0.0,
    ) -> Estimate:
        """From the samples that there are.

        Args:
            samples: those for the spectra.
            held_out: those that the spectra do not see.
            options: of the analysis.
            rounds: how often the samples of the steps are seen.
            seconds: what one sample of a training step takes.
            prices: what the spectra take per sample.
            metric: what the metric of the first analysis set takes.
        """
        trials, spectra = options.trials, options.spectra
        there = samples + held_out

        def products(count: int) -> float:
            first = min(count, max(4 * min(spectra.micro_batch, -(-count // 4)), count // 8))
            # The metric of a larger set takes new roots, and the moments of what is new.
            passes = FIRST_PASSES * prices.product + (1 + (FIRST_PASSES - 1) * prices.again) * prices.visit
            work = first * passes + metric
            further = LAST_PASSES * count * (prices.product + prices.visit) + 2 * metric
            return work if first == count else work + further

        realised = trials.ranking == "realised"
        slopes = min(there, trials.step_samples) * rounds + min(there, trials.ranking_samples)
        searched = options.growth.epsilon is None
        return Estimate(
            products(samples),
            products(samples // 2),
            prices.slopes * slopes if realised else 0.0,
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
