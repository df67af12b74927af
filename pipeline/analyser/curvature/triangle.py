"""Symmetric and lower triangular matrices of which no more than the lower triangle is kept and multiplied.

Stripe i holds the rows from ``a_i`` to ``a_{i+1}``, as far as the column ``a_{i+1}``. Eight stripes hold 9/16
of a matrix, and a product of matrices takes 9/16 of its multiply-adds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Triangle"]

_STRIPES = 8
_LEAST_ROWS = 64
"""Of a stripe: shorter ones would make a product slower."""


def _bounds(dimension: int) -> Iterator[tuple[int, int]]:
    """The first row of every stripe, and the one behind its last."""
    count = max(1, min(_STRIPES, dimension // _LEAST_ROWS))
    return itertools.pairwise(round(k * dimension / count) for k in range(count + 1))


@dataclass(frozen=True, eq=False)
class Triangle:
    """The lower triangle of a matrix [d, d].

    Attributes:
        stripes: of rows, each as far as the diagonal entry of its last row. Above the diagonal a stripe holds
            the entries of the symmetric matrix, or zeros if the matrix is triangular.
    """

    stripes: tuple[Tensor, ...]

    @staticmethod
    def zeros(dimension: int, like: Tensor) -> Triangle:
        """A zero matrix in float64 on the device of ``like``."""
        return Triangle(
            tuple(
                torch.zeros(stop - start, stop, dtype=torch.float64, device=like.device)
                for start, stop in _bounds(dimension)
            )
        )

    @staticmethod
    def of(matrix: Tensor, dtype: torch.dtype | None = None) -> Triangle:
        """Copies of the stripes of a matrix [d, d], in its own type by default."""
        return Triangle(
            tuple(
                matrix[start:stop, :stop].to(dtype or matrix.dtype, copy=True)
                for start, stop in _bounds(len(matrix))
            )
        )

    @staticmethod
    def inverse(lower: Tensor, dtype: torch.dtype) -> Triangle:
        """The inverse of a lower triangular matrix [d, d], computed in its type and kept in ``dtype``."""
        stripes: list[Tensor] = []
        for start, stop in _bounds(len(lower)):
            right = lower.new_zeros(stop - start, stop)
            right[:, start:] = torch.eye(stop - start, dtype=lower.dtype, device=lower.device)
            for (first, last), known in zip(_bounds(len(lower)), stripes, strict=False):
                right[:, :last].addmm_(lower[start:stop, first:last], known, alpha=-1)
            stripes.append(torch.linalg.solve_triangular(lower[start:stop, start:stop], right, upper=False))
        return Triangle(tuple(stripe.to(dtype) for stripe in stripes))

    @property
    def dimension(self) -> int:
        """d."""
        return int(self.stripes[-1].shape[1])

    def placed(self) -> Iterator[tuple[int, int, Tensor]]:
        """Of every stripe the first row, the one behind the last, and its values."""
        for stripe in self.stripes:
            rows, stop = stripe.shape
            yield stop - rows, stop, stripe

    def diagonal(self) -> Tensor:
        """The entries on the diagonal, [d]."""
        return torch.cat([stripe[:, start:].diagonal() for start, _, stripe in self.placed()])

    def map(self, change: Callable[[Tensor], Tensor]) -> Triangle:
        """The same with every stripe changed."""
        return Triangle(tuple(change(stripe) for stripe in self.stripes))

    def symmetric(self) -> Tensor:
        """The symmetric matrix of this lower triangle, [d, d]."""
        last = self.stripes[-1]
        whole = last.new_empty(self.dimension, self.dimension)
        for start, stop, stripe in self.placed():
            whole[start:stop, :stop] = stripe
            whole[:start, start:stop] = stripe[:, :start].mT
        return whole

    def add_squares(self, rows: Tensor, alpha: float = 1.0) -> None:
        """Add ``RᵀR`` of some rows R, [n, d]; each of its entries is summed in the type of R."""
        for start, stop, stripe in self.placed():
            stripe.add_(rows[:, start:stop].mT @ rows[:, :stop], alpha=alpha)

    def times(self, rows: Tensor) -> Tensor:
        """``Y L`` of rows Y, [n, d]."""
        product = torch.zeros_like(rows, memory_format=torch.contiguous_format)
        for start, stop, stripe in self.placed():
            product[:, :stop].addmm_(rows[:, start:stop], stripe)
        return product

    def times_transposed(self, rows: Tensor) -> Tensor:
        """``Y Lᵀ`` of rows Y, [n, d]."""
        product = torch.empty_like(rows, memory_format=torch.contiguous_format)
        for start, stop, stripe in self.placed():
            product[:, start:stop] = rows[:, :stop] @ stripe.mT
        return product
