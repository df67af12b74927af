"""The ATen operators that the analyser knows by name, and where their arguments stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

__all__ = [
    "CONVOLUTIONS", "MATRIX_PRODUCTS", "NORMS", "RECURRENT", "REINDEXING", "RESHAPES", "SUMS_OVER_CHANNELS",
    "aten", "operator_name", "per_axis",
]  # fmt: skip

aten = torch.ops.aten

CONVOLUTIONS: dict[Any, int] = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}
"""The number of spatial axes. Arguments: input, weight, bias, stride, padding, dilation, groups."""

NORMS: dict[Any, int] = {aten._native_batch_norm_legit_no_training.default: 6, aten.batch_norm.default: 7}
"""Batch normalisation in evaluation mode: the position of eps, behind input, weight, bias, mean, variance."""

MATRIX_PRODUCTS: dict[Any, tuple[int, int]] = {
    aten.linear.default: (0, 1),
    aten.matmul.default: (0, 1),
    aten.mm.default: (0, 1),
    aten.addmm.default: (1, 2),
}
"""The positions of the features and of the matrix."""

RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
"""Recurrent layers with all their steps. Their kernels have no double backward."""

SUMS_OVER_CHANNELS = (
    aten.addmm.default, aten.baddbmm.default, aten.bmm.default, aten.einsum.default, aten.linear.default,
    aten.matmul.default, aten.mm.default,
)  # fmt: skip
"""Products that sum over the channels of two activations."""

REINDEXING = {
    "_unsafe_view", "alias", "chunk", "clone", "contiguous", "detach", "expand", "flatten", "getitem",
    "narrow", "permute", "repeat", "repeat_interleave", "reshape", "select", "slice", "split",
    "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten", "unsqueeze", "view",
}  # fmt: skip
"""By name what moves entries of its first argument, leaves out some of them or repeats them."""

RESHAPES: dict[Any, Callable[..., Tensor]] = {
    aten.view.default: torch.reshape,
    aten._unsafe_view.default: torch.reshape,
}
"""What stands in for a view: the strides of what it is of need not be those of the traced kernels."""


def operator_name(node: Node) -> str:
    """The name of a node's operator without its overload."""
    target: Any = node.target
    return str(getattr(getattr(target, "overloadpacket", target), "__name__", target))


def per_axis(value: Any, rank: int) -> tuple[int, ...]:
    """An argument of a convolution by spatial axis, from one number for all of them or one for each."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values
