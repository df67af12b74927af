"""Second moments ``Σ = E[p pᵀ]`` and their roots: dense, or of low rank where patches are few.

With fewer patches than half their length d, ``Σ = V Λ Vᵀ`` has low rank, and with the damping σ

    (Σ + σ I)^±½ = σ^±½ I + V ((Λ + σ)^±½ − σ^±½) Vᵀ

takes two thin products; V and Λ come from the eigenpairs of the patches' inner products, one row and column
per patch. Otherwise ``Σ + σ I = L Lᵀ``, and L⁻¹ is computed once, so that every change of coordinates is one
product of matrices rather than a triangular solve. Roots are computed in float64 and applied in the type of
the model.

Some entries may be 0 in every patch: of a 3 x 3 filter on a 1 x 1 map eight taps of nine read nothing but
padding. If at least half of the entries are, Σ is kept for the others alone, and its root is ``√σ`` on them.

A matrix [d, d] that would need more than the limit of memory is not made. The leading eigenpairs of the
patches are kept then, as many as the limit allows, and the energy of the others is spread evenly over all
directions: that of the frequent directions sketch (Ghashami, Liberty, Phillips and Woodruff, 2016).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Matrix", "Moment", "Patches", "Restricted", "Root", "added", "restricted", "root_of"]


class Root(Protocol):
    """A root R of a damped Σ, ``Σ + σ I = R Rᵀ``; all arguments are [..., rows, d]."""

    @property
    def dimension(self) -> int:
        """d."""

    def raw(self, whitened: Tensor) -> Tensor:
        """``R⁻ᵀ y``, row by row."""

    def whitened(self, raw: Tensor) -> Tensor:
        """``Rᵀ δ``."""

    def white(self, covectors: Tensor) -> Tensor:
        """``R⁻¹ c``."""

    def settled(self) -> Root:
        """The root without what `whitened` alone needs: that must not be called any more."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """Σ times the number of samples, float64 [d, d] shared by the channels or [width, d, d]."""

    values: Tensor
    spread = 0.0

    @property
    def dimension(self) -> int:
        """d."""
        return int(self.values.shape[-1])

    def scaled(self, factor: float) -> Matrix:
        """A positive multiple."""
        return Matrix(self.values * factor)

    def mean(self, samples: int) -> Tensor:
        """The mean eigenvalue of Σ, float64 of the leading axes."""
        return self.values.diagonal(dim1=-2, dim2=-1).mean(-1) / samples

    @property
    def finite(self) -> bool:
        """Whether all entries are."""
        return bool(torch.isfinite(self.values).all())

    def matrix(self) -> Matrix:
        """The same."""
        return self


@dataclass(frozen=True, eq=False)
class Patches:
    """Σ times the number of samples as ``RᵀR + spread · I``.

    Attributes:
        rows: R, [n, d], of the model's type.
        spread: what was left out by `compressed`, per direction.
    """

    rows: Tensor
    spread: float = 0.0

    @property
    def dimension(self) -> int:
        """d."""
        return int(self.rows.shape[-1])

    def scaled(self, factor: float) -> Patches:
        """A positive multiple."""
        return Patches(self.rows * factor**0.5, self.spread * factor)

    def mean(self, samples: int) -> Tensor:
        """The mean eigenvalue of Σ, float64 []."""
        return (self.rows.double().square().sum() / self.dimension + self.spread) / samples

    @property
    def finite(self) -> bool:
        """Whether all entries are."""
        return bool(torch.isfinite(self.rows).all())

    def matrix(self) -> Matrix:
        """The same as a matrix."""
        product = torch.zeros(self.dimension, self.dimension, dtype=torch.float64, device=self.rows.device)
        # Sums of so few products keep what float32 has; the rest is summed in float64.
        for part in self.rows.split(1024):
            product += (part.mT @ part).double()
        product.diagonal().add_(self.spread)
        return Matrix(product)

    def eigenpairs(self) -> tuple[Tensor, Tensor]:
        """Λ, float64 [n] ascending, and V, float64 [d, n]; a direction of eigenvalue 0 is 0."""
        wide = self.rows.double()
        values, vectors = torch.linalg.eigh(wide @ wide.mT)
        values = values.clamp_min(0)
        scale = values.sqrt()
        there = scale > 1e-7 * scale.max()
        inverse = torch.where(there, 1 / torch.where(there, scale, torch.ones_like(scale)), 0.0)
        return torch.where(there, values, 0.0), (wide.mT @ vectors) * inverse

    def compressed(self, most: int) -> Patches:
        """The ``most`` leading eigenpairs, and the mean of the others in every direction."""
        if len(self.rows) <= most:
            return self
        values, vectors = self.eigenpairs()
        rows = (vectors[:, -most:] * values[-most:].sqrt()).mT
        left = float(values[:-most].sum()) / self.dimension
        return Patches(rows.to(self.rows.dtype).contiguous(), self.spread + left)


@dataclass(frozen=True, eq=False)
class Restricted:
    """Σ times the number of samples if many entries of the patches are always 0.

    Attributes:
        inner: Σ of the other entries.
        places: of those, int64 [entries], ascending.
        dimension: d.
    """

    inner: Matrix | Patches
    places: Tensor
    dimension: int

    @property
    def spread(self) -> float:
        """That of `Patches`, per direction of the other entries."""
        return self.inner.spread

    def scaled(self, factor: float) -> Restricted:
        """A positive multiple."""
        return Restricted(self.inner.scaled(factor), self.places, self.dimension)

    def mean(self, samples: int) -> Tensor:
        """The mean eigenvalue of Σ, float64 []."""
        return self.inner.mean(samples) * (len(self.places) / self.dimension)

    @property
    def finite(self) -> bool:
        """Whether all entries are."""
        return self.inner.finite

    def matrix(self) -> Matrix:
        """The same as a matrix."""
        return Matrix(_embedded(self.inner.matrix().values, self.places, self.dimension))

    def at(self, places: Tensor) -> Matrix | Patches:
        """Σ of the entries at ``places``, which hold all its own."""
        own = torch.searchsorted(places, self.places)
        if isinstance(self.inner, Patches):
            rows = self.inner.rows.new_zeros(len(self.inner.rows), len(places))
            rows.index_copy_(1, own, self.inner.rows)
            return Patches(rows, self.spread * len(own) / len(places))
        return Matrix(_embedded(self.inner.values, own, len(places)))


def _embedded(values: Tensor, places: Tensor, size: int) -> Tensor:
    """A matrix among zeros."""
    whole = values.new_zeros(size, size)
    whole[places[:, None], places] = values
    return whole


Moment = Matrix | Patches | Restricted


def restricted(moment: Matrix | Patches) -> Moment:
    """The moment without the entries that are always 0, if at least half of them are.

    Args:
        moment: as a matrix of several channels it stays as it is.
    """
    if isinstance(moment, Patches):
        used = (moment.rows != 0).any(0) if not moment.spread else None
    else:
        used = moment.values.diagonal() != 0 if moment.values.ndim == 2 else None
    places = None if used is None else used.nonzero()[:, 0]
    if places is None or not 0 < 2 * len(places) <= moment.dimension:
        return moment
    if isinstance(moment, Patches):
        return Restricted(Patches(moment.rows[:, places]), places, moment.dimension)
    return Restricted(Matrix(moment.values[places[:, None], places]), places, moment.dimension)


def added(held: Moment | None, new: Moment, limit: float) -> Moment:
    """The sum of two moments: patches as long as they are at most d / 2, or no matrix fits within the limit.

    Args:
        held: what there is so far; None for nothing.
        new: what comes.
        limit: the bytes that one matrix may take.
    """
    if held is None:
        return _fitting(new, limit)
    if isinstance(held, Restricted) and isinstance(new, Restricted):
        return _added_restricted(held, new, limit)
    if isinstance(new, Restricted):
        held, new = new, held
    if isinstance(held, Restricted):
        held = held.at(torch.arange(held.dimension, device=held.places.device))
    if isinstance(new, Patches) and isinstance(held, Patches):
        return _fitting(Patches(torch.cat([held.rows, new.rows]), held.spread + new.spread), limit)
    return Matrix(held.matrix().values + new.matrix().values)


def _added_restricted(held: Restricted, new: Restricted, limit: float) -> Moment:
    """The sum of two moments that leave out entries: those that are always 0 in both."""
    d = held.dimension
    if torch.equal(held.places, new.places):
        places, one, other = held.places, held.inner, new.inner
    else:
        places = torch.cat([held.places, new.places]).unique()
        one, other = held.at(places), new.at(places)
    inner = added(one, other, limit)
    assert not isinstance(inner, Restricted)
    return inner if len(places) == d else Restricted(inner, places, d)


def _fitting(moment: Moment, limit: float) -> Moment:
    """Patches as they are if they are few, else as a matrix, or compressed if none fits within the limit."""
    d = moment.dimension
    if isinstance(moment, Restricted):
        inner = _fitting(moment.inner, limit)
        assert not isinstance(inner, Restricted)
        return Restricted(inner, moment.places, d)
    if isinstance(moment, Matrix):
        return moment
    if 2 * len(moment.rows) <= d:
        return moment
    if 8 * d * d > limit:
        return moment.compressed(max(1, min(d // 2, int(limit / (8 * d)))))
    return moment.matrix()


def root_of(moment: Moment, samples: int, damping: Tensor, dtype: torch.dtype) -> Root:
    """The root of a damped Σ.

    Args:
        moment: Σ times the number of samples.
        samples: that number.
        damping: σ, float64 [] or [width], positive.
        dtype: of the root.
    """
    if isinstance(moment, Restricted):
        inner = root_of(moment.inner, samples, damping, dtype)
        return _Extended(inner, moment.places, moment.dimension, float(damping) ** 0.5)
    if isinstance(moment, Patches):
        values, vectors = moment.eigenpairs()
        return _LowRank.of(values / samples, vectors, float(damping) + moment.spread / samples, dtype)
    damped = moment.values / samples
    damped.diagonal(dim1=-2, dim2=-1).add_(damping[..., None])
    lower = torch.linalg.cholesky(damped)
    del damped  # one matrix less at the same time
    eye = torch.eye(moment.dimension, dtype=torch.float64, device=lower.device)
    inverse = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False).to(dtype)
    return _Dense(lower.to(dtype), inverse)


def _product(rows: Tensor, matrix: Tensor) -> Tensor:
    """``rows @ matrix``, [..., n] times [n, m] or a batch of that.

    The product of torch takes up to ten times as long for rows in several axes that are not contiguous.
    """
    if matrix.ndim > 2:
        return rows @ matrix
    product = rows.reshape(-1, rows.shape[-1]) @ matrix
    return product.reshape(*rows.shape[:-1], matrix.shape[-1])


@dataclass(frozen=True, eq=False)
class _Dense:
    """Cholesky's root L, which goes when it is settled, and its inverse; [d, d] or [width, d, d]."""

    lower: Tensor | None
    inverse: Tensor

    @property
    def dimension(self) -> int:
        return int(self.inverse.shape[-1])

    def raw(self, whitened: Tensor) -> Tensor:
        return _product(whitened, self.inverse)

    def whitened(self, raw: Tensor) -> Tensor:
        assert self.lower is not None
        return _product(raw, self.lower)

    def white(self, covectors: Tensor) -> Tensor:
        return _product(covectors, self.inverse.mT)

    def settled(self) -> _Dense:
        return replace(self, lower=None)


