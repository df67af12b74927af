"""Batched Lanczos: both ends of the spectrum of many symmetric matrices at once, from products alone.

Every channel of every group runs its own three-term recurrence; one call of the operator advances all of them
by one step. Full reorthogonalisation keeps the small tridiagonal matrices honest (without it, converged ends
come back as ghosts). A channel's recurrence ends early when its Krylov space is exhausted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from growpipe.graph_ops.errors import CheckFailed

__all__ = ["Extremes", "lanczos", "random_start"]


@dataclass(frozen=True, eq=False)
class Extremes:
    """The extreme eigenpairs of every channel of every group.

    Attributes:
        low: λ−, for every group float64 [width].
        high: λ+, for every group float64 [width].
        minus: v−, for every group [width, d], unit rows.
        plus: v+, for every group [width, d], unit rows.
        error: a bound on the error of λ at the worse end, for every group float64 [width].
        minus_in: v− in the basis of the vectors the operator was applied to, for every group [width, k].
        plus_in: v+, likewise.
        steps: the number of products used.
    """

    low: list[Tensor]
    high: list[Tensor]
    minus: list[Tensor]
    plus: list[Tensor]
    error: list[Tensor]
    minus_in: list[Tensor]
    plus_in: list[Tensor]
    steps: int

    @property
    def relative_error(self) -> float:
        """The worst error bound over all channels, as a share of the channel's spectral radius."""
        worst = 0.0
        for low, high, error in zip(self.low, self.high, self.error, strict=True):
            radius = torch.maximum(low.abs(), high.abs()).clamp_min(torch.finfo(torch.float64).tiny)
            live = error > 0
            if live.any():
                worst = max(worst, float((error[live] / radius[live]).max()))
        return worst


def random_start(like: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Normal entries from a generator of its own, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(v.shape, generator=generator, dtype=torch.float64).to(device=v.device, dtype=v.dtype)
        for v in like
    ]


