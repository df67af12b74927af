"""The seed network of the digits recipe: three conv-BN-SiLU blocks and a hidden linear layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["DigitsNet", "build"]


class ConvBlock(nn.Sequential):
    """Convolution 3 x 3, batch norm, SiLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
        )


class DigitsNet(nn.Module):
    """Images float32 [N, 1, 8, 8] to logits [N, 10].

    Args:
        widths: of the three blocks and of the hidden layer.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        first, second, third, hidden = widths
        self.features = nn.Sequential(
            ConvBlock(1, first), ConvBlock(first, second, stride=2), ConvBlock(second, third, stride=2)
        )
        self.hidden = nn.Linear(third * 4, hidden)
        self.classifier = nn.Linear(hidden, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.features(image).flatten(1)
        logits: torch.Tensor = self.classifier(nn.functional.silu(self.hidden(features)))
        return logits


def build(widths: Sequence[int] = (2, 2, 3, 4)) -> DigitsNet:
    """A seed network of these widths, initialised from torch's generator."""
    return DigitsNet(widths)
