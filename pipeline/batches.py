"""What a loader gives, brought into the form in which a module takes it."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["as_tuple", "to_device"]


def as_tuple(inputs: Any) -> tuple[Any, ...]:
    """The positional inputs of ``forward``: a tuple or list as it is, anything else alone."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def to_device(value: Any, device: str | torch.device) -> Any:
    """A tensor, or a tuple or list of them, on the device."""
    if isinstance(value, (tuple, list)):
        return tuple(to_device(item, device) for item in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value
