"""The splitting matrices themselves, and their spectra by eigh: the reference for everything else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from growpipe.analyser.spectra.drive import Apply, Extremes, StoppingRule, drive
from growpipe.analyser.spectra.recurrence import Ends

__all__ = ["Columns", "dense_extremes"]


_BLOCK = 1 << 18
"""About how many entries are asked for at once: what is computed again per call is so for all of them."""


class Columns:
    """The splitting matrices of one group's channels, by blocks of columns.

    Args:
        like: a tensor [width, d] of the type and device wanted.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._block = max(1, _BLOCK // max(1, like.numel()))
        self._columns: list[Tensor] = []
        self._known = 0

    @property
    def current(self) -> Tensor:
        """The next unit vectors, for every channel."""
        width, d = self._like.shape
        stop = min(d, self._known + self._block)
        units = self._like.new_zeros(stop - self._known, width, d)
        for j, column in enumerate(range(self._known, stop)):
            units[j, :, column] = 1.0
        return units

    @property
    def done(self) -> bool:
        return self._known == self._like.shape[1]

    def advance(self, product: Tensor) -> None:
        """Take S times ``current``."""
        self._columns.append(product)
        self._known += len(product)

    def project(self, covectors: Tensor) -> Tensor:
        """They were applied to the unit vectors."""
        return covectors[:, :, : self._known + len(covectors)].movedim(0, 2)

    def preview(self) -> None:
        """Nothing is known before the last column."""

    @property
    def matrices(self) -> Tensor:
        """S of every channel, float64 [width, d, d]."""
        s = torch.cat(self._columns).movedim(0, 2).double()
        return (s + s.mT) / 2

    def ends(self) -> Ends:
        """The extreme eigenpairs by eigh in float64; the operator was applied to the unit vectors."""
        values, vectors = torch.linalg.eigh(self.matrices)
        low, high = (values[:, k].cpu() for k in (0, -1))
        minus, plus = (vectors[:, :, k].to(self._like.dtype) for k in (0, -1))
        return Ends(low, high, torch.zeros_like(low), torch.zeros_like(low), minus, plus, minus, plus)


def dense_extremes(apply: Apply, like: Sequence[Tensor]) -> Extremes:
    """The extreme eigenpairs of every channel from its splitting matrix; d products per group.

    Args:
        apply: the operator, of the groups it is given [block, width, d] to [block, width, d].
        like: for every group a tensor [width, d] of the type and device wanted.
    """
    return drive(apply, {i: Columns(v) for i, v in enumerate(like)}, StoppingRule(tolerance=0.0))
