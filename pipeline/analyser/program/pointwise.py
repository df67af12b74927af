"""Convolutions of kernel size 1 as matrix products.

On a CPU torch's convolutions bring inputs and filters into an order of their own. For a kernel of one entry
that takes longer than the products themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from growpipe.analyser.program.precision import rounds_factors

__all__ = ["filter_gradient", "is_faster", "through_filters"]

_CACHED = 1 << 22
"""The entries of what goes in and comes out up to which a product over all positions at once is faster, if
channels are innermost: with more of them both wait for memory."""

_POSITIONS = 64
"""The least positions of a sample for which products sample by sample are faster, if channels are not."""


def is_faster(value: Tensor, others: int) -> bool:
    """Whether these functions are faster than torch's convolution and its gradients.

    Args:
        value: [N, channels, ...], what goes in or the gradient of what comes out.
        others: the number of channels on the other side.
    """
    if not value.is_cpu or value.dtype not in (torch.float32, torch.float64):
        return False
    samples, channels, *size = value.shape
    positions = torch.Size(size).numel()
    if _is_innermost(value):
        return rounds_factors(value) or samples * positions * (channels + others) <= _CACHED
    return value.is_contiguous() and positions >= _POSITIONS


def through_filters(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """What a matrix makes of the channels of every position.

    Args:
        x: [N, in, ...].
        matrix: [out, in].
        bias: [out] or None.

    Returns:
        [N, out, ...], with the channels innermost if they are so in ``x``.
    """
    if _is_innermost(x):
        return linear(x.movedim(1, -1), matrix, bias).movedim(-1, 1)
    made = torch.matmul(matrix, x.flatten(2))
    if bias is not None:
        made += bias[:, None]
    return made.reshape(len(x), len(matrix), *x.shape[2:])


def filter_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """``Σ g xᵀ`` over all samples and positions, [out, in].

    Args:
        gradient: g, [N, out, ...].
        x: [N, in, ...].
    """
    if _is_innermost(x) and _is_innermost(gradient):
        return _rows(gradient).mT @ _rows(x)
    total = x.new_zeros(gradient.shape[1], x.shape[1])
    return total.addbmm_(gradient.flatten(2), x.flatten(2).mT)


def _is_innermost(value: Tensor) -> bool:
    """Whether the channels, axis 1, are the innermost axis in memory."""
    return value.movedim(1, -1).is_contiguous()


def _rows(value: Tensor) -> Tensor:
    """[N, C, ...] to [N times positions, C]."""
    return value.movedim(1, -1).flatten(0, -2)
