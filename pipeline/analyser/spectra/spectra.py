"""The extreme eigenpairs of every channel on a growing analysis set, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from torch import Tensor

from growpipe.analyser.candidates import Candidates
from growpipe.analyser.curvature.metric import Metric
from growpipe.analyser.curvature.operator import SplittingOperator
from growpipe.analyser.schemes import ROWS, Scheme
from growpipe.analyser.spectra.drive import Extremes, random_start
from growpipe.analyser.spectra.solvers import Contrasts, FloatArray, solve
from growpipe.graph_ops.errors import UsageError

__all__ = ["Spectra", "measure_spectra"]

BLOCK = 2
"""How many vectors per channel S is applied to at once: as many as there are ends to start from.

What is not kept of a micro-batch is computed anew once for all of them, which costs more than a product."""

LEAST = 4
"""The least number of products of Lanczos: with fewer nothing is known of what lies between the ends."""


@dataclass(frozen=True, eq=False)
class Spectra:
    """What the analysis knows of every channel of every group.

    Attributes:
        low: by group λ−, float64 [width].
        high: by group λ+, float64 [width].
        low_error: by group the standard error of λ−, float64 [width], from disjoint halves of the data.
        high_error: by group that of λ+.
        minus: by group v− in parameter coordinates, [width, d], of length 1 in the metric.
        plus: by group v+, likewise.
        candidates: the splits on offer.
        facts: how it came about; JSON values.
    """

    low: Mapping[str, FloatArray]
    high: Mapping[str, FloatArray]
    low_error: Mapping[str, FloatArray]
    high_error: Mapping[str, FloatArray]
    minus: Mapping[str, FloatArray]
    plus: Mapping[str, FloatArray]
    candidates: tuple[Candidates, ...]
    facts: Mapping[str, Any]

    def values(self, rows: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, float]:
        """By group Σ w δᵀSδ over its channels, when they split by ``rows``, −1 for not at all."""
        totals = {}
        for offered in self.candidates:
            chosen = rows[offered.group]
            added = np.array([ROWS[row].copies - 2 for row in chosen])  # the row of `exact_values`
            channels = np.flatnonzero(chosen >= 0)
            totals[offered.group] = float(offered.exact_values[added[channels], channels].sum())
        return totals

    def report(self, rows: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, Any]:
        """Facts and one entry per group, for the notes of a plan; ``rows`` are the chosen splits."""
        groups = {
            name: {
                "channels": len(self.low[name]),
                "dimension": int(self.minus[name].shape[1]),
                "lowest": float(self.low[name].min()),
                "highest": float(self.high[name].max()),
                "standard_error": float(
                    np.median(np.concatenate([self.low_error[name], self.high_error[name]]))
                ),
                "splits": {
                    row.name: int(np.count_nonzero(rows[name] == index))
                    for index, row in enumerate(ROWS)
                    if np.any(rows[name] == index)
                },
            }
            for name in self.low
        }
        return {**self.facts, "groups": groups}


def measure_spectra(
    grow: Callable[[int], SplittingOperator | None],
    make_metric: Callable[[SplittingOperator], Metric],
    scheme: Scheme,
    *,
    solver: str = "auto",
    tolerance: float = 1e-2,
    max_steps: int = 40,
    stability: float = 0.95,
    noise_share: float = 0.5,
    seed: int = 0,
) -> Spectra:
    """Eigenpairs on growing analysis sets, until the ranking of the candidates is stable.

    On each set the extreme eigenpairs are found, from a random start, then from those of the set before (see
    `refinement`). On two disjoint halves of the set, q = vᵀSv gives standard errors ``|q₁ − q₂| / 2`` and two
    rankings of the candidates. From their rank correlation ρ (Spearman's) the ranking by the whole set has
    the split-half reliability ``R = 2ρ / (1 + ρ)``, the correlation to expect with another set as large (the
    Spearman-Brown formula). It is stable when R reaches ``stability``; else the next set is
    ``stability (1 − R) / (R (1 − stability))`` times as large, by the same formula, and a tenth more, but
    half as large again at least.

    Args:
        grow: given a number of samples, over all processes, the operator on at least as many, or on all there
            are; None when it has all of them already. The first set is asked for by 0.
        make_metric: measures the metric on a set.
        scheme: gives the candidates.
        solver: one of `SOLVERS`.
        tolerance: the error bound, as a share of each spectral radius.
        noise_share: a group is also done when its bounds are this share of its standard errors, in root mean
            square over its channels; 0 for never, nor is a product then taken over the set before alone.
        max_steps: the largest number of products per set.
        stability: the reliability of the ranking that is enough.
        seed: of the start vectors.

    Raises:
        UsageError: an unknown solver, or no analysis set at all.
    """
    extremes: Extremes | None = None
    raw_minus: list[Tensor] | None = None
    raw_plus: list[Tensor] | None = None
    products = 0
    reliability = 0.0
    stages: list[dict[str, Any]] = []
    operator = grow(0)
    spent: list[int] = []
    batches = 0
    while operator is not None:
        before = operator.products
        metric = make_metric(operator)
        # Random weights rather than random whitened ones: they see what the inputs mostly are.
        start = metric.from_raw(random_start(operator.zeros(), seed, BLOCK))
        expected: list[int] | None = None
        earlier: int | None = None
        if raw_minus is not None and raw_plus is not None:
            if noise_share > 0:
                earlier, expected = batches, [LEAST] * len(start)
            else:  # About half as many products as from a random start.
                expected = [max(LEAST, -(-count // 2)) for count in spent]
            _start_from(start, metric.from_raw(raw_minus), metric.from_raw(raw_plus))
            # Their memory is wanted for the products.
            raw_minus = raw_plus = extremes = None
        names = [group.name for group in operator.groups]
        extremes, contrasts, used = solve(
            operator, metric, solver=solver, tolerance=tolerance, start=start, max_steps=max_steps,
            min_steps=LEAST, noise_share=noise_share, products=expected, earlier=earlier,
        )  # fmt: skip
        raw_minus, raw_plus = metric.to_raw(extremes.minus), metric.to_raw(extremes.plus)
        spent = [ends.minus_in.shape[1] for ends in extremes.groups]
        agreement = _agreement(extremes, contrasts, scheme)
        reliability = max(0.0, 2 * agreement / (1 + agreement)) if agreement > -1 else 0.0
        products += operator.products - before
        samples = operator.total(operator.samples)
        batches = len(operator)
        stages.append(
            {
                "samples": samples,
                "dense_groups": used.count("dense"),
                "products": operator.products - before,
                "products_per_group": extremes.group_products / len(operator.groups),
                "error": extremes.relative_error,
                "rank_agreement": agreement,
                "rank_reliability": reliability,
            }
        )
        if reliability >= stability:
            break
        operator = grow(math.ceil(samples * max(1.5, 1.1 * _further(reliability, stability))))
    if extremes is None or raw_minus is None or raw_plus is None:
        raise UsageError("there is no analysis set; give batches")
    low = {n: v.numpy() for n, v in zip(names, extremes.low, strict=True)}
    high = {n: v.numpy() for n, v in zip(names, extremes.high, strict=True)}
    errors = [{n: np.abs(q) / 2 for n, q in zip(names, end, strict=True)} for end in contrasts]
    return Spectra(
        low=low,
        high=high,
        low_error=errors[0],
        high_error=errors[1],
        minus={n: v.cpu().numpy() for n, v in zip(names, raw_minus, strict=True)},
        plus={n: v.cpu().numpy() for n, v in zip(names, raw_plus, strict=True)},
        candidates=tuple(Candidates.of(n, low[n], high[n], scheme) for n in names),
        facts={
            "stages": stages,
            "products": products,
            "ranking_stable": bool(reliability >= stability),
            "stopped": "the ranking is stable" if reliability >= stability else "the analysis set is used up",
        },
    )


def _start_from(noise: Sequence[Tensor], minus: Sequence[Tensor], plus: Sequence[Tensor]) -> None:
    """Make blocks of the old ends, and a little of the noise in them in case the new data turn them.

    Args:
        noise: for every group [2, width, d]; changed in place to the start vectors.
        minus: v−, [width, d].
        plus: v+, likewise.
    """
    for vectors, *ends in zip(noise, minus, plus, strict=True):
        vectors.mul_(0.01 / torch.linalg.vector_norm(vectors, dim=2, keepdim=True))
        vectors.add_(torch.stack(ends))


def _further(reliability: float, stability: float) -> float:
    """How many times as many samples bring the reliability to ``stability``; Spearman-Brown."""
    if stability >= 1:
        return 64.0
    ratio = stability * (1 - reliability) / (max(reliability, 1e-2) * (1 - stability))
    return min(ratio, 64.0)


def _agreement(extremes: Extremes, contrasts: Contrasts, scheme: Scheme) -> float:
    """Spearman's rank correlation of all candidates' values between the two halves of the data."""
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
