"""The splitting matrices themselves, and their spectra by eigh: the reference for everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from growpipe.analyser.lanczos import Extremes

__all__ = ["dense_extremes", "splitting_matrices"]


def splitting_matrices(apply: Callable[[list[Tensor]], list[Tensor]], like: Sequence[Tensor]) -> list[Tensor]:
    """S of every channel, column by column: for every group [width, d, d].

    The j-th columns of all channels of all groups come from one product, so the cost is the largest d.

    Args:
        apply: the operator, for every group [width, d] to [width, d].
        like: for every group a tensor [width, d] of the type and device wanted.
    """
    columns: list[list[Tensor]] = [[] for _ in like]
    for j in range(max(v.shape[1] for v in like)):
        unit = [torch.zeros_like(v) for v in like]
        for v in unit:
            if j < v.shape[1]:
                v[:, j] = 1.0
        for position, product in enumerate(apply(unit)):
            if j < like[position].shape[1]:
                columns[position].append(product)
    return [torch.stack(parts, dim=2) for parts in columns]


def dense_extremes(apply: Callable[[list[Tensor]], list[Tensor]], like: Sequence[Tensor]) -> Extremes:
    """The extreme eigenpairs of every channel from its splitting matrix, by eigh in float64."""
    low, high, minus, plus, error = [], [], [], [], []
    for matrix, reference in zip(splitting_matrices(apply, like), like, strict=True):
        s = matrix.double()
        values, vectors = torch.linalg.eigh((s + s.mT) / 2)
        low.append(values[:, 0].cpu())
        high.append(values[:, -1].cpu())
        minus.append(vectors[:, :, 0].to(reference.dtype))
        plus.append(vectors[:, :, -1].to(reference.dtype))
        error.append(torch.zeros(len(values), dtype=torch.float64))
    # The operator was applied to the unit vectors.
    return Extremes(low, high, minus, plus, error, minus, plus, max(v.shape[1] for v in like))
