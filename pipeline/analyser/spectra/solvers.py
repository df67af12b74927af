"""Which solver finds the extreme eigenpairs of which group, and what the two halves of the data say of them.

``auto`` chooses group by group by counted work, in multiply-adds, with constants that were measured on one
CPU core (``benchmarks/analyser/speed.py`` compares counted with measured): never by the clock. Two runs, the
processes of one run, and a run that was killed and goes on must choose alike, or their plans would differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from growpipe.analyser.curvature.metric import Metric
from growpipe.analyser.curvature.operator import SplittingOperator
from growpipe.analyser.spectra.dense import Columns
from growpipe.analyser.spectra.drive import Extremes, Iteration, drive
from growpipe.analyser.spectra.recurrence import Estimate, Recurrence
from growpipe.analyser.spectra.refinement import FirstBlock, Refinement
from growpipe.graph_ops.errors import UsageError

__all__ = ["SOLVERS", "Contrasts", "FloatArray", "cheaper_solver", "counted_work", "solve"]

SOLVERS = ("auto", "dense", "lanczos")

FloatArray = npt.NDArray[np.floating]
Contrasts = tuple[list[FloatArray], list[FloatArray]]

PRODUCTS_TO_NOISE, PRODUCTS_TO_TOLERANCE = 10, 26
"""How many products Lanczos takes from a random start, two at a visit: until its bounds are half the standard
errors, and until they are 1 % of the spectral radii."""

DENSE_PRODUCT = 0.58
"""A product of the dense solver in those of Lanczos, which also recombines its blocks."""

EIGH = (350.0, 0.5)
"""eigh of one d by d matrix in float64 costs ``EIGH[0] d² + EIGH[1] d³`` of a product's multiply-adds."""

REORTHOGONALISATION = 10.0
"""A multiply-add of the reorthogonalisation, which waits for memory, in those of a product."""


TRUST = 2.0
"""How many times as large the bounds may be that a second block over the earlier set leaves: to do better
takes that block and most often two more over all data."""


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
    earlier: int | None = None,
) -> tuple[Extremes, Contrasts, list[str]]:
    """The extreme eigenpairs in the metric's whitened coordinates.

    Lanczos is done with a group when its error bounds are within ``tolerance`` of the spectral radii, or
    ``noise_share`` times its standard errors, as shares of the spectral radii and in root mean square over
    its channels.

    Where the start vectors are the ends that an earlier, smaller set has shown, the second block of products
    is taken over that set at first (see `refinement`). A group is done with them when its bounds are within
    ``TRUST`` times what ``noise_share`` asks for; else it goes on over all data from the first block.

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
        earlier: how many micro-batches, those that were added first, are the earlier set; None where the
            start vectors are no ends of one.

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
    first: dict[int, FirstBlock] = {}

    def apply(vectors: Mapping[int, Tensor]) -> dict[int, Tensor]:
        tried = {i: v for i, v in vectors.items() if isinstance(run := runs[i], Refinement) and run.tries}
        whole = {i: v for i, v in vectors.items() if i not in tried}
        return products_over(None, whole) | products_over(earlier, tried)

    def products_over(batches: int | None, vectors: Mapping[int, Tensor]) -> dict[int, Tensor]:
        if not vectors:
            return {}
        products: dict[int, Tensor] = {}
        raw = {i: metric.raw(i, v) for i, v in vectors.items()}
        results = operator.apply_halves(raw, batches)
        for i, v in vectors.items():
            product, contrast = (metric.white(i, part.pop(i)) for part in results)
            run = runs[i]
            if isinstance(run, Refinement):
                if run.tries:
                    product, contrast = first[i].complete(v, product, contrast)
                elif run.applied == 0:
                    first[i] = FirstBlock(v, product, contrast)
                else:
                    first.pop(i, None)
                    # Those of a trial go.
                    del differences[i][run.applied :]
            differences[i].extend(run.project(contrast).double().cpu().unbind(2))
            products[i] = product
        return products

    def noise(position: int, known: Estimate) -> float:
        run = runs[position]
        factor = TRUST if isinstance(run, Refinement) and run.tried else 1.0
        return factor * _relative_noise(known, *_contrasts(differences[position], known))

    chosen = [solver] * len(start)
    if solver == "auto":
        cold = PRODUCTS_TO_NOISE if noise_share > 0 else PRODUCTS_TO_TOLERANCE
        expected = [cold] * len(start) if products is None else products
        chosen = [
            cheaper_solver(v.shape[-1], work, count)
            for v, work, count in zip(start, operator.work(), expected, strict=True)
        ]
    runs: dict[int, Iteration] = {}
    for i, (v, name) in enumerate(zip(start, chosen, strict=True)):
        block = v.reshape(-1, *v.shape[-2:])
        if name == "dense":
            runs[i] = Columns(block[0])
        else:
            runs[i] = Recurrence(block, max_steps) if earlier is None else Refinement(block, max_steps)
    extremes = drive(apply, runs, tolerance, min_steps, noise, noise_share)
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
    k = known.minus_in.shape[1]
    upper = torch.stack(
        [torch.nn.functional.pad(c[:, :k], (0, k - min(k, c.shape[1]))) for c in columns[:k]], 2
    )
    upper = upper.triu()
    matrix = upper + upper.triu(1).mT
    ends = torch.stack([known.minus_in, known.plus_in]).double().cpu()
    low, high = torch.einsum("ecj,cjk,eck->ec", ends, matrix, ends).numpy()
    return low, high
