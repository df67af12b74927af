"""MobileNetV1 (arXiv 1704.04861) and MobileNetV2 (arXiv 1801.04381) with any widths, for 32 and 224 pixels.

Images are RGB, pixel / 255; the networks normalise inside.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from growpipe.graph_ops.errors import UsageError
from growpipe.models.layers import CIFAR, IMAGENET, Normalise, activation, initialise

__all__ = ["CIFAR_SEED", "V1_WIDTHS", "MobileNetV1", "MobileNetV2", "build_v1", "build_v2"]

V1_WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Of the published network: the first convolution and the 13 separable ones."""

CIFAR_SEED = (8, 8, 8, 8, 16, 16, 24, 24, 24, 24, 24, 24, 32, 32)
"""The seed network for CIFAR in arXiv 2003.10392."""

_V1_STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
# Small images keep their size through the first convolution.
_V1_STRIDES_SMALL = (1, *_V1_STRIDES[1:])


class ConvBlock(nn.Sequential):
    """Convolution, batch norm, activation (None for a linear one)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, groups: int, phi: str | None
    ) -> None:
        layers = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        super().__init__(*layers, *([] if phi is None else [activation(phi)]))


class MobileNetV1(nn.Module):
    """Images float32 [N, 3, H, W] in [0, 1] to logits [N, classes].

    Args:
        widths: of the first convolution and of the 13 separable ones.
        classes: the number of classes.
        small: images of 32 pixels; otherwise of 224.
        phi: the activation, see `growpipe.models.layers.activation`.
    """

    def __init__(self, widths: Sequence[int], classes: int, small: bool, phi: str) -> None:
        super().__init__()
        if len(widths) != len(V1_WIDTHS) or min(widths) < 1:
            raise UsageError(f"MobileNetV1 has {len(V1_WIDTHS)} widths, all positive, not {list(widths)}")
        strides = _V1_STRIDES_SMALL if small else _V1_STRIDES
        self.normalise = Normalise(*(CIFAR if small else IMAGENET))
        self.first = ConvBlock(3, widths[0], 3, strides[0], 1, phi)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    ConvBlock(before, before, 3, stride, before, phi), ConvBlock(before, after, 1, 1, 1, phi)
                )
                for before, after, stride in zip(widths, widths[1:], strides[1:], strict=False)
            )
        )
        self.classifier = nn.Linear(widths[-1], classes)
        initialise(self)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.blocks(self.first(self.normalise(image)))
        logits: torch.Tensor = self.classifier(features.mean((2, 3)))
        return logits


class InvertedResidual(nn.Module):
    """Expand, filter by channel, project linearly; added to the input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, phi: str) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [ConvBlock(inputs, hidden, 1, 1, 1, phi)] if expansion > 1 else []
        self.residual = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            *expand,
            ConvBlock(hidden, hidden, 3, stride, hidden, phi),
            ConvBlock(hidden, outputs, 1, 1, 1, None),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        changed = self.layers(features)
        summed: torch.Tensor = features + changed if self.residual else changed
        return summed


class MobileNetV2(nn.Module):
    """Images float32 [N, 3, H, W] in [0, 1] to logits [N, classes].

    Args:
        first: width of the first convolution.
        stages: width of each of the seven stages of inverted residuals.
        last: width of the last convolution.
        depths: inverted residuals per stage.
        expansion: of the hidden layers; the first stage has none.
        classes: the number of classes.
        small: images of 32 pixels, which are halved three times instead of five; otherwise of 224.
        phi: the activation.
    """

    def __init__(
        self,
        first: int,
        stages: Sequence[int],
        last: int,
        depths: Sequence[int],
        expansion: int,
        classes: int,
        small: bool,
        phi: str,
    ) -> None:
        super().__init__()
        if len(stages) != 7 or len(depths) != 7 or min(*stages, *depths, first, last, expansion) < 1:
            raise UsageError(
                f"MobileNetV2 has seven stages, all numbers positive, not {list(stages)} and {list(depths)}"
            )
        strides = (1, 1, 2, 2, 1, 2, 1) if small else (1, 2, 2, 2, 1, 2, 1)
        self.normalise = Normalise(*(CIFAR if small else IMAGENET))
        self.first = ConvBlock(3, first, 3, 1 if small else 2, 1, phi)
        blocks: list[nn.Module] = []
        before = first
        for number, (width, depth, stride) in enumerate(zip(stages, depths, strides, strict=True)):
            for position in range(depth):
                blocks.append(
                    InvertedResidual(
                        before, width, stride if position == 0 else 1, expansion if number else 1, phi
                    )
                )
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.last = ConvBlock(before, last, 1, 1, 1, phi)
        self.classifier = nn.Linear(last, classes)
        initialise(self)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.last(self.blocks(self.first(self.normalise(image))))
        logits: torch.Tensor = self.classifier(features.mean((2, 3)))
        return logits


def build_v1(
    widths: Sequence[int] = CIFAR_SEED,
    classes: int = 10,
    image_size: int = 32,
    activation: str = "silu",
    multiplier: float = 1.0,
) -> MobileNetV1:
    """A MobileNetV1, initialised from torch's generator.

    Args:
        widths: 14, see `MobileNetV1`.
        classes: the number of classes.
        image_size: 32 or 224, which decides on the strides.
        activation: its name.
        multiplier: of all widths, rounded, at least 1; the uniform width multiplier of the paper.
    """
    return MobileNetV1(_scaled(widths, multiplier), classes, _small(image_size), activation)


def build_v2(
    first: int = 32,
    stages: Sequence[int] = (16, 24, 32, 64, 96, 160, 320),
    last: int = 1280,
    depths: Sequence[int] = (1, 2, 3, 4, 3, 3, 1),
    expansion: int = 6,
    classes: int = 10,
    image_size: int = 32,
    activation: str = "silu",
    multiplier: float = 1.0,
) -> MobileNetV2:
    """A MobileNetV2 (the published widths by default), initialised from torch's generator.

    Arguments as of `MobileNetV2` and `build_v1`.
    """
    first, last, *widths = _scaled((first, last, *stages), multiplier)
    return MobileNetV2(first, widths, last, depths, expansion, classes, _small(image_size), activation)


def _scaled(widths: Sequence[int], multiplier: float) -> list[int]:
    if not multiplier > 0:
        raise UsageError(f"a width multiplier must be positive, not {multiplier}")
    return [max(1, round(width * multiplier)) for width in widths]


def _small(image_size: int) -> bool:
    if image_size not in (32, 224):
        raise UsageError(f"image_size decides on the strides; it is 32 or 224, not {image_size}")
    return image_size == 32
