"""The extreme eigenpairs of every channel on a growing analysis set, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from torch import Tensor

from growpipe.analyser.candidates import Candidates
from growpipe.analyser.curvature.metric import Metric
from growpipe.analyser.curvature.operator import BLOCK, SplittingProducts
from growpipe.analyser.options import SpectraOptions
from growpipe.analyser.schemes import ROWS, Scheme
from growpipe.analyser.spectra.analysis_set import GrowingSet
from growpipe.analyser.spectra.drive import LEAST, random_starts
from growpipe.analyser.spectra.recurrence import Ends
from growpipe.analyser.spectra.solvers import FloatArray, Solution, Start, solve

__all__ = ["AnalysisStage", "Directions", "GroupReport", "Spectra", "measure_spectra"]


@dataclass(frozen=True)
class AnalysisStage:
    """What one analysis set cost and showed.

    Attributes:
        samples: the size of the set.
        dense_groups: the number of groups solved by the dense solver.
        products: how often the operator was called.
        products_per_group: the vectors per channel that S was applied to, on average over the groups.
        error: the worst error bound of an eigenvalue, as a share of its channel's spectral radius.
        rank_agreement: Spearman's correlation of the candidates' values on the two halves of the set.
        rank_reliability: the split-half reliability of the ranking by the whole set.
    """

    samples: int
    dense_groups: int
    products: int
    products_per_group: float
    error: float
    rank_agreement: float
    rank_reliability: float


@dataclass(frozen=True)
class GroupReport:
    """What the spectra say of one group.

    Attributes:
        channels: its width.
        dimension: d, the displaced entries per channel.
        lowest: the least λ−.
        highest: the greatest λ+.
        low: λ− of every channel, to four digits.
        high: λ+ of every channel, to four digits.
        standard_error: the median standard error of its eigenvalues.
        splits: by name of the optimal split the number of channels that split so.
    """

    channels: int
    dimension: int
    lowest: float
    highest: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    standard_error: float
    splits: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Directions:
    """The extreme eigenvectors in parameter coordinates, of length 1 in the metric.

    Attributes:
        minus: by group v−, [width, d].
        plus: by group v+, [width, d].
    """

    minus: Mapping[str, FloatArray]
    plus: Mapping[str, FloatArray]


@dataclass(frozen=True, eq=False)
class Spectra:
    """What the analysis knows of every channel of every group.

    Attributes:
        low: by group λ−, float64 [width].
        high: by group λ+, float64 [width].
        low_error: by group the standard error of λ−, float64 [width], from disjoint halves of the data.
        high_error: by group the standard error of λ+, float64 [width].
        directions: the eigenvectors.
        candidates: the splits on offer.
        stages: the analysis sets, in order.
        ranking_stable: whether the ranking became stable before the samples were used up.
        sketched: the tensors whose metric keeps the leading eigenpairs only, see `Metric`.
    """

    low: Mapping[str, FloatArray]
    high: Mapping[str, FloatArray]
    low_error: Mapping[str, FloatArray]
    high_error: Mapping[str, FloatArray]
    directions: Directions
    candidates: tuple[Candidates, ...]
    stages: tuple[AnalysisStage, ...]
    ranking_stable: bool
    sketched: tuple[str, ...] = ()

    def values(self, rows: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, float]:
        """By group Σ w δᵀSδ over its channels, when they split by ``rows``, −1 for not at all."""
        totals = {}
        for offered in self.candidates:
            chosen = rows[offered.group]
            added = np.array([ROWS[row].copies - 2 for row in chosen])  # the row of `exact_values`
            channels = np.flatnonzero(chosen >= 0)
            totals[offered.group] = float(offered.exact_values[added[channels], channels].sum())
        return totals

    def report(self, rows: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, GroupReport]:
        """One entry per group; ``rows`` are the chosen splits."""
        return {name: self._group_report(name, rows[name]) for name in self.low}

    def _group_report(self, name: str, rows: npt.NDArray[np.int64]) -> GroupReport:
        counts = {row.name: int(np.count_nonzero(rows == index)) for index, row in enumerate(ROWS)}
        errors = np.concatenate([self.low_error[name], self.high_error[name]])
        return GroupReport(
            channels=len(self.low[name]),
            dimension=int(self.directions.minus[name].shape[1]),
            lowest=float(self.low[name].min()),
            highest=float(self.high[name].max()),
            low=_shown(self.low[name]),
            high=_shown(self.high[name]),
            standard_error=float(np.median(errors)),
            splits={split: count for split, count in counts.items() if count},
        )


def _shown(values: FloatArray) -> tuple[float, ...]:
    """Eigenvalues for people: a plan of thousands of channels stays small."""
    return tuple(float(f"{value:.4g}") for value in values)


@dataclass(frozen=True, eq=False)
class _Found:
    """The ends on one analysis set, for the search on the next one.

    Attributes:
        solution: the ends in parameter coordinates, and how they were found.
        batches: the number of micro-batches of the set.
    """

    solution: Solution
    batches: int


def measure_spectra(
    sets: GrowingSet,
    make_metric: Callable[[SplittingProducts], Metric],
    scheme: Scheme,
    options: SpectraOptions,
    grows: Callable[[AnalysisStage, int], None] | None = None,
) -> Spectra:
    """Eigenpairs on growing analysis sets, until the ranking of the candidates is stable.

    On each set the extreme eigenpairs are found, from a random start, then from those of the set before (see
    `refinement`). A coarse set is not judged. On two disjoint halves of any other, q = vᵀSv gives standard
    errors ``|q₁ − q₂| / 2`` and two rankings of the candidates. From their rank correlation ρ (Spearman's)
    the ranking by the whole set has the split-half reliability ``R = 2ρ / (1 + ρ)``, the correlation to
    expect with another set as large (the Spearman-Brown formula). It is stable when R reaches ``stability``;
    else the next set is ``stability (1 − R) / (R (1 − stability))`` times as large, by the same formula, and
    a tenth more, but half as large again at least.

    Args:
        sets: the analysis sets.
        make_metric: measures the metric on a set.
        scheme: gives the candidates.
        options: how the eigenpairs are found, and when the sets stop growing.
        grows: told of a judged set that was not enough, and of the number of samples of the next one.
    """
    stages: list[AnalysisStage] = []
    operator, found = sets.begin(), None
    while True:
        metric = make_metric(operator)
        start = _start(operator, metric, found, options)
        found = None  # its memory is wanted for the products
        found, stage = _measure_set(operator, metric, start, scheme, options)
        stages.append(stage)
        wanted, judged = 0, not sets.is_coarse
        if judged:
            if stage.rank_reliability >= options.stability:
                break
            further = _further(stage.rank_reliability, options.stability)
            wanted = math.ceil(stage.samples * max(1.5, 1.1 * further))
        larger = sets.grow(wanted)
        if larger is None:
            break
        operator = larger
        if judged and grows is not None:
            grows(stage, operator.total(operator.samples))
    names = [group.name for group in operator.groups]
    found_spectra = _spectra(names, found, scheme, stages, options.stability)
    return replace(found_spectra, sketched=metric.sketched)


def _measure_set(
    operator: SplittingProducts, metric: Metric, start: Start, scheme: Scheme, options: SpectraOptions
) -> tuple[_Found, AnalysisStage]:
    """The ends on one analysis set, and what the set cost and showed."""
    solution = solve(operator, metric, start, options, weights=scheme.weights, raw=True)
    ends = solution.extremes
    agreement = _agreement(solution, scheme)
    stage = AnalysisStage(
        samples=operator.total(operator.samples),
        dense_groups=solution.solvers.count("dense"),
        products=ends.steps,
        products_per_group=ends.group_products / len(operator.groups),
        error=ends.relative_error,
        rank_agreement=agreement,
        rank_reliability=max(0.0, 2 * agreement / (1 + agreement)) if agreement > -1 else 0.0,
    )
    return _Found(solution, len(operator)), stage


def _start(
    operator: SplittingProducts, metric: Metric, found: _Found | None, options: SpectraOptions
) -> Start:
    """From random weights, or from the ends on the set before with a little noise."""
    if found is None:
        return Start(_start_vectors(operator, metric, [], options.seed))
    ends = found.solution.extremes.groups
    vectors = _start_vectors(operator, metric, list(ends), options.seed)
    if options.noise_share > 0:
        return Start(vectors, [LEAST] * len(ends), found.batches)
    # About half as many products as from a random start.
    return Start(vectors, [max(LEAST, -(-known.minus_in.shape[1] // 2)) for known in ends])


def _start_vectors(
    operator: SplittingProducts, metric: Metric, ends: list[Ends], seed: int
) -> Iterator[Tensor]:
    """Group by group the start vectors, [block, width, d].

    Args:
        operator: S.
        metric: the metric.
        ends: by group those found on the set before, in parameter coordinates; none for a random start. They
            are taken out, so that their memory is free.
        seed: of the random weights.
    """
    ends.reverse()
    # Random weights rather than random whitened ones: they see what the inputs mostly are.
    tensors = [operator.program.tensor(group.blocks[0].tensor) for group in operator.groups]
    shapes = [(group.width, group.dimension) for group in operator.groups]
    likes = (tensor.new_empty(()).expand(shape) for tensor, shape in zip(tensors, shapes, strict=True))
    weights = random_starts(likes, seed, BLOCK)
    for position in range(len(operator.groups)):
        yield _start_vector(metric, position, next(weights), ends.pop() if ends else None)


def _start_vector(metric: Metric, position: int, weights: Tensor, old: Ends | None) -> Tensor:
    """The start vectors of one group, see `_start_vectors`."""
    vectors = metric.whitened(position, weights)
    if old is not None:
        _start_from(vectors, metric.whitened(position, old.minus), metric.whitened(position, old.plus))
    metric.settle(position)
    return vectors


def _spectra(
    names: Sequence[str], found: _Found, scheme: Scheme, stages: Sequence[AnalysisStage], stability: float
) -> Spectra:
    extremes, contrasts, _ = found.solution
    low = {n: v.numpy() for n, v in zip(names, extremes.low, strict=True)}
    high = {n: v.numpy() for n, v in zip(names, extremes.high, strict=True)}
    errors = [{n: np.abs(q) / 2 for n, q in zip(names, end, strict=True)} for end in contrasts]
    return Spectra(
        low=low,
        high=high,
        low_error=errors[0],
        high_error=errors[1],
        directions=Directions(
            minus={n: v.cpu().numpy() for n, v in zip(names, extremes.minus, strict=True)},
            plus={n: v.cpu().numpy() for n, v in zip(names, extremes.plus, strict=True)},
        ),
        candidates=tuple(Candidates.of(n, low[n], high[n], scheme) for n in names),
        stages=tuple(stages),
        ranking_stable=stages[-1].rank_reliability >= stability,
    )


def _start_from(noise: Tensor, minus: Tensor, plus: Tensor) -> None:
    """Make a block of the old ends, and a little of the noise in it in case the new data turn them.

    Args:
        noise: [2, width, d]; changed in place to the start vectors.
        minus: v−, [width, d].
        plus: v+, [width, d].
    """
    noise.mul_(0.01 / torch.linalg.vector_norm(noise, dim=2, keepdim=True))
    noise.add_(torch.stack([minus, plus]))


def _further(reliability: float, stability: float) -> float:
    """How many times as many samples bring the reliability to ``stability``; Spearman-Brown."""
    if stability >= 1:
        return 64.0
    ratio = stability * (1 - reliability) / (max(reliability, 1e-2) * (1 - stability))
    return min(ratio, 64.0)


def _agreement(solution: Solution, scheme: Scheme) -> float:
    """Spearman's rank correlation of all candidates' values between the two halves of the data."""
    extremes, contrasts, _ = solution
    ranked = []
    for sign in (0.5, -0.5):
        values = []
        for low, high, low_contrast, high_contrast in zip(
            extremes.low, extremes.high, *contrasts, strict=True
        ):
            ends = (low.numpy() + sign * low_contrast, high.numpy() + sign * high_contrast)
            values.append(Candidates.of("", *ends, scheme).values[-1])
        ranked.append(np.concatenate(values))
    if any(np.ptp(values) == 0 for values in ranked):
        return 1.0 if all(np.ptp(values) == 0 for values in ranked) else 0.0
    return float(spearmanr(*ranked).statistic)
