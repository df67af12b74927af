"""The splits on offer in one group, from the extreme eigenvalues of its channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from growpipe.analyser.schemes import Scheme, exact_rows
from growpipe.graph_ops.arrays import AnyArray

__all__ = ["Candidates"]


@dataclass(frozen=True, eq=False)
class Candidates:
    """The splits on offer in one group.

    Attributes:
        group: the group's name.
        exact_values: float [copies − 1, width], the least Σ w δᵀSδ with exactly 2, 3, … copies, of any sign;
            inf where the scheme has no such split.
        exact_rows: int64 of the same shape, the row of the table that reaches it, −1 for none.
        worth: what doubling the group's width was measured to lower the loss by. Where it is given, groups
            compete by it and ``values`` only orders the channels within the group.
    """

    group: str
    exact_values: npt.NDArray[np.float64]
    exact_rows: npt.NDArray[np.int64]
    worth: float | None = None

    @staticmethod
    def of(group: str, low: AnyArray, high: AnyArray, scheme: Scheme) -> Candidates:
        """From the extreme eigenvalues λ−, λ+ of the group's channels, float [width] each."""
        best = [exact_rows(low, high, scheme.c, m) for m in range(2, scheme.max_copies + 1)]
        return Candidates(group, np.stack([b[0] for b in best]), np.stack([b[1] for b in best]))

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """float [copies − 1, width], the least Σ w δᵀSδ with at most 2, 3, … copies; never above 0."""
        return np.minimum(np.minimum.accumulate(self.exact_values), 0.0)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """int64 of the same shape, the row of the table that reaches it, −1 where not to split is best."""
        fewer = range(1, len(self.exact_values) + 1)
        choice = np.stack([self.exact_values[:count].argmin(axis=0) for count in fewer])
        return np.where(self.values < 0, np.take_along_axis(self.exact_rows, choice, axis=0), -1)

    @property
    def width(self) -> int:
        result: int = self.exact_values.shape[1]
        return result
