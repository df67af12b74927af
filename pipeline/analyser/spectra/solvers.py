"""Which solver finds the extreme eigenpairs of which group, and what the two halves of the data say of them.

``auto`` chooses group by group by counted work, in multiply-adds, with constants that were measured on one
CPU core (``benchmarks/analyser/speed.py`` compares counted with measured): never by the clock. Two runs, the
processes of one run, and a run that was killed and goes on must choose alike, or their plans would differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from growpipe.analyser.curvature.heap import give_back
from growpipe.analyser.curvature.metric import Metric
from growpipe.analyser.curvature.operator import SplittingProducts
from growpipe.analyser.options import SpectraOptions
from growpipe.analyser.spectra.dense import Columns
from growpipe.analyser.spectra.drive import Extremes, Iteration, StoppingRule, drive
from growpipe.analyser.spectra.recurrence import Estimate, Recurrence
from growpipe.analyser.spectra.refinement import Completion, Refinement
from growpipe.graph_ops.arrays import FloatArray

__all__ = ["Contrasts", "FloatArray", "Solution", "Start", "cheaper_solver", "counted_work", "solve"]

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
"""A refined group is accepted if its error bound is at most TRUST times the requested one.

To meet the requested bound exactly would usually take three more blocks over all data."""


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


@dataclass(frozen=True, eq=False)
class Start:
    """Where the search for the ends begins.

    Attributes:
        vectors: for every group, in order, the start vectors of Lanczos, [block, width, d], or [width, d] for
            one. They are taken one after the other, so that they need not all be there at once.
        products: by group how many products Lanczos will need, for the solver ``auto``; None for those of a
            random start.
        earlier: the number of micro-batches, those that were added first, whose ends the start vectors are;
            None if they are not ends.
    """

    vectors: Iterable[Tensor]
    products: Sequence[int] | None = None
    earlier: int | None = None


class Solution(NamedTuple):
    """What `solve` has found.

    Attributes:
        extremes: the extreme eigenpairs, in the metric's whitened coordinates or in those of the parameters.
        contrasts: by group vᵀ (S₁ − S₂) v of both ends, S₁ and S₂ over disjoint halves of the data.
        solvers: by group the solver.
    """

    extremes: Extremes
    contrasts: Contrasts
    solvers: list[str]


def solve(
    operator: SplittingProducts,
    metric: Metric,
    start: Start,
    options: SpectraOptions,
    *,
    weights: tuple[float, float] = (1.0, 1.0),
    raw: bool = False,
) -> Solution:
    """The extreme eigenpairs of every channel.

    Groups are solved in portions one after the other if that is no more work. What a portion needs of the
    metric, its bases and its products are there for that portion only.

    Lanczos is done with a group when its error bounds are within ``tolerance`` of the spectral radii. It is
    done as well when the bounds on the errors of ``low · λ− − high · λ+`` are ``noise_share`` times the
    standard errors of that, as shares of the spectral radii and in root mean square over the channels.

    If the start vectors are the ends of an earlier, smaller set, the second block of products is taken over
    that set first (see `refinement`). A group is done with them when its bounds are within ``TRUST`` times
    what ``noise_share`` asks for; else it goes on over all data from the first block.

    Args:
        operator: S over the batches.
        metric: the metric.
        start: where the search begins.
        options: solver, tolerance, max_steps and noise_share are used.
        weights: ``low`` and ``high``: how much λ− and λ+ count, neither below 0.
        raw: whether eigenvectors are given in parameter coordinates, rather than in whitened ones.

    Raises:
        CheckFailed: a product is not finite.
    """
    vectors = iter(start.vectors)
    expected = _expected(operator, start, options)
    solvers = _chosen(operator, expected, options)
    parts: list[Extremes] = []
    contrasts: Contrasts = ([], [])
    for portion in _portions(operator, expected):
        give_back(operator.device, allowed=0)  # what the last one had, for the roots of the metric
        own = {position: next(vectors) for position in portion}
        found, pairs = _Sweep(operator, metric, own, solvers, start.earlier, options, weights).solution()
        for side, pair in zip(contrasts, zip(*pairs, strict=True), strict=True):
            side.extend(pair)
        parts.append(_in_parameters(metric, portion, found) if raw else found)
        del found  # in whitened coordinates they are not wanted any more
        for position in portion:
            metric.release(position)
    return Solution(_joined(parts), contrasts, solvers)


HELD = 2**28
"""The bytes that the vectors of a portion may take in any case."""

HELD_PER_PARAMETER = 2
"""What they may take otherwise, in the memory of the tensors that are displaced: an analysis holds neither
gradients of these nor an optimizer's moments of them, and a training step does."""

