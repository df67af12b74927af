"""Convolutions over few positions as products of a matrix of input patches.

On a CPU torch's convolutions bring filters into an order of their own and back. If the filters are larger
than the maps, that takes several times as long as the products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from growpipe.analyser.program.precision import rounds_factors

__all__ = ["filter_gradient", "input_patches", "is_faster", "output_sizes", "through_filters"]

_FEW, _FEW_TO_ROUND = 4, 16
"""The positions of a sample up to which products of patches are faster, and up to which the gradient by the
filters is if products round their factors."""

_LARGE, _LARGE_FOR_GRADIENT = 2**18, 2**16
"""The entries of filters from which on products of patches are faster, and the gradient by the filters is."""


def is_faster(value: Tensor, entries: int, positions: int, *, gradient: bool) -> bool:
    """Whether these functions are faster than torch's convolution and its gradient by the filters.

    Args:
        value: a factor.
        entries: of the filters.
        positions: the number of positions of the result, per sample.
        gradient: whether the gradient by the filters is wanted.
    """
    if not value.is_cpu or value.dtype not in (torch.float32, torch.float64):
        return False
    if not gradient:
        return entries >= _LARGE and positions <= _FEW
    return entries >= _LARGE_FOR_GRADIENT and positions <= (_FEW_TO_ROUND if rounds_factors(value) else _FEW)


def output_sizes(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Size:  # fmt: skip
    """The sizes of a convolution's result, by spatial axis."""
    axes = zip(size, kernel, stride, padding, dilation, strict=True)
    return torch.Size((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)


def input_patches(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """What the kernel meets at every position, [N, *positions, in, *kernel]: views of the padded input.

    Args:
        x: [N, in, ...].
        kernel, stride, padding, dilation: by spatial axis.
    """
    if any(padding):
        x = pad(x, [p for axis in reversed(padding) for p in (axis, axis)])
    x = x.movedim(1, -1)
    for axis, (taps, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True), 1):
        # A new last axis with the taps, in the order of the axes of space.
        x = x.unfold(axis, spread * (taps - 1) + 1, step)[..., ::spread]
    return x


def _rows(patches: Tensor, axis: int) -> Tensor:
    """Patches [..., in, *kernel] as [..., entries] with the channels innermost, as they are in memory.

    Args:
        patches: the patches.
        axis: that of their channels.
    """
    return patches.movedim(axis, -1).flatten(axis)


def through_filters(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    """x * w + bias.

    Args:
        x: [N, in, ...].
        w: the filters, [out, in, ...].
        bias: [out] or None.
        stride, padding, dilation: by spatial axis.

    Returns:
        [N, out, ...], with the channels innermost.
    """
    rows = _rows(input_patches(x, w.shape[2:], stride, padding, dilation), x.ndim - 1)
    made = linear(rows, w.movedim(1, -1).flatten(1), bias)
    return made.movedim(-1, 1)


def filter_gradient(
    g: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    """The gradient of ⟨g, x * w⟩ by w, [out, in, *kernel].

    Args:
        g: [N, out, ...].
        x: [N, in, ...].
        kernel, stride, padding, dilation: by spatial axis.
    """
    rows = _rows(input_patches(x, kernel, stride, padding, dilation), x.ndim - 1).flatten(0, -2)
    made = g.movedim(1, -1).reshape(-1, g.shape[1]).mT @ rows
    filters: Tensor = made.unflatten(1, (*kernel, x.shape[1]))
    return filters.movedim(-1, 1)
