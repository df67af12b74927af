"""Which solver finds the extreme eigenpairs of which group, and what the two halves of the data say of them.

``auto`` chooses group by group by counted work, in multiply-adds, with constants that were measured on one
CPU core (``benchmarks/analyser_speed.py`` compares counted with measured): never by the clock. Two runs, the
processes of one run, and a run that was killed and goes on must choose alike, or their plans would differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from growpipe.analyser.dense import Columns
from growpipe.analyser.lanczos import Extremes, Run, run_all
from growpipe.analyser.metric import Metric
from growpipe.analyser.operator import SplittingOperator
from growpipe.analyser.recurrence import Estimate, Recurrence
from growpipe.graph_ops.errors import UsageError

__all__ = ["SOLVERS", "Contrasts", "FloatArray", "cheaper_solver", "counted_work", "solve"]

SOLVERS = ("auto", "dense", "lanczos")

FloatArray = npt.NDArray[np.floating]
Contrasts = tuple[list[FloatArray], list[FloatArray]]

PRODUCTS_TO_NOISE, PRODUCTS_TO_TOLERANCE = 11, 26
"""How many products Lanczos takes from a random start, two at a visit: until its bounds are half the standard
errors, and until they are 1 % of the spectral radii."""

DENSE_PRODUCT = 0.58
"""A product of the dense solver in those of Lanczos, which also recombines its blocks."""

EIGH = (350.0, 0.5)
"""eigh of one d by d matrix in float64 costs ``EIGH[0] d² + EIGH[1] d³`` of a product's multiply-adds."""

REORTHOGONALISATION = 10.0
"""A multiply-add of the reorthogonalisation, which waits for memory, in those of a product."""


def counted_work(dimension: int, work: float, products: int) -> dict[str, float]:
    """About how many multiply-adds of a product each solver takes per channel of one group.

    Dense takes d cheaper products and one eigh; Lanczos with k = min(d, ``products``) takes k products, the
    reorthogonalisation of k vectors, and from the fourth on an eigh of its tridiagonal matrix at each.

    Args:
        dimension: d.
        work: the multiply-adds of one product S·v over all data, per channel.
        products: how many Lanczos will need.
    """

    def eigh(d: int) -> float:
        return EIGH[0] * d**2 + EIGH[1] * d**3

    k = min(dimension, products)
    lanczos = k * work + 2 * k * k * dimension * REORTHOGONALISATION
    lanczos += sum(eigh(j) for j in range(min(4, k), k + 1))
    return {"dense": DENSE_PRODUCT * dimension * work + eigh(dimension), "lanczos": lanczos}


def cheaper_solver(dimension: int, work: float, products: int = PRODUCTS_TO_NOISE) -> str:
    """``"dense"`` or ``"lanczos"``, whichever is less work for one group; see `counted_work`."""
    counted = counted_work(dimension, work, products)
    return "dense" if counted["dense"] <= counted["lanczos"] else "lanczos"


def solve(
    operator: SplittingOperator,
    metric: Metric,
    *,
    solver: str,
    tolerance: float,
    start: Sequence[Tensor],
    max_steps: int = 40,
    min_steps: int = 4,
    noise_share: float = 0.0,
    products: Sequence[int] | None = None,
) -> tuple[Extremes, Contrasts, list[str]]:
    """The extreme eigenpairs in the metric's whitened coordinates.

    Lanczos is done with a group when its error bounds are within ``tolerance`` of the spectral radii, or
    ``noise_share`` times its standard errors, as shares of the spectral radii and in root mean square over
    its channels.

    Args:
        operator: S over the batches.
        metric: the metric.
        solver: one of `SOLVERS`.
        tolerance: the error bound of Lanczos, as a share of each spectral radius.
        start: for every group the start vectors of Lanczos, [block, width, d], or [width, d] for one.
        max_steps: the largest number of vectors of Lanczos that S is applied to.
        min_steps: the least number before its bounds are trusted.
        noise_share: see above; 0 leaves ``tolerance`` alone.
        products: by group how many products Lanczos will need, for ``auto``; by default those of a random
            start.

    Returns:
        The extremes; vᵀ (S₁ − S₂) v of both ends, S₁ and S₂ over disjoint halves of the data; by group the
        solver.

    Raises:
        UsageError: an unknown solver.
        CheckFailed: a product is not finite.
    """
    if solver not in SOLVERS:
        raise UsageError(f"unknown solver {solver!r}; choose one of {', '.join(SOLVERS)}")
    # By group the columns of S₁ − S₂ in the basis of the vectors that S was applied to.
    differences: list[list[Tensor]] = [[] for _ in start]

    def apply(vectors: Mapping[int, Tensor]) -> dict[int, Tensor]:
        whole, difference = operator.apply_halves({i: metric.raw(i, v) for i, v in vectors.items()})
        for i in vectors:
            columns = runs[i].project(metric.white(i, difference.pop(i)))
            differences[i].extend(columns.double().cpu().unbind(2))
        return {i: metric.white(i, whole.pop(i)) for i in vectors}

    def noise(position: int, known: Estimate) -> float:
        return _relative_noise(known, *_contrasts(differences[position], known))

    chosen = [solver] * len(start)
    if solver == "auto":
        cold = PRODUCTS_TO_NOISE if noise_share > 0 else PRODUCTS_TO_TOLERANCE
        expected = [cold] * len(start) if products is None else products
        chosen = [
            cheaper_solver(v.shape[-1], work, count)
            for v, work, count in zip(start, operator.work(), expected, strict=True)
        ]
    runs: dict[int, Run] = {
        i: Columns(v.reshape(-1, *v.shape[-2:])[0]) if name == "dense" else Recurrence(v, max_steps)
        for i, (v, name) in enumerate(zip(start, chosen, strict=True))
    }
    extremes = run_all(apply, runs, tolerance, min_steps, noise, noise_share)
    pairs = [_contrasts(d, ends) for d, ends in zip(differences, extremes.groups, strict=True)]
    return extremes, ([low for low, _ in pairs], [high for _, high in pairs]), chosen


def _relative_noise(known: Estimate, low_contrast: FloatArray, high_contrast: FloatArray) -> float:
    """The root mean square of the standard errors of one group's ends, as shares of the spectral radii."""
    radius = np.maximum(np.abs(known.low.numpy()), np.abs(known.high.numpy()))
    live = radius > 0
    if not live.any():
        return 0.0
    squares = [(contrast[live] / (2 * radius[live])) ** 2 for contrast in (low_contrast, high_contrast)]
    return float(np.sqrt(np.mean(squares)))


def _contrasts(columns: Sequence[Tensor], known: Estimate) -> tuple[FloatArray, FloatArray]:
    """vᵀ D v of both ends of every channel.

    Args:
        columns: of the symmetric D in the basis in which v is known, the k-th as far as the diagonal at
            least; float64 [width, k + 1 or more].
        known: the ends.
    """
    results = []
    for weights in (known.minus_in, known.plus_in):
        w = weights.double().cpu()
        total = torch.zeros(len(w), dtype=torch.float64)
        for k in range(w.shape[1]):
            above = (columns[k][:, :k] * w[:, :k]).sum(1)
            total += w[:, k] * (2 * above + columns[k][:, k] * w[:, k])
        results.append(total.numpy())
    return results[0], results[1]
