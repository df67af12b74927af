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

from growpipe.analyser.dense import dense_extremes
from growpipe.analyser.lanczos import Ends, Extremes, lanczos, random_start
from growpipe.analyser.metric import Metric
from growpipe.analyser.operator import SplittingOperator
from growpipe.analyser.schemes import ROWS, Scheme
from growpipe.analyser.selection import Candidates
from growpipe.graph_ops.errors import UsageError

__all__ = ["SOLVERS", "Spectra", "measure_spectra", "solve"]

SOLVERS = ("auto", "dense", "lanczos")

FloatArray = npt.NDArray[np.floating]
Contrasts = tuple[list[FloatArray], list[FloatArray]]

LANCZOS_PRODUCTS = 12
"""About how many products batched Lanczos needs for a residual of a percent."""


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


def solve(
    operator: SplittingOperator,
    metric: Metric,
    *,
    solver: str,
    tolerance: float,
    start: Sequence[Tensor],
    max_steps: int = 40,
    noise_share: float = 0.0,
) -> tuple[Extremes, Contrasts, str]:
    """The extreme eigenpairs in the metric's whitened coordinates.

    ``auto`` takes the dense solver where the largest dimension needs no more products than Lanczos would.
    Lanczos is also done with a group when its error bounds are ``noise_share`` times its standard errors,
    both as shares of the spectral radii, in root mean square over its channels.

    Returns:
        The extremes; vᵀ (S₁ − S₂) v of both ends, S₁ and S₂ over disjoint halves of the data; the solver.

    Raises:
        UsageError: an unknown solver.
    """
    if solver not in SOLVERS:
        raise UsageError(f"unknown solver {solver!r}; choose one of {', '.join(SOLVERS)}")
    differences: list[list[Tensor]] = [[] for _ in start]

    def apply(vectors: Mapping[int, Tensor]) -> dict[int, Tensor]:
        whole, difference = operator.apply_halves({i: metric.raw(i, v) for i, v in vectors.items()})
        for i, v in difference.items():
            differences[i].append(metric.white(i, v))
        return {i: metric.white(i, v) for i, v in whole.items()}

    def noise(position: int, ends: Ends) -> float:
        return _relative_noise(ends, *_contrasts(differences[position], ends))

    if solver == "auto":
        largest = max(group.dimension for group in operator.groups)
        solver = "dense" if largest <= LANCZOS_PRODUCTS else "lanczos"
    if solver == "dense":
        extremes = dense_extremes(apply, start)
    else:
        extremes = lanczos(
            apply, start, tolerance=tolerance, max_steps=max_steps, noise=noise, noise_share=noise_share
        )
    pairs = [_contrasts(d, ends) for d, ends in zip(differences, extremes.groups, strict=True)]
    return extremes, ([low for low, _ in pairs], [high for _, high in pairs]), solver


def _relative_noise(ends: Ends, low_contrast: FloatArray, high_contrast: FloatArray) -> float:
    """The root mean square of the standard errors of one group's ends, as shares of the spectral radii."""
    radius = np.maximum(np.abs(ends.low.numpy()), np.abs(ends.high.numpy()))
    live = radius > 0
    if not live.any():
        return 0.0
    squares = [(contrast[live] / (2 * radius[live])) ** 2 for contrast in (low_contrast, high_contrast)]
    return float(np.sqrt(np.mean(squares)))


def _contrasts(differences: Sequence[Tensor], ends: Ends) -> tuple[FloatArray, FloatArray]:
    """vᵀ D v of both ends of every channel: D applied to the vectors in whose basis v is known."""
    results = []
    for v, weights in ((ends.minus, ends.minus_in), (ends.plus, ends.plus_in)):
        product = torch.zeros_like(v, dtype=torch.float64)
        for k in range(weights.shape[1]):
            product.addcmul_(weights[:, k, None].to(product), differences[k].double())
        results.append((v.double() * product).sum(1).cpu().numpy())
    return results[0], results[1]


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

    On each set the extreme eigenpairs are found, warm-started from the set before. On two disjoint halves
    of the set, q = vᵀSv gives standard errors ``|q₁ − q₂| / 2`` and two rankings of the candidates. From
    their rank correlation ρ (Spearman's) the ranking by the whole set has the split-half reliability
    ``R = 2ρ / (1 + ρ)``, the correlation to expect with another set as large (the Spearman-Brown formula). It
    is stable when R reaches ``stability``; else the next set is ``stability (1 − R) / (R (1 − stability))``
    times as large, by the same formula, and a tenth more, but half as large again at least.

    Args:
        grow: given a number of samples, over all processes, the operator on at least as many, or on all there
            are; None when it has all of them already. The first set is asked for by 0.
        make_metric: measures the metric on a set.
        scheme: gives the candidates.
        solver: one of `SOLVERS`.
        tolerance: the error bound, as a share of each spectral radius.
        noise_share: a group is also done when its bounds are this share of its standard errors, in root mean
            square over its channels; 0 for never.
        max_steps: the largest number of products per set.
        stability: the reliability of the ranking that is enough.
        seed: of the start vectors.

    Raises:
        UsageError: an unknown solver, or no analysis set at all.
    """
    raw_minus: list[Tensor] | None = None
    raw_plus: list[Tensor] | None = None
    products = 0
    reliability = 0.0
    stages: list[dict[str, Any]] = []
    operator = grow(0)
    while operator is not None:
        before = operator.products
        metric = make_metric(operator)
        noise = random_start(operator.zeros(), seed)
        if raw_minus is None or raw_plus is None:
            start = noise
        else:
            # The old ends, and a little of everything in case the new data turn them.
            ends = [a + b for a, b in zip(metric.from_raw(raw_minus), metric.from_raw(raw_plus), strict=True)]
            start = [
                e + 0.01 * n / torch.linalg.vector_norm(n, dim=1, keepdim=True)
                for e, n in zip(ends, noise, strict=True)
            ]
        names = [group.name for group in operator.groups]
        extremes, contrasts, used = solve(
            operator, metric, solver=solver, tolerance=tolerance, start=start, max_steps=max_steps,
            noise_share=noise_share,
        )  # fmt: skip
        raw_minus, raw_plus = metric.to_raw(extremes.minus), metric.to_raw(extremes.plus)
        agreement = _agreement(extremes, contrasts, scheme)
        reliability = max(0.0, 2 * agreement / (1 + agreement)) if agreement > -1 else 0.0
        products += operator.products - before
        samples = operator.total(operator.samples)
        stages.append(
            {
                "samples": samples,
                "solver": used,
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
    if raw_minus is None or raw_plus is None:
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
