"""The splitting matrices themselves, and their spectra by eigh: the reference for everything else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from growpipe.analyser.lanczos import Apply, Ends, Extremes, run_all

__all__ = ["Columns", "dense_extremes"]


class Columns:
    """The splitting matrices of one group's channels, a column of every channel from each product.

    Args:
        like: a tensor [width, d] of the type and device wanted.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._columns: list[Tensor] = []

    @property
    def current(self) -> Tensor:
        """The next unit vector, for every channel."""
        unit = torch.zeros_like(self._like)
        unit[:, len(self._columns)] = 1.0
        return unit

    @property
    def done(self) -> bool:
        return len(self._columns) == self._like.shape[1]

    def advance(self, product: Tensor) -> None:
        """Take S times ``current``."""
        self._columns.append(product)

    def project(self, covectors: Tensor) -> Tensor:
        """They were applied to the unit vectors."""
        return covectors[:, : len(self._columns) + 1]

    def preview(self) -> None:
        """Nothing is known before the last column."""

    @property
    def matrices(self) -> Tensor:
        """S of every channel, float64 [width, d, d]."""
        s = torch.stack(self._columns, dim=2).double()
        return (s + s.mT) / 2

    def ends(self) -> Ends:
        """The extreme eigenpairs by eigh in float64; the operator was applied to the unit vectors."""
        values, vectors = torch.linalg.eigh(self.matrices)
        low, high = (values[:, k].cpu() for k in (0, -1))
        minus, plus = (vectors[:, :, k].to(self._like.dtype) for k in (0, -1))
        return Ends(low, high, torch.zeros_like(low), minus, plus, minus, plus)


def dense_extremes(apply: Apply, like: Sequence[Tensor]) -> Extremes:
    """The extreme eigenpairs of every channel from its splitting matrix; d products per group.

    Args:
        apply: the operator, of the groups it is given [width, d] to [width, d].
        like: for every group a tensor [width, d] of the type and device wanted.
    """
    return run_all(apply, {i: Columns(v) for i, v in enumerate(like)})