def _normalised(v: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and their former lengths; rows of length 0 stay 0."""
    norm = torch.linalg.vector_norm(v, dim=1)
    safe = torch.where(norm > 0, norm, torch.ones_like(norm))
    return v / safe[:, None], norm


class _Recurrence:
    """The Krylov bases and tridiagonal matrices of one group's channels."""

    def __init__(self, start: Tensor, steps: int) -> None:
        width, d = start.shape
        self.limit = min(steps, d)
        q, norm = _normalised(start)
        if not bool((norm > 0).all()):
            raise CheckFailed("a Lanczos start vector is zero or not finite")
        self.basis = start.new_empty(self.limit, width, d)
        self.basis[0] = q
        self.alpha = torch.zeros(width, self.limit, dtype=torch.float64)
        self.beta = torch.zeros(width, self.limit, dtype=torch.float64)
        self.k = 0
        self.alive = torch.ones(width, dtype=torch.bool)
        self.scale = torch.zeros(width, dtype=torch.float64)

    @property
    def current(self) -> Tensor:
        return self.basis[min(self.k, self.limit - 1)]

    @property
    def done(self) -> bool:
        return self.k >= self.limit

    def advance(self, product: Tensor) -> None:
        """Take S q_k, extend the basis by q_{k+1}."""
        k = self.k
        q = self.basis[k]
        alpha = torch.einsum("cd,cd->c", q, product).double().cpu()
        # A finished channel has q = 0; repeating its first Rayleigh quotient never makes an extreme.
        self.alpha[:, k] = torch.where(self.alive, alpha, self.alpha[:, 0])
        used = self.basis[: k + 1]
        residue = product
        for _ in range(2):
            residue = residue - torch.einsum("kc,kcd->cd", torch.einsum("kcd,cd->kc", used, residue), used)
        unit, norm = _normalised(residue)
        beta = norm.double().cpu()
        self.scale = torch.maximum(self.scale, torch.maximum(alpha.abs(), beta))
        tiny = 64 * torch.finfo(product.dtype).eps
        self.alive = self.alive & (beta > tiny * self.scale)
        self.beta[:, k] = torch.where(self.alive, beta, torch.zeros_like(beta))
        self.k += 1
        if not self.done:
            mask = self.alive.to(unit.device)[:, None]
            self.basis[self.k] = torch.where(mask, unit, torch.zeros_like(unit))

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values [width, k], Ritz coordinates [width, k, k], error bounds of both ends [width, 2]."""
        t = torch.diag_embed(self.alpha[:, : self.k])
        if self.k > 1:
            off = self.beta[:, : self.k - 1]
            t = t + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
        values, coordinates = torch.linalg.eigh(t)
        if self.k == self.basis.shape[2]:  # the Krylov space is the whole space
            return values, coordinates, values.new_zeros(len(values), 2)
        residual = self.beta[:, self.k - 1, None] * coordinates[:, -1, :].abs()
        if self.k == 1:
            return values, coordinates, residual[:, [0, 0]]
        gap = torch.stack([values[:, 1] - values[:, 0], values[:, -1] - values[:, -2]], dim=1)
        # The next Ritz value stands for the rest of the spectrum: it may still move towards the end.
        gap = (gap - residual[:, [1, -2]]).clamp_min(0)
        ends = residual[:, [0, -1]]
        return values, coordinates, torch.where(gap > ends, ends * ends / gap, ends)

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Ritz vectors [width, d] from coordinates [width, k]."""
        weights = coordinates.to(device=self.basis.device, dtype=self.basis.dtype)
        return _normalised(torch.einsum("ck,kcd->cd", weights, self.basis[: self.k]))[0]


def lanczos(
    apply: Callable[[list[Tensor]], list[Tensor]],
    start: Sequence[Tensor],
    *,
    tolerance: float = 1e-2,
    max_steps: int = 40,
    min_steps: int = 4,
    noise: Callable[[Extremes], Sequence[float]] | None = None,
) -> Extremes:
    """λ−, v−, λ+, v+ of every channel.

    Stops when for every channel both ends are within ``tolerance`` times the channel's spectral radius, when
    the Krylov spaces are exhausted, or after ``max_steps`` products. A Ritz value is off by no more than
    its residual ``r = ‖S v − λ v‖ = β_k |s_k|``, and ``r² / gap`` where that is less, gap the distance to the
    next Ritz value less its own residual (Parlett, The Symmetric Eigenvalue Problem, theorem 11.7.1).

    Args:
        apply: the operator: for every group [width, d] to [width, d], symmetric per channel.
        start: start vectors, for every group [width, d], no row zero.
        tolerance: the bound on the error, as a share of the spectral radius.
        max_steps: the largest number of products.
        min_steps: the least number of products before the bound is trusted.
        noise: for every group the standard errors of the eigenvalues as shares of the spectral radii, in root
            mean square. A group is also done when its error bounds are half of that, likewise.

    Raises:
        CheckFailed: a start vector is zero, or a product is not finite.
    """
    runs = [_Recurrence(v, max_steps) for v in start]
    steps = 0
    while not all(run.done for run in runs):
        products = apply([run.current for run in runs])
        steps += 1
        for run, product in zip(runs, products, strict=True):
            if not run.done:
                run.advance(product)
                if not torch.isfinite(run.alpha[:, run.k - 1]).all():
                    raise CheckFailed("a splitting-matrix product is not finite; check the data and the loss")
        if steps >= min_steps:
            shares = [0.0] * len(runs) if noise is None else noise(_extremes(runs, steps))
            if all(_converged(run, tolerance, share) for run, share in zip(runs, shares, strict=True)):
                break
    return _extremes(runs, steps)


def _converged(run: _Recurrence, tolerance: float, noise: float) -> bool:
    if run.done and run.limit == run.basis.shape[2]:
        return True
    values, _, bound = run.ritz()
    radius = values[:, [0, -1]].abs().amax(dim=1)
    if (bound.amax(dim=1) <= tolerance * radius).all():
        return True
    shares = (bound / radius[:, None])[radius > 0]
    return bool(shares.square().mean().sqrt() <= noise / 2)


def _extremes(runs: Sequence[_Recurrence], steps: int) -> Extremes:
    low, high, minus, plus, error = [], [], [], [], []
    minus_in, plus_in = [], []
    for run in runs:
        values, coordinates, bound = run.ritz()
        low.append(values[:, 0])
        high.append(values[:, -1])
        minus.append(run.vectors(coordinates[:, :, 0]))
        plus.append(run.vectors(coordinates[:, :, -1]))
        minus_in.append(coordinates[:, :, 0])
        plus_in.append(coordinates[:, :, -1])
        error.append(bound.amax(dim=1))
    return Extremes(low, high, minus, plus, error, minus_in, plus_in, steps)
