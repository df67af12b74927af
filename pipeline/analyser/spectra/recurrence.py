"""The Krylov spaces of one group's channels, and what they say of the ends of the spectrum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from growpipe.graph_ops.errors import CheckFailed

__all__ = ["Ends", "Estimate", "Recurrence"]


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


class Recurrence:
    """Block Lanczos for the channels of one group: orthonormal Krylov bases Q, and ``T = Qᵀ S Q``.

    With every block that S is applied to, ``S Q = Q T + Q' B Eᵀ``: Q' is the block after it, and Eᵀ takes the
    rows of the last one. So a Ritz pair (θ, Q s) has the residual ``‖B Eᵀ s‖``, whatever block came first
    (Golub and Van Loan, Matrix Computations, 4th edition, section 10.3.6).

    Args:
        start: the first block, [block, width, d], or [width, d] for a block of one. A vector that depends on
            those before it is left out; the first one of a channel is not zero.
        steps: the largest number of vectors that S is applied to; a whole number of blocks of them is, or d.

    Raises:
        CheckFailed: a first start vector is zero, or one is not finite.
    """

    def __init__(self, start: Tensor, steps: int) -> None:
        first = start if start.ndim == 3 else start[None]
        self.block, width, d = first.shape
        # Residuals are known after whole blocks only, or when the Krylov space is the whole space.
        self.limit = min(d, max(self.block, steps - steps % self.block)) if steps < d else d
        lengths = torch.linalg.vector_norm(first, dim=2).double().cpu()
        if not bool((lengths[0] > 0).all() and torch.isfinite(lengths).all()):
            raise CheckFailed("a Lanczos start vector is zero or not finite")
        self._k = 0
        self._basis = first.new_empty(0, width, d)
        # Which vectors are there: where a Krylov space is exhausted its basis goes on with zeros.
        self._alive = torch.zeros(width, 0, dtype=torch.bool)
        self._t = torch.zeros(width, 0, 0, dtype=torch.float64)
        self._gram = torch.zeros(width, 0, 0, dtype=torch.float64)
        # The next block is made orthonormal when it is asked for: most often that of the last one is not.
        self._next: Tensor | None = first
        self._next_scale = lengths
        self._scale = torch.zeros(width, dtype=torch.float64)
        self._estimate: Estimate | None = None

    @property
    def applied(self) -> int:
        """How many vectors S was applied to."""
        return self._k

    @property
    def basis(self) -> Tensor:
        """The vectors that S was applied to, and those of ``current``, [k + block, width, d]."""
        if self._next is not None:
            block, self._next = self._next, None
            self._append(block, self._next_scale)
        return self._basis

    @property
    def current(self) -> Tensor:
        return self.basis[self._k :]

    @property
    def done(self) -> bool:
        return self._k == self.limit

    def advance(self, product: Tensor) -> None:
        """Take S times ``current``."""
        columns = self.project(product).double().cpu()
        k, filled = self._k, self._k + len(product)
        t = self._t.new_empty(len(columns), filled, filled)
        t[:, :k, :k] = self._t
        t[:, :, k:] = columns
        t[:, k:, :k] = columns[:, :k].mT
        t[:, k:, k:] = (columns[:, k:] + columns[:, k:].mT) / 2
        self._t, self._k, self._estimate = t, filled, None
        lengths = torch.linalg.vector_norm(product, dim=2).double().cpu()
        self._scale = torch.maximum(self._scale, lengths.amax(0))
        residue = product - torch.einsum("cks,kcd->scd", columns.to(product), self._basis)
        residue = residue - torch.einsum("cks,kcd->scd", self.project(residue), self._basis)
        wide = residue.double()
        # BᵀB: what a Ritz pair leaves over needs no more than that.
        self._gram = torch.einsum("rcd,scd->crs", wide, wide).cpu()
        self._next = residue[: self.limit - filled] if filled < self.limit else None
        self._next_scale = self._scale.expand(len(residue), -1)

    def _append(self, block: Tensor, scale: Tensor) -> None:
        """Orthonormalise the vectors of a block, and append them; those lost in rounding errors as zeros.

        Args:
            block: [block, width, d].
            scale: of which size the errors are multiples, [block, width].
        """
        known = len(self._basis)
        basis = torch.cat([self._basis, block[: self.limit - known]])
        alive = [self._alive]
        for j in range(known, len(basis)):
            vector = basis[j]
            # The first of a later block has lost its part in the basis already, twice, when it was made.
            for _ in range(2 if j > known else 0):
                inside = torch.einsum("kcd,cd->kc", basis[:j], vector)
                vector = vector - torch.einsum("kc,kcd->cd", inside, basis[:j])
            unit, norm = normalised(vector)
            there = norm.double().cpu() > 64 * torch.finfo(block.dtype).eps * scale[j - known]
            basis[j] = torch.where(there.to(unit.device)[:, None], unit, torch.zeros_like(unit))
            alive.append(there[:, None])
        self._basis, self._alive = basis, torch.cat(alive, dim=1)

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values [width, k], Ritz coordinates [width, k, k], error bounds of both ends [width, 2]."""
        k = self._k
        t, alive = self._t.clone(), self._alive[:, :k]
        # In the place of a vector that is not there stands the mean of the others: never an end by itself.
        mean = t.diagonal(dim1=1, dim2=2).sum(1) / alive.sum(1)
        t.diagonal(dim1=1, dim2=2)[~alive] = mean[:, None].expand(alive.shape)[~alive]
        values, coordinates = torch.linalg.eigh(t)
        if k == self._basis.shape[2]:  # the Krylov space is the whole space
            return values, coordinates, values.new_zeros(len(values), 2)
        size = self._gram.shape[1]
        last = coordinates[:, k - size :]
        residual = torch.einsum("crk,crs,csk->ck", last, self._gram, last).clamp_min(0).sqrt()
        if k == 1:
            return values, coordinates, residual[:, [0, 0]]
        gap = torch.stack([values[:, 1] - values[:, 0], values[:, -1] - values[:, -2]], dim=1)
        # The next Ritz value stands for the rest of the spectrum: it may still move towards the end.
        gap = (gap - residual[:, [1, -2]]).clamp_min(0)
        ends = residual[:, [0, -1]]
        return values, coordinates, torch.where(gap > ends, ends * ends / gap, ends)

    def project(self, covectors: Tensor) -> Tensor:
        return torch.einsum("kcd,scd->cks", self.basis, covectors)

    def preview(self) -> Estimate:
        """Ritz values and coordinates of both ends, and their error bounds."""
        if self._estimate is None:
            values, coordinates, bound = self.ritz()
            # Copies, which do not hold on to all the others.
            minus, plus = (self._there(coordinates[:, :, end].clone()) for end in (0, -1))
            self._estimate = Estimate(values[:, 0], values[:, -1], bound.amax(dim=1), minus, plus)
        return self._estimate

    def _there(self, coordinates: Tensor) -> Tensor:
        """Coordinates in vectors that are there; where all of them have one value, the first vector."""
        coordinates[~self._alive[:, : self._k]] = 0.0
        lost = torch.linalg.vector_norm(coordinates, dim=1) < 0.5
        coordinates[lost] = 0.0
        coordinates[lost, 0] = 1.0
        result: Tensor = coordinates / torch.linalg.vector_norm(coordinates, dim=1, keepdim=True)
        return result

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
        weights = coordinates.to(device=self._basis.device, dtype=self._basis.dtype)
        return normalised(torch.einsum("ck,kcd->cd", weights, self._basis[: self._k]))[0]


def normalised(v: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and their former lengths; rows of length 0 stay 0."""
    norm = torch.linalg.vector_norm(v, dim=1)
    safe = torch.where(norm > 0, norm, torch.ones_like(norm))
    return v / safe[:, None], norm
