"""Convolutions whose derivatives of every order are convolutions.

Autograd's own double backward of a grouped convolution loops over the groups. Here it is written out:
``⟨g, x * w⟩`` is linear in the output gradient g, the input x and the filters w; its three gradients are the
convolution and the two maps of its backward pass, and each of these has the other two as its derivatives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import linear

from growpipe.analyser.program import patches, pointwise
from growpipe.analyser.program.aten import aten, per_axis
from growpipe.analyser.program.kernel_window import KernelWindow, window_of
from growpipe.analyser.program.precision import rounds_factors
from growpipe.torch_module.memory_format import read_positions, reads_every_nth

__all__ = ["Convolution", "blank", "conv_nd", "convolution"]

_WORTH_ROUNDING = 4096
"""The entries of filters that are worth factors in bfloat16: with fewer the way there takes longer."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """The geometry of a convolution, as aten.convolution takes it."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    @staticmethod
    def of(
        w: Tensor,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        transposed: bool = False,
        output_padding: Any = 0,
    ) -> Convolution:
        """From the arguments of a convolution with weight ``w``, each a number or one per axis."""

        rank = w.ndim - 2
        return Convolution(
            per_axis(stride, rank),
            per_axis(padding, rank),
            per_axis(dilation, rank),
            transposed,
            per_axis(output_padding, rank),
            groups,
        )

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """x * w + bias: [N, out, ...]."""
        window = self._window(x.shape, w.shape)
        if window is not None:
            return replace(self, padding=window.padding).forward(x, window.of(w), bias)
        if self._is_matrix_product(x.shape, w.shape):
            return linear(x.flatten(1), w.flatten(1), bias).reshape(len(x), len(w), *[1] * (x.ndim - 2))
        if self._is_pointwise(w) and pointwise.is_faster(x, len(w)):
            return pointwise.through_filters(x, w.flatten(1), bias)
        if self._is_by_patches(x, x.shape, w.shape, gradient=False):
            return patches.through_filters(x, w, bias, *self._steps)
        kind = x.dtype
        if self._rounds(x, w.shape):
            x, w, bias = x.bfloat16(), w.bfloat16(), None if bias is None else bias.bfloat16()
        y: Tensor = aten.convolution.default(
            x, w, bias, self.stride, self.padding, self.dilation, self.transposed, self.output_padding,
            self.groups,
        )  # fmt: skip
        return y.to(kind)

    def backward(self, g: Tensor, x: Tensor, w: Tensor, which: int) -> Tensor:
        """The gradient of ⟨g, x * w⟩ by the input (0) or by the weight (1), whose own values are not read."""
        window = self._window(x.shape, w.shape)
        if window is not None:
            found = replace(self, padding=window.padding).backward(g, x, window.of(w), which)
            return found if which == 0 else window.filled(found, w.shape[2:])
        if self._is_matrix_product(x.shape, w.shape):
            if which == 0:
                return (g.flatten(1) @ w.flatten(1)).reshape(x.shape)
            return (g.flatten(1).mT @ x.flatten(1)).reshape(w.shape)
        if self._is_pointwise(w) and pointwise.is_faster(g, w.shape[1]):
            if which == 0:
                return pointwise.through_filters(g, w.flatten(1).mT)
            return pointwise.filter_gradient(g, x).reshape(w.shape)
        if which == 1 and self._is_by_patches(g, x.shape, w.shape, gradient=True):
            return patches.filter_gradient(g, x, w.shape[2:], *self._steps)
        return self._by_kernels(g, x, w, which)

    def _by_kernels(self, g: Tensor, x: Tensor, w: Tensor, which: int) -> Tensor:
        """`backward` by torch's own kernels."""
        stride, extra = self.stride, self.output_padding
        if which == 1 and reads_every_nth(w.shape[2:], stride, self.padding):
            # The same gradient; torch's own may write beyond its memory, see `memory_format`.
            if self.transposed:
                g = read_positions(g, stride)
                for axis, size in enumerate(x.shape[2:], 2):
                    g = g.narrow(axis, 0, size)
            else:
                x = read_positions(x, stride)
            stride, extra = (1,) * len(stride), (0,) * len(stride)
        kind = g.dtype
        if self._rounds(g, w.shape):
            # Of what the gradient is taken by the values are not read.
            x = x.bfloat16() if which == 1 else torch.empty_like(x, dtype=torch.bfloat16)
            w = w.bfloat16() if which == 0 else torch.empty_like(w, dtype=torch.bfloat16)
            g = g.bfloat16()
        gradients = aten.convolution_backward.default(
            g, x, w, None, stride, self.padding, self.dilation, self.transposed, extra, self.groups,
            [which == 0, which == 1, False],
        )  # fmt: skip
        result: Tensor = gradients[which]
        return result.to(kind)

    @property
    def _is_dense(self) -> bool:
        """Whether every output channel is made of all input channels."""
        return not self.transposed and self.groups == 1

    @property
    def _steps(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        return self.stride, self.padding, self.dilation

    def _window(self, inputs: torch.Size, filters: torch.Size) -> KernelWindow | None:
        """The part of the kernel that meets the map, if that is not all of it."""
        if self.transposed or not any(self.padding):
            return None
        return window_of(inputs[2:], filters[2:], *self._steps)

    def _is_by_patches(
        self, value: Tensor, inputs: torch.Size, filters: torch.Size, *, gradient: bool
    ) -> bool:
        """Whether products with input patches are faster, see `patches`."""
        if not self._is_dense:
            return False
        positions = patches.output_sizes(inputs[2:], filters[2:], *self._steps).numel()
        return patches.is_faster(value, filters.numel(), positions, gradient=gradient)

    def _rounds(self, value: Tensor, filters: torch.Size) -> bool:
        """Whether factors are to be bfloat16, and are worth the way there and back."""
        return self.groups == 1 and filters.numel() >= _WORTH_ROUNDING and rounds_factors(value)

    def _is_pointwise(self, w: Tensor) -> bool:
        """Whether every position of the result is a matrix times the same position of the input."""
        at_places = not any(self.padding) and all(step == 1 for step in self.stride)
        return self._is_dense and at_places and w.shape[2:].numel() == 1

    def _is_matrix_product(self, inputs: torch.Size, filters: torch.Size) -> bool:
        """Whether the kernel covers the whole map once.

        Kernels of convolutions first bring filters into another order; here these are larger than the maps.
        """
        return self._is_dense and not any(self.padding) and inputs[1:] == filters[1:]


_OUTPUT, _INPUT, _WEIGHT = range(3)


class _Gradient(Function):
    """The gradient of ⟨g, x * w⟩ by one of (g, x, w), given the other two in this order.

    An argument is kept only where the gradient by the other one is wanted: activations are large.
    """

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, by: int, shapes: tuple[torch.Size, ...], conv: Convolution
    ) -> Tensor:
        ctx.by, ctx.shapes, ctx.conv = by, shapes, conv
        by_first, by_second = ctx.needs_input_grad[:2]
        ctx.save_for_backward(first if by_second else None, second if by_first else None)
        if by == _OUTPUT:
            return conv.forward(first, second)
        if by == _INPUT:
            return conv.backward(first, blank(first, shapes[_INPUT]), second, 0)
        return conv.backward(first, second, blank(first, shapes[_WEIGHT]), 1)

    @staticmethod
    def backward(ctx: Any, t: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        first, second = ctx.saved_tensors
        roles = [role for role in range(3) if role != ctx.by]
        results: list[Tensor | None] = []
        for position, other in ((0, second), (1, first)):
            if not ctx.needs_input_grad[position]:
                results.append(None)
                continue
            pair = (t, other) if ctx.by < roles[1 - position] else (other, t)
            results.append(_Gradient.apply(*pair, roles[position], ctx.shapes, ctx.conv))
        return results[0], results[1], None, None, None


def blank(like: Tensor, shape: torch.Size) -> Tensor:
    """A tensor of a shape, in the memory format of another one; its values are never read."""
    last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return torch.empty(
        shape,
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


def convolution(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Tensor:
    """A convolution of any rank and grouping whose derivatives of every order are convolutions.

    Args:
        x: [N, in, ...].
        w: the filters, [out, in / groups, ...], or [in, out / groups, ...] where it is transposed.
        bias: [out] or None.
        stride, padding, dilation, output_padding: a number, or one per axis.
        transposed: whether it is a transposed convolution.
        groups: how many groups of channels do not meet.

    Returns:
        [N, out, ...].
    """
    conv = Convolution.of(w, stride, padding, dilation, groups, transposed, output_padding)
    # The form's own shape of g is not needed: g itself is there whenever it is not the result.
    y: Tensor = _Gradient.apply(x, w, _OUTPUT, (torch.Size(), x.shape, w.shape), conv)
    return y if bias is None else y + bias.reshape(-1, *[1] * (w.ndim - 2))


class _Frozen(Function):
    """x * w with constant filters. torch's own holds x for a gradient by w that is not asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, conv: Convolution) -> Tensor:
        ctx.conv, ctx.shape = conv, x.shape
        ctx.save_for_backward(w)
        return conv.forward(x, w, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        (w,) = ctx.saved_tensors
        return ctx.conv.backward(g, blank(g, ctx.shape), w, 0), None, None, None


def conv_nd(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    frozen: bool = False,
) -> Tensor:
    """`convolution` with the arguments of ``aten.conv1d``, ``conv2d`` and ``conv3d``, a batch or one sample.

    Where it is ``frozen`` it is differentiated by its input only, and holds nothing but its filters.
    """
    if x.ndim != w.ndim:  # an unbatched input
        sample = conv_nd(x.unsqueeze(0), w, bias, stride, padding, dilation, groups, frozen=frozen)
        return sample.squeeze(0)
    if frozen:
        y: Tensor = _Frozen.apply(x, w, bias, Convolution.of(w, stride, padding, dilation, groups))
        return y
    return convolution(x, w, bias, stride, padding, dilation, False, 0, groups)
