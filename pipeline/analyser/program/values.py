"""What the analyser asks of the values in a program: losses, inputs, leaves and their memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import Node

from growpipe.analyser.program.aten import aten
from growpipe.graph_ops.errors import UsageError

__all__ = [
    "leaf_of",
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


def sample_count(inputs: Iterable[Any]) -> int:
    """The number of samples of a batch.

    Raises:
        UsageError: no input has a batch axis.
    """
    sizes = [value.shape[0] for value in inputs if isinstance(value, Tensor) and value.ndim]
    if not sizes:
        raise UsageError("a batch has no tensor input with a batch axis")
    return int(sizes[0])
