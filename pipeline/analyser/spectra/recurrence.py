"""The Krylov spaces of one group's channels, and what they say of the ends of the spectrum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
        low_error: a bound on the error of λ−, float64 [width].
        high_error: a bound on the error of λ+, float64 [width].
        minus_in: v− in the basis of the vectors the operator was applied to, [width, k].
        plus_in: v+, likewise.
    """

    low: Tensor
    high: Tensor
    low_error: Tensor
    high_error: Tensor
    minus_in: Tensor
    plus_in: Tensor

    @property
    def error(self) -> Tensor:
        """A bound on the error of λ at the worse end, float64 [width]."""
        return torch.maximum(self.low_error, self.high_error)

    def shares(self) -> Tensor:
        """The error bounds as shares of the spectral radii, of channels that have one; float64."""
        return self._shares(self.error)

    def weighted_shares(self, low: float, high: float) -> Tensor:
        """Bounds on the error of ``low · λ− − high · λ+`` as shares of the spectral radii, see `shares`."""
        return self._shares(low * self.low_error + high * self.high_error)

    def _shares(self, error: Tensor) -> Tensor:
        radius = torch.maximum(self.low.abs(), self.high.abs())
        live = radius > 0
        return error[live] / radius[live]


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
        # Blocks are appended and never joined or written into: of so much memory there is no second copy.
        self._blocks: tuple[Tensor, ...] = ()
        # Which vectors are there: where a Krylov space is exhausted its basis goes on with zeros.
        self._alive = torch.zeros(width, 0, dtype=torch.bool)
        self._t = torch.zeros(width, 0, 0, dtype=torch.float64)
        self._gram = torch.zeros(width, 0, 0, dtype=torch.float64)
        # The next block is made orthonormal when it is asked for: most often that of the last one is not.
        self._next: Tensor | None = first
        self._next_scale = lengths
        self._scale = torch.zeros(width, dtype=torch.float64)
        self._dimension = d
        self._estimate: Estimate | None = None

    @property
    def applied(self) -> int:
        """How many vectors S was applied to."""
        return self._k

    @property
    def first(self) -> Tensor:
        """The first block, orthonormal per channel, [block, width, d]."""
        return self._basis()[0]

    @property
    def current(self) -> Tensor:
        basis = self._basis()
        return basis[-1] if self._known() > self._k else basis[-1][:0]

    @property
    def residue(self) -> Tensor | None:
        """What the last product has outside the basis; None if ``current`` was asked for, or is empty."""
        return self._next

    @property
    def done(self) -> bool:
        return self._k == self.limit

    def _known(self) -> int:
        return sum(len(block) for block in self._blocks)

    def _basis(self) -> tuple[Tensor, ...]:
        """The vectors that S was applied to, and those of ``current``, in blocks of [block, width, d]."""
        if self._next is not None:
            block, self._next = self._next, None
            self._append(block, self._next_scale)
        return self._blocks

    def advance(self, product: Tensor, last: bool = False) -> None:
        """Take S times ``current``.

        Args:
            product: it.
            last: whether no further product will be taken, so that nothing is kept for one.
        """
        columns = self.project(product).double().cpu()
        k, filled = self._k, self._k + len(product)
        t = self._t.new_empty(len(columns), filled, filled)
        t[:, :k, :k] = self._t
        t[:, :, k:] = columns
        t[:, k:, :k] = columns[:, :k].mT
        t[:, k:, k:] = (columns[:, k:] + columns[:, k:].mT) / 2
        self._t, self._k, self._estimate = t, filled, None
        keeps = filled < self.limit and not last
        residue = (
            product.new_empty(min(len(product), self.limit - filled), *product.shape[1:]) if keeps else None
        )
        gram = self._t.new_empty(len(columns), len(product), len(product))
        scale = self._scale.clone()
        inside = columns.to(product)
        for here in self._portions():
            part = product[:, here]
            lengths = torch.linalg.vector_norm(part, dim=2).double().cpu()
            scale[here] = torch.maximum(scale[here], lengths.amax(0))
            known = [block[:, here] for block in self._blocks]
            part = _without(known, part, inside[here])
            part = _without(known, part, _inside(known, part))
            if residue is not None:
                residue[:, here] = part[: len(residue)]
            wide = part.double()
            # BᵀB: what a Ritz pair leaves over needs no more than that.
            gram[here] = torch.einsum("rcd,scd->crs", wide, wide).cpu()
        self._gram, self._scale = gram, scale
        self._next, self._next_scale = residue, scale.expand(len(product), -1)

    def _portions(self) -> list[slice]:
        """Some channels after the other: what is computed on the way is there for some only."""
        width = len(self._t)
        step = max(1, _PORTION // self._dimension)
        return [slice(start, start + step) for start in range(0, width, step)]

    def _append(self, block: Tensor, scale: Tensor) -> None:
        """Orthonormalise the vectors of a block, and append them; those lost in rounding errors as zeros.

        Args:
            block: [block, width, d]; changed in place unless it is the start.
            scale: of which size the errors are multiples, [block, width].
        """
        known = self._known()
        new = block[: self.limit - known]
        new = new.clone() if known == 0 else new
        there = torch.empty(len(new), new.shape[1], dtype=torch.bool)
        for here in self._portions():
            earlier = [held[:, here] for held in self._blocks]
            for j in range(len(new)):
                vector = new[j : j + 1, here]
                basis = [*earlier, new[:j, here]]
                # The first of a later block has lost its part in the basis already, twice, when it was made.
                for _ in range(2 if j else 0):
                    vector = _without(basis, vector, _inside(basis, vector))
                unit, norm = normalised(vector[0])
                alive = norm.double().cpu() > 64 * torch.finfo(block.dtype).eps * scale[j, here]
                new[j, here] = torch.where(alive.to(unit.device)[:, None], unit, torch.zeros_like(unit))
                there[j, here] = alive
        self._blocks += (new,)
        self._alive = torch.cat([self._alive, there.T], dim=1)

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values [width, k], Ritz coordinates [width, k, k], error bounds of both ends [width, 2]."""
        k = self._k
        t, alive = self._t.clone(), self._alive[:, :k]
        # In the place of a vector that is not there stands the mean of the others: never an end by itself.
        mean = t.diagonal(dim1=1, dim2=2).sum(1) / alive.sum(1)
        t.diagonal(dim1=1, dim2=2)[~alive] = mean[:, None].expand(alive.shape)[~alive]
        values, coordinates = torch.linalg.eigh(t)
        if k == self._dimension:  # the Krylov space is the whole space
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
        return _inside(self._basis(), covectors)

    def preview(self) -> Estimate:
        """Ritz values and coordinates of both ends, and their error bounds."""
        if self._estimate is None:
            values, coordinates, bound = self.ritz()
            # Copies, which do not hold on to all the others.
            minus, plus = (self._there(coordinates[:, :, end].clone()) for end in (0, -1))
            self._estimate = Estimate(values[:, 0], values[:, -1], bound[:, 0], bound[:, 1], minus, plus)
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
            known.low_error,
            known.high_error,
            known.minus_in,
            known.plus_in,
            self.vectors(known.minus_in),
            self.vectors(known.plus_in),
        )

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Ritz vectors [width, d] from coordinates [width, k]."""
        weights = coordinates.to(device=self._blocks[0].device, dtype=self._blocks[0].dtype)
        total = torch.zeros_like(self._blocks[0][0])
        parts = weights.split([len(block) for block in self._blocks][: -(-self._k // self.block)], dim=1)
        for part, block in zip(parts, self._blocks, strict=False):
            total += torch.einsum("ck,kcd->cd", part, block)
        return normalised(total)[0]


_PORTION = 1 << 19
"""About how many entries of a vector per channel are worked on at once."""


def _inside(basis: Iterable[Tensor], covectors: Tensor) -> Tensor:
    """Inner products of the vectors of some blocks [k, width, d] with [s, width, d]: [width, sum of k, s]."""
    return torch.cat([torch.einsum("kcd,scd->cks", block, covectors) for block in basis], dim=1)


def _without(basis: Sequence[Tensor], vectors: Tensor, inside: Tensor) -> Tensor:
    """Vectors [s, width, d] less the given multiples, [width, sum of k, s], of those of some blocks."""
    for block, part in zip(basis, inside.split([len(b) for b in basis], dim=1), strict=True):
        vectors = vectors - torch.einsum("cks,kcd->scd", part, block)
    return vectors


def normalised(v: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and their former lengths; rows of length 0 stay 0."""
    norm = torch.linalg.vector_norm(v, dim=1)
    safe = torch.where(norm > 0, norm, torch.ones_like(norm))
    return v / safe[:, None], norm
