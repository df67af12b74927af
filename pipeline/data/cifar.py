"""CIFAR-10 and CIFAR-100: the binary version as it is distributed, or CIFAR-10 as a zip of class folders.

Batches are float32 [N, 3, 32, 32], RGB, pixel / 255; the models of the shipped recipes normalise inside.
"""

from __future__ import annotations

import contextlib
import gzip
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from growpipe.data import Loaders
from growpipe.data.array_batches import Batches
from growpipe.data.augment import crop_and_flip, to_float
from growpipe.data.images import open_images, read_images
from growpipe.data.location import locate
from growpipe.data.train_test import first_of_each, held_out
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.reading import limited, opened, read_bytes, reading

__all__ = ["cifar10", "cifar100", "parse_records"]

SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"
PIXELS = 3 * 32 * 32
EVALUATION_BATCH = 500
MAX_FILE = 160 << 20  # bytes; the largest file, train.bin of CIFAR-100, has 147 MiB
MAX_ARCHIVE = 256 << 20  # bytes, unpacked; CIFAR has 176 MiB


def cifar10(
    batch_size: int,
    seed: int,
    path: str | None = None,
    augment: bool = True,
    padding: int = 4,
    train_samples: int | None = None,
    epoch_samples: int | None = None,
    test_share: float = 0.05,
) -> Loaders:
    """CIFAR-10, ten classes in alphabetical order.

    Of each class the last images are held out, in the order of the files (in name order for images). Of the
    binary version the last 500 are the validation set and ``test_batch.bin`` is the test set. A zip or folder
    of images has no test set: its very last images are, and the 250 before them are the validation set.

    Args:
        batch_size: of the training batches.
        seed: not used: order and augmentation come from torch's generator, which the trainer seeds for
            every epoch.
        path: see `growpipe.data.location.locate`: ``cifar-10-binary.tar.gz``, ``cifar-10-batches-bin`` (the
            same unpacked), ``cifar10-train.zip`` or any zip or folder with ten class folders.
        augment: random crops and flips of the training images.
        padding: of the crops, in pixels; 0 leaves flips alone: better in short training of small networks.
        train_samples: train on the first so many images of each class in turn; None for all.
        epoch_samples: an epoch ends after so many training images, drawn again each time; None for all.
        test_share: of a zip or folder of images, the share that is the test set.

    Returns:
        Batches of images float32 [N, 3, 32, 32] in [0, 1] and classes int64 [N].

    Raises:
        UsageError: the data are not there, or damaged.
    """
    del seed
    names = ("cifar-10-binary.tar.gz", "cifar-10-batches-bin", "cifar10-train.zip", "cifar10")
    place = locate(path, names, "CIFAR-10", SOURCE)
    if _is_binary(place, "data_batch_1.bin"):
        files = [f"data_batch_{number}.bin" for number in range(1, 6)]
        images, labels = _read(place, files, 1, 10)
        test = _read(place, ["test_batch.bin"], 1, 10)
        return _loaders(images, labels, test, batch_size, augment, padding, train_samples, epoch_samples)
    listed = open_images(place)
    if len(listed.classes) != 10:
        raise UsageError(f"{place} has {len(listed.classes)} class folders; CIFAR-10 has ten")
    images = read_images(listed)
    if images.shape[1:] != (3, 32, 32):
        raise UsageError(f"{place}: the images have size {images.shape[2:]}, not 32 x 32")
    return _loaders(
        images, listed.labels, None, batch_size, augment, padding, train_samples, epoch_samples, test_share
    )


def cifar100(
    batch_size: int,
    seed: int,
    path: str | None = None,
    augment: bool = True,
    padding: int = 4,
    train_samples: int | None = None,
    epoch_samples: int | None = None,
) -> Loaders:
    """CIFAR-100 by its fine labels; arguments and result as of `cifar10`.

    The binary version, ``cifar-100-binary.tar.gz`` or the folder ``cifar-100-binary``: the last 50 training
    images of each class are the validation set, ``test.bin`` is the test set.
    """
    del seed
    names = ("cifar-100-binary.tar.gz", "cifar-100-binary")
    place = locate(path, names, "CIFAR-100", SOURCE)
    if not _is_binary(place, "train.bin"):
        raise UsageError(f"{place} is not a binary version of CIFAR-100: it has no train.bin; see {SOURCE}")
    images, labels = _read(place, ["train.bin"], 2, 100)
    test = _read(place, ["test.bin"], 2, 100)
    return _loaders(images, labels, test, batch_size, augment, padding, train_samples, epoch_samples)


