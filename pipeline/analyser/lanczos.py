"""Batched Lanczos: both ends of the spectrum of many symmetric matrices at once, from products alone.

Every channel of every group runs its own three-term recurrence; one call of the operator advances all of them
by one step. Full reorthogonalisation keeps the small tridiagonal matrices honest (without it, converged ends
come back as ghosts). A channel's recurrence ends early when its Krylov space is exhausted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from growpipe.graph_ops.errors import CheckFailed

__all__ = ["Apply", "Ends", "Extremes", "Recurrence", "Run", "lanczos", "random_start", "run_all"]


@dataclass(frozen=True, eq=False)
class Ends:
    """The extreme eigenpairs of every channel of one group.

    Attributes:
        low: λ−, float64 [width].
        high: λ+, float64 [width].
        minus: v−, [width, d], unit rows.
        plus: v+, [width, d], unit rows.
        error: a bound on the error of λ at the worse end, float64 [width].
        minus_in: v− in the basis of the vectors the operator was applied to, [width, k].
        plus_in: v+, likewise.
    """

    low: Tensor
    high: Tensor
    minus: Tensor
    plus: Tensor
    error: Tensor
    minus_in: Tensor
    plus_in: Tensor

    def shares(self) -> Tensor:
        """The error bounds as shares of the spectral radii, of channels that have one; float64."""
        radius = torch.maximum(self.low.abs(), self.high.abs())
        live = radius > 0
        return self.error[live] / radius[live]


@dataclass(frozen=True, eq=False)
class Extremes:
    """The extreme eigenpairs of every channel of every group.

    Attributes:
        groups: one entry for every group.
        steps: the number of products used by the group that needed most.
        group_products: the number of products, summed over the groups.
    """

    groups: tuple[Ends, ...]
    steps: int
    group_products: int

    @property
    def low(self) -> list[Tensor]:
        return [ends.low for ends in self.groups]

    @property
    def high(self) -> list[Tensor]:
        return [ends.high for ends in self.groups]

    @property
    def minus(self) -> list[Tensor]:
        return [ends.minus for ends in self.groups]

    @property
    def plus(self) -> list[Tensor]:
        return [ends.plus for ends in self.groups]

    @property
    def error(self) -> list[Tensor]:
        return [ends.error for ends in self.groups]

    @property
    def relative_error(self) -> float:
        """The worst error bound over all channels, as a share of the channel's spectral radius."""
        return max((float(s.max()) for ends in self.groups if (s := ends.shares()).numel()), default=0.0)


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


class Run(Protocol):
    """One group on its way to its extreme eigenpairs, a product at a time."""

    @property
    def current(self) -> Tensor:
        """The vectors to apply S to next, [width, d]."""

    @property
    def done(self) -> bool:
        """Whether no further product is needed."""

    def advance(self, product: Tensor) -> None:
        """Take S times ``current``, [width, d]."""

    def preview(self) -> Ends | None:
        """What is known so far, with error bounds; None where that is nothing yet."""

    def ends(self) -> Ends:
        """The result."""


class Recurrence:
    """The Krylov bases and tridiagonal matrices of one group's channels.

    Args:
        start: start vectors, [width, d], no row zero.
        steps: the largest number of products.

    Raises:
        CheckFailed: a start vector is zero or not finite.
    """

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

    def preview(self) -> Ends:
        return self.ends()

    def ends(self) -> Ends:
        """Ritz values and vectors of both ends, and their error bounds."""
        values, coordinates, bound = self.ritz()
        return Ends(
            values[:, 0],
            values[:, -1],
            self.vectors(coordinates[:, :, 0]),
            self.vectors(coordinates[:, :, -1]),
            bound.amax(dim=1),
            coordinates[:, :, 0],
            coordinates[:, :, -1],
        )

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Ritz vectors [width, d] from coordinates [width, k]."""
        weights = coordinates.to(device=self.basis.device, dtype=self.basis.dtype)
        return _normalised(torch.einsum("ck,kcd->cd", weights, self.basis[: self.k]))[0]


Apply = Callable[[dict[int, Tensor]], Mapping[int, Tensor]]
"""S·v of some groups: by position [width, d] to [width, d], symmetric per channel."""


def lanczos(
    apply: Apply,
    start: Sequence[Tensor],
    *,
    tolerance: float = 1e-2,
    max_steps: int = 40,
    min_steps: int = 4,
    noise: Callable[[int, Ends], float] | None = None,
    noise_share: float = 0.5,
) -> Extremes:
    """λ−, v−, λ+, v+ of every channel.

    A group is done when for each of its channels both ends are within ``tolerance`` times the channel's
    spectral radius, when its Krylov spaces are exhausted, or after ``max_steps`` products; no product is
    spent on it from then on. A Ritz value is off by no more than its residual
    ``r = ‖S v − λ v‖ = β_k |s_k|``, and ``r² / gap`` where that is less, gap the distance to the next Ritz
    value less its own residual (Parlett, The Symmetric Eigenvalue Problem, theorem 11.7.1).

    Args:
        apply: the operator: of the groups it is given [width, d] to [width, d], symmetric per channel.
        start: start vectors, for every group [width, d], no row zero.
        tolerance: the bound on the error, as a share of the spectral radius.
        max_steps: the largest number of products.
        min_steps: the least number of products before the bound is trusted.
        noise: by position of a group and its ends the standard errors of the eigenvalues as shares of the
            spectral radii, in root mean square. A group is also done when its error bounds are
            ``noise_share`` times that, likewise.
        noise_share: see ``noise``; 0 leaves ``tolerance`` alone.

    Raises:
        CheckFailed: a start vector is zero, or a product is not finite.
    """
    runs = [Recurrence(v, max_steps) for v in start]
    return run_all(apply, runs, tolerance, min_steps, noise, noise_share)


def run_all(
    apply: Apply,
    runs: Sequence[Run],
    tolerance: float = 0.0,
    min_steps: int = 4,
    noise: Callable[[int, Ends], float] | None = None,
    noise_share: float = 0.0,
) -> Extremes:
    """All groups to their end, each with its own solver; the arguments are those of `lanczos`.

    Raises:
        CheckFailed: a product is not finite.
    """
    found: dict[int, Ends] = {}
    steps = group_products = 0
    while active := [i for i, run in enumerate(runs) if i not in found and not run.done]:
        products = apply({i: runs[i].current for i in active})
        steps += 1
        group_products += len(active)
        for i in active:
            run = runs[i]
            if not torch.isfinite(products[i].sum()):
                raise CheckFailed("a splitting-matrix product is not finite; check the data and the loss")
            run.advance(products[i])
            if steps < min_steps or run.done or (ends := run.preview()) is None:
                continue
            if (shares := ends.shares()).numel() == 0 or bool((shares <= tolerance).all()):
                found[i] = ends
            elif noise is not None and noise_share > 0:
                rough = float(shares.square().mean().sqrt())
                if rough <= noise_share * noise(i, ends):
                    found[i] = ends
    groups = tuple(found[i] if i in found else run.ends() for i, run in enumerate(runs))
    return Extremes(groups, steps, group_products)
