"""Roots of second moments ``Σ = E[p pᵀ]``: dense, or of low rank where patches are few.

With fewer patches than half their length d, ``Σ = V Λ Vᵀ`` has low rank, and with the damping σ

    (Σ + σ I)^±½ = σ^±½ I + V ((Λ + σ)^±½ − σ^±½) Vᵀ

takes two thin products; V and Λ come from the eigenpairs of the patches' inner products, one row and column
per patch. Otherwise ``Σ + σ I = L Lᵀ``, and L⁻¹ is computed once, so that every change of coordinates is one
product of matrices rather than a triangular solve. Roots are computed in float64 and applied in the type of
the model. Of L and L⁻¹ the lower triangles are kept and multiplied, see `triangle`.

On entries that are 0 in every patch the root is ``√σ``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from growpipe.analyser.curvature.moments import Moment, Patches, Restricted
from growpipe.analyser.curvature.triangle import Triangle

__all__ = ["Root", "root_of"]


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
    damped = moment.matrix().values / samples
    damped.diagonal(dim1=-2, dim2=-1).add_(damping[..., None])
    lower = torch.linalg.cholesky(damped)
    del damped  # one matrix less at the same time
    if lower.ndim == 2:
        return _Striped(Triangle.of(lower, dtype), Triangle.inverse(lower, dtype))
    eye = torch.eye(moment.dimension, dtype=torch.float64, device=lower.device)
    inverse = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False).to(dtype)
    return _PerChannel(lower.to(dtype), inverse)


def _by_rows(change: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """A change of [n, d] for rows in any axes."""
    return change(rows.reshape(-1, rows.shape[-1])).reshape(rows.shape)


@dataclass(frozen=True, eq=False)
class _Striped:
    """Cholesky's root L, which goes when it is settled, and its inverse; [d, d] shared by the channels."""

    lower: Triangle | None
    inverse: Triangle

    @property
    def dimension(self) -> int:
        return self.inverse.dimension

    def raw(self, whitened: Tensor) -> Tensor:
        return _by_rows(self.inverse.times, whitened)

    def whitened(self, raw: Tensor) -> Tensor:
        assert self.lower is not None
        return _by_rows(self.lower.times, raw)

    def white(self, covectors: Tensor) -> Tensor:
        return _by_rows(self.inverse.times_transposed, covectors)

    def settled(self) -> _Striped:
        return replace(self, lower=None)


@dataclass(frozen=True, eq=False)
class _PerChannel:
    """The same for every channel, [width, d, d]: it takes [..., width, rows, d]."""

    lower: Tensor | None
    inverse: Tensor

    @property
    def dimension(self) -> int:
        return int(self.inverse.shape[-1])

    def raw(self, whitened: Tensor) -> Tensor:
        return whitened @ self.inverse

    def whitened(self, raw: Tensor) -> Tensor:
        assert self.lower is not None
        return raw @ self.lower

    def white(self, covectors: Tensor) -> Tensor:
        return covectors @ self.inverse.mT

    def settled(self) -> _PerChannel:
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
        return _by_rows(
            lambda flat: torch.addmm(flat, (flat @ self.vectors).mul_(along), self.vectors.mT, beta=still),
            rows,
        )

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
