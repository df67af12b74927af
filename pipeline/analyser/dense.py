"""The splitting matrices themselves, and their spectra by eigh: the reference for everything else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from growpipe.analyser.lanczos import Apply, Ends, Extremes

__all__ = ["dense_extremes", "splitting_matrices"]


def splitting_matrices(apply: Apply, like: Sequence[Tensor]) -> list[Tensor]:
    """S of every channel, column by column: for every group [width, d, d].

    The j-th columns of all channels of all groups come from one product: the cost is d products per group.

    Args:
        apply: the operator, of the groups it is given [width, d] to [width, d].
        like: for every group a tensor [width, d] of the type and device wanted.
    """
    columns: list[list[Tensor]] = [[] for _ in like]
    for j in range(max(v.shape[1] for v in like)):
        units = {i: torch.zeros_like(v) for i, v in enumerate(like) if j < v.shape[1]}
        for v in units.values():
            v[:, j] = 1.0
        for i, product in apply(units).items():
            columns[i].append(product)
    return [torch.stack(parts, dim=2) for parts in columns]


def dense_extremes(apply: Apply, like: Sequence[Tensor]) -> Extremes:
    """The extreme eigenpairs of every channel from its splitting matrix, by eigh in float64.

    Args:
        apply: the operator, of the groups it is given [width, d] to [width, d].
        like: for every group a tensor [width, d] of the type and device wanted.
    """
    groups = []
    for matrix, reference in zip(splitting_matrices(apply, like), like, strict=True):
        s = matrix.double()
        values, vectors = torch.linalg.eigh((s + s.mT) / 2)
        low, high = (values[:, k].cpu() for k in (0, -1))
        minus, plus = (vectors[:, :, k].to(reference.dtype) for k in (0, -1))
        # The operator was applied to the unit vectors.
        groups.append(Ends(low, high, minus, plus, torch.zeros_like(low), minus, plus))
    dimensions = [v.shape[1] for v in like]
    return Extremes(tuple(groups), max(dimensions), sum(dimensions))
