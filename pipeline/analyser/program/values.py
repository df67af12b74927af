"""What the analyser asks of the values in a program: losses, inputs, leaves and their memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.fx import Node

from growpipe.analyser.program.aten import aten
from growpipe.graph_ops.errors import UsageError
from growpipe.torch_module.memory_format import channels_last

__all__ = [
    "contiguous",
    "innermost",
    "leaf_of",
    "module_takes_channels_last",
    "run_module",
    "sample_count",
    "scalar_loss",
    "storage_of",
    "takes_channels_last",
    "tensors_in",
]


def scalar_loss(loss: Any) -> Tensor:
    """The loss, or a `UsageError` where it is not a single number."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UsageError(
            f"loss_fn must return a tensor with one number, the mean loss over a batch, not {found}"
        )
    return loss


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of a value."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def storage_of(tensor: Tensor) -> int:
    """Where its memory begins: the same for a tensor and its views."""
    return tensor.untyped_storage().data_ptr()


def leaf_of(value: Tensor) -> Tensor:
    """The value, to be differentiated by."""
    return value.view_as(value) if value.requires_grad else value.detach().requires_grad_()


# Operators whose results depend on the strides of what they are given.
_STRIDED = {
    aten.as_strided.default,
    aten._reshape_alias.default,
    aten.view_as_complex.default,
    aten.view.dtype,
}


def takes_channels_last(nodes: Iterable[Node]) -> bool:
    """Whether a program of 2-D convolutions may be run with the channels as the innermost axis.

    On a CPU depthwise and pointwise convolutions are then two to twenty times faster.
    """
    targets = {node.target for node in nodes}
    return aten.conv2d.default in targets and not targets & _STRIDED


# Operators that fail if axes do not follow each other in memory. A run of the program reshapes instead.
_VIEWS = {aten.view.default, aten.view_as.default, aten.unflatten.int}


def module_takes_channels_last(nodes: Iterable[Node]) -> bool:
    """Whether the module that a program was made from may be given channels-last images as well."""
    nodes = list(nodes)
    return takes_channels_last(nodes) and not any(node.target in _VIEWS for node in nodes)


def innermost(value: Any) -> Any:
    """Images on the CPU with the channels as the innermost axis, in any nest of containers."""

    def of(leaf: Any) -> Any:
        own = isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.is_cpu
        return channels_last(leaf) if own else leaf

    return pytree.tree_map(of, value)


def contiguous(value: Any) -> Any:
    """The tensors in any nest of containers with axes that follow each other: one may ask them for views."""
    return pytree.tree_map(lambda leaf: leaf.contiguous() if isinstance(leaf, Tensor) else leaf, value)


def run_module(module: nn.Module, inputs: Sequence[Any], channels_last: bool) -> Any:
    """The output of a module for a batch.

    Args:
        module: the module.
        inputs: its positional inputs.
        channels_last: whether images are given with the channels innermost, which is faster on a CPU. See
            `module_takes_channels_last`.
    """
    return contiguous(module(*innermost(tuple(inputs)))) if channels_last else module(*inputs)


def sample_count(inputs: Iterable[Any]) -> int:
    """The number of samples of a batch.

    Raises:
        UsageError: no input has a batch axis.
    """
    sizes = [value.shape[0] for value in inputs if isinstance(value, Tensor) and value.ndim]
    if not sizes:
        raise UsageError("a batch has no tensor input with a batch axis")
    return int(sizes[0])