PASSING = 6
"""The vectors per channel beside a basis while products are computed: directions, and sums of two halves."""


def _portions(operator: SplittingProducts, expected: Sequence[int]) -> list[list[int]]:
    """The positions of the groups that are solved together.

    If all micro-batches are kept, no portion has more entries than the largest group. Otherwise every portion
    computes again what is not kept. Then the vectors of a portion take no more than `HELD` bytes, or
    `HELD_PER_PARAMETER` times the displaced tensors if that is more.

    Args:
        operator: S.
        expected: by group how many products Lanczos will need.
    """
    entries = [group.entries for group in operator.groups]
    if operator.keeps_all:
        return _filled(entries, max(entries))
    displaced = {block.tensor: math.prod(block.shape) for group in operator.groups for block in group.blocks}
    size = operator.program.tensor(next(iter(displaced))).element_size()
    held = max(HELD // size, HELD_PER_PARAMETER * sum(displaced.values()))
    vectors = [min(group.dimension, count) for group, count in zip(operator.groups, expected, strict=True)]
    return _filled([e * (count + PASSING) for e, count in zip(entries, vectors, strict=True)], held)


def _filled(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Neighbours together, as long as their sizes are no more than ``most``."""
    portions: list[list[int]] = []
    left = 0
    for position, size in enumerate(sizes):
        if size > left or not portions:
            portions.append([])
            left = most
        portions[-1].append(position)
        left -= size
    return portions


def _expected(operator: SplittingProducts, start: Start, options: SpectraOptions) -> Sequence[int]:
    """By group how many products Lanczos will need."""
    cold = PRODUCTS_TO_NOISE if options.noise_share > 0 else PRODUCTS_TO_TOLERANCE
    return start.products or [cold] * len(operator.groups)


def _chosen(operator: SplittingProducts, expected: Sequence[int], options: SpectraOptions) -> list[str]:
    """By group the solver."""
    if options.solver != "auto":
        return [options.solver] * len(operator.groups)
    counted = zip(operator.groups, operator.work(), expected, strict=True)
    return [cheaper_solver(group.dimension, work, products) for group, work, products in counted]


def _in_parameters(metric: Metric, portion: Sequence[int], found: Extremes) -> Extremes:
    """The extremes of a portion with their eigenvectors in parameter coordinates."""
    groups = tuple(
        replace(ends, minus=metric.raw(i, ends.minus), plus=metric.raw(i, ends.plus))
        for i, ends in zip(portion, found.groups, strict=True)
    )
    return replace(found, groups=groups)


def _joined(parts: Sequence[Extremes]) -> Extremes:
    """The extremes of all portions."""
    return Extremes(
        tuple(ends for part in parts for ends in part.groups),
        max(part.steps for part in parts),
        sum(part.group_products for part in parts),
    )


class _Sweep:
    """The iterations of some groups over one analysis set.

    Every product gives S·v and (S₁ − S₂)·v. The first advances a group's iteration; the second is kept as
    columns of S₁ − S₂ in the basis of the vectors that S was applied to.
    """

    def __init__(
        self,
        operator: SplittingProducts,
        metric: Metric,
        start: dict[int, Tensor],
        solvers: Sequence[str],
        earlier: int | None,
        options: SpectraOptions,
        weights: tuple[float, float],
    ) -> None:
        self._operator, self._metric, self._options = operator, metric, options
        self._earlier, self._weights = earlier, weights
        self._differences: dict[int, list[Tensor]] = {i: [] for i in start}
        self._completions: dict[int, Completion] = {}
        self._runs: dict[int, Iteration] = {}
        for i in list(start):
            v = start.pop(i)
            self._runs[i] = self._iteration(v.reshape(-1, *v.shape[-2:]), solvers[i])

    def _iteration(self, block: Tensor, solver: str) -> Iteration:
        if solver == "dense":
            return Columns(block[0])
        kind = Recurrence if self._earlier is None else Refinement
        return kind(block, self._options.max_steps)

    def solution(self) -> tuple[Extremes, list[tuple[FloatArray, FloatArray]]]:
        """The extremes in whitened coordinates, and by group the contrasts of both ends."""
        rule = StoppingRule(self._options.tolerance, self._noise, self._options.noise_share, self._weights)
        extremes = drive(self._apply, self._runs, rule)
        pairs = [
            _contrasts(columns, ends)
            for columns, ends in zip(self._differences.values(), extremes.groups, strict=True)
        ]
        return extremes, pairs

    def _apply(self, vectors: dict[int, Tensor]) -> Iterator[tuple[int, Tensor]]:
        """S·v, or that of the earlier set for the groups that try it."""
        tries = [i for i in vectors if isinstance(run := self._runs[i], Refinement) and run.tries]
        tried = {i: vectors.pop(i) for i in tries}
        for batches, own in ((None, vectors), (self._earlier, tried)):
            if self._operator.serves(own.keys(), batches):
                # Nothing is computed again that groups share: the sums of one at a time are there.
                for i in list(own):
                    yield from self._products(batches, {i: own.pop(i)})
            else:
                yield from self._products(batches, own)

    def _products(self, batches: int | None, vectors: dict[int, Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Products over the first ``batches`` micro-batches, or all; those of a tried block are completed.

        What one group has is used and freed before the next one's turn. The vectors are used up.
        """
        if not vectors:
            return
        own = ((i, self._metric.raw(i, vectors.pop(i))) for i in list(vectors))
        results = self._operator.apply_halves(own, batches)
        for i in list(results[0]):
            run = self._runs[i]
            begins = isinstance(run, Refinement) and run.applied == 0
            known = self._completions.pop(i, None)
            contrast = self._metric.white(i, results[1].pop(i))
            if isinstance(run, Refinement) and known is not None:
                contrast = known.of_contrast(run.first, contrast)
            elif isinstance(run, Refinement):
                # The columns of a tried block go.
                del self._differences[i][run.applied :]
            self._differences[i].extend(run.project(contrast).double().cpu().unbind(2))
            if not begins:
                del contrast
            product = self._metric.white(i, results[0].pop(i))
            if isinstance(run, Refinement) and known is not None:
                product = known.of_product(run.first, product)
            yield i, product
            del product
            if isinstance(run, Refinement) and begins and run.tries:
                self._completions[i] = run.completion(contrast)

    def _noise(self, position: int, known: Estimate) -> float:
        run = self._runs[position]
        factor = TRUST if isinstance(run, Refinement) and run.tried else 1.0
        low, high = _contrasts(self._differences[position], known)
        return factor * _relative_noise(known, self._weights[0] * low - self._weights[1] * high)


def _relative_noise(known: Estimate, contrast: FloatArray) -> float:
    """The root mean square of the standard errors of one group's channels, as shares of the spectral radii.

    Args:
        known: the ends.
        contrast: by channel the difference between the halves of the data of what the errors are those of.
    """
    radius = np.maximum(np.abs(known.low.numpy()), np.abs(known.high.numpy()))
    live = radius > 0
    if not live.any():
        return 0.0
    return float(np.sqrt(np.mean((contrast[live] / (2 * radius[live])) ** 2)))


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
