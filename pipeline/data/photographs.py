"""Photographs in class folders, decoded as they are needed: ImageNet, or anything laid out like it.

Batches are float32 [N, 3, size, size], RGB, pixel / 255; the models of the shipped recipes normalise inside.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from growpipe.data import Loaders
from growpipe.data.images import ImageSet, open_images
from growpipe.data.location import locate
from growpipe.data.train_test import first_of_each, held_out
from growpipe.environment import require
from growpipe.graph_ops.errors import UsageError

__all__ = ["Photographs", "loaders"]

SOURCE = "https://www.image-net.org/download.php"
MARGIN = 256 / 224  # what is judged is the middle of a slightly larger picture


def loaders(
    batch_size: int,
    seed: int,
    path: str | None = None,
    size: int = 224,
    workers: int = 4,
    train_samples: int | None = None,
) -> Loaders:
    """A folder with ``train`` and ``val``, each a folder (or ``.zip``) of class folders.

    Of each class the last 2 % of ``train``, in name order, are the validation set; ``val`` is the test set.
    ImageNet's validation pictures come in one flat folder: sort them into class folders first.

    Args:
        batch_size: of all batches.
        seed: not used: order and augmentation come from torch's generator, which the trainer seeds for
            every epoch.
        path: see `growpipe.data.location.locate`; the folder is called ``imagenet``.
        size: of the squares that are cut out: at random for training, from the middle otherwise.
        workers: processes that decode; 0 decodes in the training process.
        train_samples: train on the first so many images, the classes taking turns; None for all.

    Returns:
        Batches of images float32 [N, 3, size, size] in [0, 1] and classes int64 [N].

    Raises:
        UsageError: the data are not there, or the two parts have other classes.
    """
    del seed
    place = locate(path, ("imagenet",), "ImageNet", SOURCE)
    parts = {}
    for name in ("train", "val"):
        found = next((p for p in (place / name, place / f"{name}.zip") if p.exists()), None)
        if found is None:
            raise UsageError(f"{place} has no folder {name} and no {name}.zip with class folders in it")
        parts[name] = open_images(found)
    learn, test = parts["train"], parts["val"]
    if learn.classes != test.classes:
        other = sorted(set(learn.classes) ^ set(test.classes))
        raise UsageError(f"{place}: train and val have different classes: {other[0]!r}")
    train, validation = held_out(learn.labels, 0.02)
    train = first_of_each(learn.labels, train, train_samples)

    def part(images: ImageSet, training: bool) -> DataLoader[Any]:
        return DataLoader(
            Photographs(images, size, training),
            batch_size,
            shuffle=training,
            drop_last=training and len(images) >= batch_size,
            num_workers=workers,
            persistent_workers=False,
        )

    return Loaders(part(learn.subset(train), True), part(learn.subset(validation), False), part(test, False))


class Photographs(Dataset[tuple[Tensor, int]]):
    """Square cuts of images: float32 [3, size, size] in [0, 1], and the class.

    Args:
        images: the images.
        size: of the cut.
        training: cut 8 to 100 % of the area at an aspect ratio of 3/4 to 4/3 at random, and mirror half of
            them (as in arXiv 1409.4842); otherwise cut the middle.
    """

    def __init__(self, images: ImageSet, size: int, training: bool) -> None:
        self.images, self.size, self.training = images, size, training

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images.image(index)
        box = random_box(*image.size) if self.training else middle_box(*image.size)
        bilinear = require("PIL.Image", "train", "reading images").Resampling.BILINEAR
        pixels = np.asarray(image.resize((self.size, self.size), bilinear, box)).transpose(2, 0, 1)
        if self.training and torch.rand(()) < 0.5:
            pixels = pixels[:, :, ::-1]
        return torch.from_numpy(pixels.astype(np.float32) / 255.0), int(self.images.labels[index])


Box = tuple[float, float, float, float]


def middle_box(width: int, height: int) -> Box:
    """The largest square in the middle, less a margin: left, upper, right, lower, in pixels."""
    side = min(width, height) / MARGIN
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def random_box(width: int, height: int) -> Box:
    """A random part of the image, from torch's generator; the middle when ten draws do not fit."""
    for _ in range(10):
        area, aspect = torch.rand(2).tolist()
        area = width * height * (0.08 + 0.92 * area)
        ratio = math.exp((2 * aspect - 1) * math.log(4 / 3))
        wide, high = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if wide <= width and high <= height:
            left, upper = (torch.rand(2) * torch.tensor([width - wide, height - high])).tolist()
            return left, upper, left + wide, upper + high
    return middle_box(width, height)
