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

__all__ = ["Apply", "Ends", "Estimate", "Extremes", "Recurrence", "Run", "lanczos", "random_start", "run_all"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """What is known of the extreme eigenpairs of every channel of one group after k products.

    Attributes:
        low: λ−, float64 [width].
        high: λ+, float64 [width].
        error: a bound on the error of λ at the worse end, float64 [width].
        minus_in: v− in the basis of the vectors the operator was applied to, [width, k].
        plus_in: v+, likewise.
    """

    low: Tensor
    high: Tensor
    error: Tensor
    minus_in: Tensor
    plus_in: Tensor

    def shares(self) -> Tensor:
        """The error bounds as shares of the spectral radii, of channels that have one; float64."""
        radius = torch.maximum(self.low.abs(), self.high.abs())
        live = radius > 0
        return self.error[live] / radius[live]


@dataclass(frozen=True, eq=False)
class Ends(Estimate):
    """The extreme eigenpairs themselves.

    Attributes:
        minus: v−, [width, d], unit rows.
        plus: v+, [width, d], unit rows.
    """

    minus: Tensor
    plus: Tensor


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

    def project(self, covectors: Tensor) -> Tensor:
        """Inner products of [width, d] with the vectors S was applied to and ``current``, [width, k + 1]."""

    def preview(self) -> Estimate | None:
        """What is known so far, with error bounds; None where that is nothing yet."""

    def ends(self) -> Ends:
        """The result."""


_ROOM = 8
"""By how many vectors the room for a Krylov basis grows: most groups need no more."""


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
        self.basis = start.new_empty(min(_ROOM, self.limit), width, d)
        self.basis[0] = q
        self.alpha = torch.zeros(width, self.limit, dtype=torch.float64)
        self.beta = torch.zeros(width, self.limit, dtype=torch.float64)
        self.k = 0
        self.alive = torch.ones(width, dtype=torch.bool)
        self.scale = torch.zeros(width, dtype=torch.float64)
        self._estimate: Estimate | None = None

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
        self._estimate = None
        if not self.done:
            if self.k == len(self.basis):
                room = min(_ROOM, self.limit - self.k)
                self.basis = torch.cat([self.basis, self.basis.new_empty(room, *self.basis.shape[1:])])
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

    def project(self, covectors: Tensor) -> Tensor:
        return torch.einsum("kcd,cd->ck", self.basis[: self.k + 1], covectors)

    def preview(self) -> Estimate:
        """Ritz values and coordinates of both ends, and their error bounds."""
        if self._estimate is None:
            values, coordinates, bound = self.ritz()
            self._estimate = Estimate(
                values[:, 0],
                values[:, -1],
                bound.amax(dim=1),
                # Copies, which do not hold on to all the others.
                coordinates[:, :, 0].clone(),
                coordinates[:, :, -1].clone(),
            )
        return self._estimate

    def ends(self) -> Ends:
        """`preview`, and the Ritz vectors of both ends."""
        known = self.preview()
        return Ends(
            known.low,
            known.high,
            known.error,
            known.minus_in,
            known.plus_in,
            self.vectors(known.minus_in),
            self.vectors(known.plus_in),
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
    noise: Callable[[int, Estimate], float] | None = None,
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
        noise: by position of a group and its estimate the standard errors of the eigenvalues as shares of the
            spectral radii, in root mean square. A group is also done when its error bounds are
            ``noise_share`` times that, likewise.
        noise_share: see ``noise``; 0 leaves ``tolerance`` alone.

    Raises:
        CheckFailed: a start vector is zero, or a product is not finite.
    """
    runs: dict[int, Run] = {i: Recurrence(v, max_steps) for i, v in enumerate(start)}
    return run_all(apply, runs, tolerance, min_steps, noise, noise_share)


def run_all(
    apply: Apply,
    runs: dict[int, Run],
    tolerance: float = 0.0,
    min_steps: int = 4,
    noise: Callable[[int, Estimate], float] | None = None,
    noise_share: float = 0.0,
) -> Extremes:
    """All groups to their end, each with its own solver; the other arguments are those of `lanczos`.

    Args:
        runs: by position of the group. A group that is done is taken out, so that its memory is free.

    Raises:
        CheckFailed: a product is not finite.
    """
    found: dict[int, Ends] = {}
    steps = group_products = 0
    while runs:
        products = apply({i: run.current for i, run in runs.items()})
        steps += 1
        group_products += len(runs)
        for i, run in list(runs.items()):
            if not torch.isfinite(products[i].sum()):
                raise CheckFailed("a splitting-matrix product is not finite; check the data and the loss")
            run.advance(products[i])
            enough = run.done
            if not enough and steps >= min_steps and (known := run.preview()) is not None:
                shares = known.shares()
                enough = shares.numel() == 0 or bool((shares <= tolerance).all())
                if not enough and noise is not None and noise_share > 0:
                    enough = float(shares.square().mean().sqrt()) <= noise_share * noise(i, known)
            if enough:
                found[i] = run.ends()
                del runs[i]
    return Extremes(tuple(found[i] for i in sorted(found)), steps, group_products)