@dataclass(frozen=True, eq=False)
class _LowRank:
    """The symmetric root ``a I + V diag(b) Vᵀ``, and its inverse likewise.

    Attributes:
        vectors: V, [d, n].
        root: (a, b).
        inverse: (1 / a, …).
    """

    vectors: Tensor
    root: tuple[float, Tensor]
    inverse: tuple[float, Tensor]

    @property
    def dimension(self) -> int:
        return len(self.vectors)

    @staticmethod
    def of(values: Tensor, vectors: Tensor, damping: float, dtype: torch.dtype) -> _LowRank:
        """From Λ, V and σ."""

        def power(exponent: float) -> tuple[float, Tensor]:
            still = float(damping**exponent)
            return still, ((values + damping) ** exponent - still).to(dtype)

        return _LowRank(vectors.to(dtype), power(0.5), power(-0.5))

    def _times(self, rows: Tensor, still: float, along: Tensor) -> Tensor:
        return still * rows + _product(_product(rows, self.vectors) * along, self.vectors.mT)

    def raw(self, whitened: Tensor) -> Tensor:
        return self._times(whitened, *self.inverse)

    def whitened(self, raw: Tensor) -> Tensor:
        return self._times(raw, *self.root)

    def white(self, covectors: Tensor) -> Tensor:
        return self._times(covectors, *self.inverse)

    def settled(self) -> _LowRank:
        return self


@dataclass(frozen=True, eq=False)
class _Extended:
    """A root of the entries at some places, and a multiple of the identity on all others.

    Attributes:
        inner: the root of those entries.
        places: their places, int64 [entries].
        dimension: d.
        still: √σ, the root on the other entries.
    """

    inner: Root
    places: Tensor
    dimension: int
    still: float

    def _times(self, rows: Tensor, still: float, change: Callable[[Tensor], Tensor]) -> Tensor:
        return (rows * still).index_copy_(-1, self.places, change(rows[..., self.places]))

    def raw(self, whitened: Tensor) -> Tensor:
        return self._times(whitened, 1 / self.still, self.inner.raw)

    def whitened(self, raw: Tensor) -> Tensor:
        return self._times(raw, self.still, self.inner.whitened)

    def white(self, covectors: Tensor) -> Tensor:
        return self._times(covectors, 1 / self.still, self.inner.white)

    def settled(self) -> _Extended:
        return replace(self, inner=self.inner.settled())
