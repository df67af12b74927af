"""What an analysis will take, and a word about it before a long one."""

from __future__ import annotations

from dataclasses import dataclass

from growpipe.analyser.choice.shared_trials import ROUNDS
from growpipe.analyser.curvature.operator import BLOCK
from growpipe.analyser.options import AnalysisOptions
from growpipe.analyser.samples import Samples
from growpipe.analyser.spectra.analysis_set import COARSE, GrowingSet
from growpipe.analyser.spectra.spectra import AnalysisStage
from growpipe.analyser.watch import LOSS, Pace, Prices, Watch
from growpipe.progress import log

__all__ = ["LONG", "Estimate", "Outlook"]

FIRST_PASSES, NEXT_PASSES = 5.0, (2.0, 3.0)
"""How often products run over the first analysis set, and over each further one, at least and at most."""

STEPS = 5
"""How many losses a line search takes: that without a step, and those of the steps that it tries."""

LONG = 60.0
"""An analysis that is expected to take more seconds says so."""


@dataclass(frozen=True)
class Estimate:
    """What an analysis will take, in samples of a training step.

    Attributes:
        first: for the spectra, if the ranking is stable on the first set.
        spectra: for the spectra, if all samples are wanted.
        halved: likewise with half of the samples.
        trials: for the shared trials.
        line_search: for the search of ε.
        batch: the samples that are worked on at once.
        seconds: what one sample of a training step takes.
    """

    first: float
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
        batch: int,
        options: AnalysisOptions,
        rounds: float,
        seconds: float,
        prices: Prices | None = None,
        metric: float = 0.0,
    ) -> Estimate:
        """From the samples that there are.

        Args:
            samples: those for the spectra.
            held_out: those that the spectra do not see.
            batch: those that are worked on at once.
            options: of the analysis.
            rounds: how often the samples of the steps are seen.
            seconds: what one sample of a training step takes.
            prices: what the spectra take per sample; a guess by default.
            metric: what the metric of the first analysis set takes.
        """
        trials = options.trials
        prices = Prices() if prices is None else prices
        there = samples + held_out

        def passes(count: int, often: float) -> float:
            return count * (often * prices.product + (1 + (often - 1) * prices.again) * prices.visit)

        def products(count: int) -> tuple[float, float]:
            """On the first set that is judged, and on all."""
            piece = min(batch, -(-count // 4))
            first = min(count, max(4 * piece, count // 8))
            coarse = piece if piece >= 2 * COARSE else 0
            least, most = NEXT_PASSES if coarse else (FIRST_PASSES, FIRST_PASSES)
            begun = passes(coarse, FIRST_PASSES) + metric
            # The metric of a larger set takes new roots, and the moments of what is new.
            further = NEXT_PASSES[1] * count * (prices.product + prices.visit) + 2 * metric
            every = begun + passes(first, most) + (further if first < count else 0.0)
            return begun + passes(first, least), every

        realised = trials.ranking == "realised"
        slopes = min(there, trials.step_samples) * rounds + min(there, trials.ranking_samples)
        searched = options.growth.epsilon is None
        return Estimate(
            *products(samples),
            products(samples // 2)[1],
            prices.slopes * slopes if realised else 0.0,
            LOSS * STEPS * min(there, trials.line_search_samples) if searched else 0.0,
            batch,
            seconds,
        )

    @property
    def least(self) -> float:
        """All of it, if the ranking is stable on the first set."""
        return self.first + self.trials + self.line_search

    @property
    def most(self) -> float:
        """All of it, if all samples are wanted."""
        return self.spectra + self.trials + self.line_search

    def sentence(self, samples: int) -> str:
        """What a long analysis says first."""
        ends = sorted({max(1, round(work / self.batch)) for work in (self.least, self.most)})
        steps = " to ".join(f"{end:,}" for end in ends)
        saved = (self.spectra - self.halved) / self.most
        return (
            f"the analysis takes about {steps} training steps of {self.batch} samples, "
            f"{_duration(self.seconds * self.least, self.seconds * self.most)}, fewer the sooner the ranking "
            f"of splits is stable; max_samples={samples // 2} saves up to about {saved:.0%}"
        )

    @staticmethod
    def of_samples(
        samples: Samples, options: AnalysisOptions, prices: Prices | None = None, metric: float = 0.0
    ) -> Estimate:
        """From the samples of an analysis, see `of`."""
        there = samples.count, samples.held_out_count, max(batch.samples for batch in samples.data)
        return Estimate.of(*there, options, sum(ROUNDS), samples.seconds, prices, metric)

    def tell(self, watch: Watch) -> None:
        """Tell a watch what to expect."""
        watch.expect(self.least, self.most, self.seconds)

    def further(self, before: AnalysisStage, samples: int, prices: Prices) -> float:
        """What the spectra on a further set take at most, if it needs as many products as the set before.

        Args:
            before: what the set before took.
            samples: those of the further set.
            prices: what the spectra take per sample, as measured on the first set.
        """
        blocks = max(NEXT_PASSES[1], before.products_per_group / BLOCK)
        passes = max(NEXT_PASSES[1], before.products)
        # No more samples are kept than before.
        again = 1 - (1 - prices.again) * before.samples / samples
        return samples * (blocks * prices.product + (1 + (passes - 1) * again) * prices.visit)

    def announce_further(self, before: AnalysisStage, samples: int, work: float) -> None:
        """Say what a further set takes if it may be long.

        Args:
            before: what the set before it took.
            samples: those of the further set.
            work: what it takes, see `further`.
        """
        if self.seconds * work > LONG:
            steps, took = round(work / self.batch), self.seconds * work
            log(
                f"the ranking of splits is not stable on {before.samples:,} samples; {samples:,} take up to "
                f"about {steps:,} training steps of {self.batch} samples, {_duration(took, took)}"
            )

    def announce(self, samples: int) -> None:
        """Say it if it may be long."""
        if self.seconds * self.most > LONG:
            log(self.sentence(samples))


class Outlook:
    """Tells a watch how far the spectra are, and what they take as it becomes known.

    Args:
        samples: of the analysis.
        options: of the analysis.
        watch: is told.
        sets: the analysis sets.
    """

    def __init__(self, samples: Samples, options: AnalysisOptions, watch: Watch, sets: GrowingSet) -> None:
        self._samples, self._options, self._watch, self._sets = samples, options, watch, sets
        self._pace = Pace(samples.seconds, self._known)
        self._on_coarse = self._are_known = False
        self._spent = 0.0

    def done(self, count: int, share: float, visited: bool) -> None:
        """Products over a micro-batch are done, see `SplittingProducts.done`."""
        if self._on_coarse and not self._sets.is_coarse:
            self._pace.restart()  # a sample of the small batches of a coarse set costs more
        self._on_coarse = self._sets.is_coarse
        self._pace.done(self._sets.operator.products, count, share, visited)
        work = self._watch.prices.of(count, share, visited)
        self._spent += work
        self._watch.advance(work)

    def grows(self, before: AnalysisStage, samples: int) -> None:
        """The ranking is not stable, and a set of so many samples is next, see `measure_spectra`."""
        if not self._are_known:
            return
        estimate = Estimate.of_samples(self._samples, self._options, self._watch.prices)
        further = estimate.further(before, samples, self._watch.prices)
        self._watch.correct(self._spent + further + estimate.trials + estimate.line_search)
        estimate.announce_further(before, samples, further)

    def ended(self) -> None:
        """The spectra are done."""
        self._pace.ended()

    def _known(self, prices: Prices, metric: float) -> None:
        self._watch.prices, self._are_known = prices, True
        estimate = Estimate.of_samples(self._samples, self._options, prices, metric)
        estimate.tell(self._watch)
        if not self._sets.is_coarse:
            estimate.announce(self._samples.count)


def _duration(least: float, most: float) -> str:
    unit, seconds = ("s", 1) if most < 120 else ("min", 60)
    ends = dict.fromkeys(f"{end / seconds:.0f}" for end in (least, most))
    return f"{' to '.join(ends)} {unit}"
