"""Images with the channels innermost, and the one convolution that must not be given them.

On a CPU with AVX2 and without AVX-512, torch 2.13 writes beyond its own memory in the gradient by the
weight of a 2-D convolution of kernel size 1, stride above 1, no padding and fewer than 8 input channels, if
its input is channels last and its maps are 8 x 8 or larger. The interpreter then dies some time later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["channels_last", "contiguous_where_needed", "read_positions", "reads_every_nth"]

_FEW_CHANNELS = 8
"""Layers of so many input channels per group and more are computed correctly: one AVX2 register holds 8."""


def channels_last(value: Any) -> Any:
    """A batch of images with the channels as the innermost axis in memory; any other value as it is."""
    if isinstance(value, Tensor) and value.ndim == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value


def reads_every_nth(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> bool:
    """Whether a convolution reads single positions of its input, and not all of them.

    Such a convolution is one of stride 1 over the positions that it reads, see `read_positions`.

    Args:
        kernel: the kernel size per axis.
        stride: the stride per axis.
        padding: the padding per axis.
    """
    return all(size == 1 for size in kernel) and any(step > 1 for step in stride) and not any(padding)


def read_positions(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Every stride-th position of [N, C, ...], in memory of its own in the format of ``x``."""
    return x[(slice(None), slice(None), *(slice(None, None, step) for step in stride))].clone()


@contextlib.contextmanager
def contiguous_where_needed(model: nn.Module) -> Iterator[None]:
    """Inside, layers whose weight gradient cannot take channels last on a CPU get contiguous inputs.

    Args:
        model: trained with channels-last inputs. It is given hooks, which are removed at the end.
    """

    def contiguous(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            value.contiguous() if isinstance(value, Tensor) and value.device.type == "cpu" else value
            for value in inputs
        )

    with contextlib.ExitStack() as hooks:
        for layer in model.modules():
            if (
                isinstance(layer, nn.Conv2d)
                and layer.in_channels // layer.groups < _FEW_CHANNELS
                and reads_every_nth(
                    layer.kernel_size, layer.stride, () if isinstance(layer.padding, str) else layer.padding
                )
            ):
                hooks.callback(layer.register_forward_pre_hook(contiguous).remove)
        yield
