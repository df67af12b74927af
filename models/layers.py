"""Pieces that several seed networks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from growpipe.graph_ops.errors import UsageError

__all__ = ["CIFAR", "IMAGENET", "Normalise", "activation", "initialise"]

CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "hardswish": nn.Hardswish,
}


def activation(name: str) -> nn.Module:
    """An activation by name. Smooth ones have a curvature of their own; the analyser gives the kinked ones
    (``relu``, ``relu6``, ``leaky_relu``, ``hardswish``) a surrogate.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in _ACTIVATIONS:
        raise UsageError(f"there is no activation {name!r}; choose one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


class Normalise(nn.Module):
    """Pixels in [0, 1] to zero mean and unit variance by channel, so that no constants are needed beside it.

    Args:
        mean: of each channel.
        std: of each channel.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (image - self.mean) / self.std


def initialise(model: nn.Module) -> None:
    """He's initialisation of convolutions (arXiv 1502.01852, fan out); everything else stays torch's."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
