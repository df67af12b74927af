"""What an analysis will take, and a word about it before a long one."""

from __future__ import annotations

from dataclasses import dataclass

from growpipe.analyser.options import AnalysisOptions
from growpipe.analyser.spectra.analysis_set import COARSE
from growpipe.analyser.watch import LOSS, Prices
from growpipe.progress import log

__all__ = ["LONG", "Estimate"]

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

    def announce(self, samples: int) -> None:
        """Say it if it may be long."""
        if self.seconds * self.most > LONG:
            log(self.sentence(samples))


def _duration(least: float, most: float) -> str:
    unit, seconds = ("s", 1) if most < 120 else ("min", 60)
    ends = dict.fromkeys(f"{end / seconds:.0f}" for end in (least, most))
    return f"{' to '.join(ends)} {unit}"
