"""Images in the idx format of MNIST, as Fashion-MNIST, MNIST, KMNIST and EMNIST are distributed.

An idx file is a header (two zero bytes, the type of the entries, the number of axes, the length of each axis
as a big-endian 32-bit number) and the entries, the last axis first to change; see
http://yann.lecun.com/exdb/mnist.
Batches are float32 [N, 1, height, width], pixel / 255.
"""

from __future__ import annotations

import contextlib
import gzip
import math
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from growpipe.data import Loaders
from growpipe.data.array_batches import Batches
from growpipe.data.augment import crop_and_flip, to_float
from growpipe.data.location import locate
from growpipe.data.train_test import first_of_each, held_out
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.reading import limited, opened, reading

__all__ = ["fashion", "images", "read_idx"]

FASHION_SOURCE = "https://github.com/zalandoresearch/fashion-mnist (Debian and Ubuntu: dataset-fashion-mnist)"
FASHION_FOLDERS = ("fashion-mnist", "fashion", "FashionMNIST/raw")
DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"
MAX_BYTES = 1 << 30  # of one file, packed or not; the largest of EMNIST has 547 MB
MAX_AXES = 4
EVALUATION_BATCH = 500
HELD_OUT = 1 / 12  # of the training images of each class: 5,000 of 60,000

_UNSIGNED_BYTES = 0x08
_TESTS = ("t10k", "test")


def fashion(
    batch_size: int,
    seed: int,
    path: str | None = None,
    augment: bool = True,
    padding: int = 2,
    train_samples: int | None = None,
    epoch_samples: int | None = None,
) -> Loaders:
    """Fashion-MNIST: 60,000 training and 10,000 test images of ten kinds of clothes, 28 x 28.

    It is looked for at ``path``, in the folder that GROWPIPE_DATA names (as ``fashion-mnist``, ``fashion`` or
    ``FashionMNIST/raw``), and where the package dataset-fashion-mnist of Debian and Ubuntu puts it. Arguments
    and result as of `images`.
    """
    place = locate(path, FASHION_FOLDERS, "Fashion-MNIST", FASHION_SOURCE, (DEBIAN_FOLDER,))
    return images(batch_size, seed, str(place), "", augment, padding, train_samples, epoch_samples)


def images(
    batch_size: int,
    seed: int,
    path: str,
    prefix: str = "",
    augment: bool = False,
    padding: int = 2,
    train_samples: int | None = None,
    epoch_samples: int | None = None,
) -> Loaders:
    """The four idx files of a folder, each packed with gzip or not.

    Of each class the last twelfth of the training images is the validation set.

    Args:
        batch_size: of the training batches.
        seed: not used: order and augmentation come from torch's generator, which the trainer seeds for
            every epoch.
        path: the folder; files in it are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the
            same with ``t10k`` or ``test``, perhaps with ``.gz``.
        prefix: what these names begin with, e.g. ``emnist-letters-``.
        augment: random crops and mirroring of the training images. Digits and letters must not be mirrored.
        padding: of the crops, in pixels; 0 mirrors alone.
        train_samples: train on the first so many images, the classes in turn; None for all.
        epoch_samples: an epoch ends after so many training images, drawn again each time; None for all.

    Returns:
        Batches of images float32 [N, 1, height, width] in [0, 1] and classes int64 [N].

    Raises:
        UsageError: a file is not there or damaged, or the files do not belong together.
    """
    del seed
    folder = Path(path).expanduser()
    pixels, labels = _pair(folder, f"{prefix}train")
    test = next(
        (name for name in _TESTS if _file(folder, f"{prefix}{name}", "images") is not None), _TESTS[0]
    )
    test_pixels, test_labels = _pair(folder, f"{prefix}{test}")
    if pixels.shape[1:] != test_pixels.shape[1:]:
        sizes = f"{pixels.shape[1:]}, the test images {test_pixels.shape[1:]}"
        raise UsageError(f"{folder}: the training images have size {sizes}")
    train, validation = held_out(labels, HELD_OUT)
    train = first_of_each(labels, train, train_samples)
    transform = partial(crop_and_flip, padding=padding) if augment else to_float

    def part(
        chosen: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(np.ascontiguousarray(chosen[:, None])), torch.from_numpy(classes)

    return Loaders(
        Batches(
            *part(pixels[train], labels[train]),
            batch_size,
            shuffle=True,
            transform=transform,
            draw=epoch_samples,
        ),
        Batches(*part(pixels[validation], labels[validation]), EVALUATION_BATCH, transform=to_float),
        Batches(*part(test_pixels, test_labels), EVALUATION_BATCH, transform=to_float),
    )


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array of an idx file of unsigned bytes, packed with gzip or not.

    What the array takes is known from the header before it is read.

    Raises:
        UsageError: the file cannot be read, is not an idx file of unsigned bytes, says that it holds more
            than 1 GiB, or holds more or less than it says.
    """
    with reading("the idx file", path), opened(path, most=MAX_BYTES) as file, contextlib.ExitStack() as stack:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        plain = stack.enter_context(gzip.GzipFile(fileobj=file)) if packed else file
        stream = limited(plain, total=MAX_BYTES)  # type: ignore[arg-type]
        shape = _shape(stream)
        size = math.prod(shape)
        if size > MAX_BYTES:
            raise UsageError(f"it says that it holds {size:,} bytes; at most {MAX_BYTES:,} are read")
        content = stream.read(size)
        # One byte more than it says is too much; gzip compares its checksum at the end.
        if len(content) != size or stream.read(1):
            raise UsageError(f"it does not hold the {size:,} bytes that its header says; get it again")
        return np.frombuffer(bytearray(content), np.uint8).reshape(shape)


def _shape(stream: BinaryIO) -> tuple[int, ...]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != _UNSIGNED_BYTES:
        raise UsageError("it is not an idx file of unsigned bytes")
    axes = magic[3]
    if not 1 <= axes <= MAX_AXES:
        raise UsageError(f"it says that it has {axes} axes")
    lengths = stream.read(4 * axes)
    if len(lengths) < 4 * axes:
        raise UsageError("it ends within its header; get it again")
    return tuple(int(length) for length in np.frombuffer(lengths, ">u4"))


def _pair(folder: Path, name: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images uint8 [N, height, width] and their labels int64 [N]."""
    parts = []
    for kind, axes in (("images", 3), ("labels", 1)):
        file = _file(folder, name, kind)
        if file is None:
            raise UsageError(
                f"{folder} lacks {name}-{kind}-idx{axes}-ubyte, with or without .gz; get it again"
            )
        array = read_idx(file)
        if array.ndim != axes or not array.size:
            raise UsageError(f"{file} holds an array of shape {list(array.shape)}, not {kind}; get it again")
        parts.append(array)
    pixels, labels = parts
    if len(pixels) != len(labels):
        raise UsageError(f"{folder} has {len(pixels)} {name} images and {len(labels)} labels; get it again")
    return pixels, labels.astype(np.int64)


def _file(folder: Path, name: str, kind: str) -> Path | None:
    axes = {"images": 3, "labels": 1}[kind]
    names = [f"{name}-{kind}{dot}idx{axes}-ubyte{packed}" for dot in "-." for packed in ("", ".gz")]
    return next((folder / each for each in names if (folder / each).exists()), None)
