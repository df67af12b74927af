"""Augmentation of whole batches of small images, drawn from torch's generator."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["crop_and_flip", "to_float"]


def to_float(images: Tensor) -> Tensor:
    """Pixels uint8 to float32 in [0, 1]."""
    return images.to(torch.float32).div_(255.0)


def crop_and_flip(images: Tensor, padding: int = 4) -> Tensor:
    """Pad with zeros, cut a random window of the old size, and mirror half of the images left to right.

    Args:
        images: uint8 [N, C, H, W]; every image is moved by itself, up to ``padding`` pixels each way.

    Returns:
        float32 [N, C, H, W] in [0, 1].
    """
    count, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    # Drawn on the CPU, so that every device sees the same images.
    offsets = torch.randint(0, 2 * padding + 1, (2, count, 1))
    mirrored = torch.rand(count, 1) < 0.5
    rows = offsets[0] + torch.arange(height)
    columns = offsets[1] + torch.arange(width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    sample = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return to_float(padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]])
