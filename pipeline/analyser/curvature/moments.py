"""Second moments ``Σ = E[p pᵀ]``: as patches where those are few, and as a sum of their products otherwise.

Some entries may be 0 in every patch: of a 3 x 3 filter on a 1 x 1 map eight taps of nine read nothing but
padding. If at least half of the entries are, Σ is kept for the others alone.

A matrix [d, d] that would need more than the limit of memory is not made. The leading eigenpairs of the
patches are kept then, as many as the limit allows, and the energy of the others is spread evenly over all
directions: that of the frequent directions sketch (Ghashami, Liberty, Phillips and Woodruff, 2016).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from growpipe.analyser.curvature.triangle import Triangle

__all__ = ["Matrix", "Moment", "Patches", "Restricted", "Sum", "added", "restricted"]


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
class Sum:
    """Σ times the number of samples as a lower triangle to which patches are added.

    Attributes:
        triangle: in float64.
    """

    triangle: Triangle
    spread = 0.0

    @property
    def dimension(self) -> int:
        """d."""
        return self.triangle.dimension

    def scaled(self, factor: float) -> Sum:
        """A positive multiple."""
        return Sum(self.triangle.map(lambda stripe: stripe * factor))

    def mean(self, samples: int) -> Tensor:
        """The mean eigenvalue of Σ, float64 []."""
        return self.triangle.diagonal().mean() / samples

    @property
    def finite(self) -> bool:
        """Whether all entries are."""
        return all(bool(torch.isfinite(stripe).all()) for stripe in self.triangle.stripes)

    def matrix(self) -> Matrix:
        """The same as a matrix."""
        return Matrix(self.triangle.symmetric())

    def with_patches(self, patches: Patches) -> Sum:
        """The sum of both; this one is used up."""
        # Sums of so few products keep what float32 has; the rest is summed in float64.
        for part in patches.rows.split(1024):
            self.triangle.add_squares(part)
        for start, _, stripe in self.triangle.placed() if patches.spread else ():
            stripe[:, start:].diagonal().add_(patches.spread)
        return self

    def with_sum(self, other: Sum) -> Sum:
        """The sum of both; this one is used up."""
        for own, more in zip(self.triangle.stripes, other.triangle.stripes, strict=True):
            own.add_(more)
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

    def summed(self) -> Sum:
        """The same as a sum."""
        return Sum(Triangle.zeros(self.dimension, self.rows)).with_patches(self)

    def matrix(self) -> Matrix:
        """The same as a matrix."""
        return self.summed().matrix()

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

    inner: Matrix | Sum | Patches
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

    def at(self, places: Tensor) -> Matrix | Sum | Patches:
        """Σ of the entries at ``places``, which hold all its own."""
        own = torch.searchsorted(places, self.places)
        if len(own) == len(places):
            return self.inner
        if isinstance(self.inner, Patches):
            rows = self.inner.rows.new_zeros(len(self.inner.rows), len(places))
            rows.index_copy_(1, own, self.inner.rows)
            return Patches(rows, self.spread * len(own) / len(places))
        return Matrix(_embedded(self.inner.matrix().values, own, len(places)))


def _embedded(values: Tensor, places: Tensor, size: int) -> Tensor:
    """A matrix among zeros."""
    whole = values.new_zeros(size, size)
    whole[places[:, None], places] = values
    return whole


Moment = Matrix | Sum | Patches | Restricted


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
        held: what there is so far; None for nothing. It is used up.
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
    if isinstance(held, Patches):
        held, new = new, held
    if isinstance(held, Sum) and isinstance(new, Patches):
        return held.with_patches(new)
    if isinstance(held, Sum) and isinstance(new, Sum):
        return held.with_sum(new)
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
    if not isinstance(moment, Patches):
        return moment
    if 2 * len(moment.rows) <= d:
        return moment
    if 8 * d * d > limit:
        return moment.compressed(max(1, min(d // 2, int(limit / (8 * d)))))
    return moment.summed()
