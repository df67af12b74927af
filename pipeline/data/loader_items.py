"""What a loader gives, brought into the form in which a module takes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from growpipe.graph_ops.errors import UsageError
from growpipe.user_code import call_user_code

__all__ = ["as_tuple", "pairs", "to_device"]

_END = object()


def pairs(loader: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """The ``(inputs, target)`` pairs of a loader.

    Raises:
        UsageError: it gives something else, or fails.
    """
    iterator = call_user_code("the data loader", iter, loader)
    while (batch := call_user_code("the data loader", next, iterator, _END)) is not _END:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            length = f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise UsageError(f"batches must give (inputs, target) pairs, not {type(batch).__name__}{length}")
        yield batch[0], batch[1]


def as_tuple(inputs: Any) -> tuple[Any, ...]:
    """The positional inputs of ``forward``: a tuple or list as it is, anything else alone."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def to_device(value: Any, device: str | torch.device) -> Any:
    """A tensor, or a tuple or list of them, on the device."""
    if isinstance(value, (tuple, list)):
        return tuple(to_device(item, device) for item in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value