def parse_records(
    data: bytes, label_bytes: int, classes: int, where: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Records of label bytes (the last one counts) and 3,072 pixels, channel by channel.

    Returns:
        uint8 [N, 3, 32, 32] and int64 [N].

    Raises:
        UsageError: not a whole number of records, or a label out of range.
    """
    size = label_bytes + PIXELS
    if not data or len(data) % size:
        raise UsageError(f"{where} has {len(data)} bytes, no multiple of a record's {size}; get it again")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)
    labels = records[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= classes:
        raise UsageError(f"{where} has label {labels.max()}, but there are {classes} classes; get it again")
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), labels


def _is_binary(place: Path, file: str) -> bool:
    return place.name.endswith((".tar.gz", ".tgz", ".tar")) or (place / file).exists()


def _read(
    place: Path, names: Sequence[str], label_bytes: int, classes: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    parts = [
        parse_records(data, label_bytes, classes, f"{place}: {name}")
        for name, data in zip(names, _contents(place, names), strict=True)
    ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _contents(place: Path, names: Sequence[str]) -> list[bytes]:
    """The bytes of files in a folder or tar archive; the archive is read, never extracted."""
    if place.is_dir():
        missing = [name for name in names if not (place / name).exists()]
        if missing:
            raise UsageError(f"{place} lacks {missing[0]}; get it again")
        return [read_bytes(place / name, "the file", most=MAX_FILE) for name in names]
    with reading("the archive", place), opened(place, most=MAX_ARCHIVE) as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        with contextlib.ExitStack() as stack:
            plain = stack.enter_context(gzip.GzipFile(fileobj=file)) if packed else file
            stream = limited(plain, total=MAX_ARCHIVE)  # type: ignore[arg-type]
            found = _members(stream, names)
            while stream.read(1 << 20):  # gzip compares its checksum at the end
                pass
    missing = [name for name in names if name not in found]
    if missing:
        raise UsageError(f"{place} lacks {missing[0]}; get the binary version from {SOURCE}")
    return [found[name] for name in names]


def _members(stream: BinaryIO, names: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if name not in names or not member.isreg() or member.issparse():
                continue
            if member.size > MAX_FILE:
                raise UsageError(
                    f"{name} has {member.size:,} bytes; no file of CIFAR has more than {MAX_FILE:,}"
                )
            content = archive.extractfile(member)
            assert content is not None
            found[name] = content.read()
    return found


def _loaders(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    test: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]] | None,
    batch_size: int,
    augment: bool,
    padding: int,
    train_samples: int | None,
    epoch_samples: int | None,
    test_share: float = 0.05,
) -> Loaders:
    if test is None:
        validation_share = 0.05
        train, rest = held_out(labels, validation_share + test_share)
        first, second = held_out(labels[rest], test_share / (validation_share + test_share))
        validation, last = rest[first], rest[second]
        test = images[last], labels[last]
    else:
        train, validation = held_out(labels, 0.1)
    train = first_of_each(labels, train, train_samples)

    def part(
        pixels: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64], size: int, learn: bool = False
    ) -> Batches:
        return Batches(
            torch.from_numpy(np.ascontiguousarray(pixels)),
            torch.from_numpy(np.ascontiguousarray(classes)),
            size,
            shuffle=learn,
            transform=partial(crop_and_flip, padding=padding) if learn and augment else to_float,
            draw=epoch_samples if learn else None,
        )

    return Loaders(
        part(images[train], labels[train], batch_size, learn=True),
        part(images[validation], labels[validation], EVALUATION_BATCH),
        part(*test, EVALUATION_BATCH),
    )
