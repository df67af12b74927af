"""How far an analysis is, what its work costs, and who wants to know.

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

from growpipe.progress import console

__all__ = ["LOSS", "Pace", "Prices", "Watch", "bar"]

SLOPES, LOSS = 0.7, 0.5
"""What a sample takes in a shared trial, in visits with a block of products; and in the loss of a grown
network, in training steps. Measured on the networks of ``benchmarks/analyser/price.py`` on one CPU core."""


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

    def expect(self, least: float, most: float, seconds: float) -> None:
        """So much work there is in all, and so long each unit of it takes."""

    def correct(self, most: float) -> None:
        """So much work there is in all at most, as is known when the first analysis set was not enough."""


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
        self._began = self._latest = time.perf_counter()
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
        self._latest = time.perf_counter()
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

    def restart(self) -> None:
        """Measure again from the last products on: what follows them is another set."""
        self._passes.clear()
        self._number, self._began = None, self._latest

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


class _Bar(Watch):
    """A bar on the terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("analysis", total=None)

    def phase(self, name: str) -> None:
        self._progress.update(self._task, description=f"analysis: {name}")

    def advance(self, work: float) -> None:
        self._progress.update(self._task, advance=work)

    def expect(self, least: float, most: float, seconds: float) -> None:
        self._progress.update(self._task, total=most)

    def correct(self, most: float) -> None:
        self._progress.update(self._task, total=most)


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
