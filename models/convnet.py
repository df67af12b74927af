"""A plain convolutional network: the smallest thing on which growth can be studied."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["ConvNet", "build"]


class ConvNet(nn.Module):
    """Images float32 [N, channels, H, W] to logits [N, classes].

    Blocks of convolution 3 x 3, batch norm and SiLU. Then the mean over the pixels and one linear layer.

    Args:
        widths: of the blocks.
        channels: of the images.
        classes: to tell apart.
        first_stride: of the first convolution; all others halve the image.
    """

    def __init__(
        self, widths: Sequence[int], channels: int = 3, classes: int = 10, first_stride: int = 1
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(zip((channels, *widths), widths, strict=False)):
            stride = first_stride if number == 0 else 2
            blocks += [
                nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.SiLU(),
            ]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(image).mean(dim=(2, 3)))
        return logits


def build(
    widths: Sequence[int] = (6, 8, 12, 16), channels: int = 3, classes: int = 10, first_stride: int = 1
) -> ConvNet:
    """A seed network of these widths, initialised from torch's generator."""
    return ConvNet(widths, channels, classes, first_stride)
