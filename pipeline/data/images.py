"""Image folders and zips of image folders: one folder per class, JPEG or PNG files in it.

Members of a zip are read, never extracted: no name in it becomes a path.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from growpipe.environment import require
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.reading import limited, opened, read_bytes, reading

__all__ = ["ImageSet", "decode", "open_images", "read_images"]

SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_FILE = 64 << 20  # bytes of one encoded image
MAX_PIXELS = 64 << 20  # of one image: a small file can claim to be huge
MAX_ALL = 1 << 30  # bytes of all decoded images of `read_images`
MAX_ZIP = 1 << 40  # bytes
MAX_DIRECTORY = (
    256 << 20
)  # bytes of a zip's list of members; that of ImageNet's 1.3 million has about 120 MiB


@dataclass(frozen=True)
class ImageSet:
    """Images by class, still encoded.

    Attributes:
        source: the folder or zip.
        classes: the names of the class folders, sorted.
        names: of the images within ``source``, sorted by class and name.
        labels: int64 [images], positions in ``classes``.
    """

    source: Path
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    _archives: dict[int, zipfile.ZipFile] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """The encoded image.

        Raises:
            UsageError: it cannot be read, or is larger than 64 MiB.
        """
        name = self.names[index]
        if self.source.is_dir():
            return read_bytes(self.source / name, "the image", most=MAX_FILE)
        with reading("the zip", self.source), self._archive().open(name) as member:
            data = member.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise UsageError(f"{self.source}: {name!r} is larger than {MAX_FILE >> 20} MiB")
        return data

    def image(self, index: int) -> Any:
        """The image as a Pillow image in RGB; see `decode`."""
        return decode(self.read(index), f"{self.source}: {self.names[index]!r}")

    def _archive(self) -> zipfile.ZipFile:
        # Loader processes must not share one file position.
        process = os.getpid()
        if process not in self._archives:
            with opened(self.source, most=MAX_ZIP):  # it is still a regular file
                self._archives[process] = zipfile.ZipFile(self.source)
        return self._archives[process]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archives": {}}

    def subset(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> ImageSet:
        """Some of the images, in this order."""
        chosen = np.asarray(indices)
        return ImageSet(self.source, self.classes, tuple(self.names[i] for i in chosen), self.labels[chosen])


def decode(data: bytes, where: str) -> Any:
    """A JPEG or PNG as a Pillow image in RGB.

    Raises:
        UsageError: it is neither, is damaged, or has more than 64 Mi pixels.
        MissingEnvironment: Pillow is not installed.
    """
    pillow = require("PIL.Image", "train", "reading images")
    with reading("the image", where):
        try:
            image = pillow.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        except pillow.UnidentifiedImageError:
            raise UsageError("it is not a JPEG or PNG image") from None
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise UsageError(
                    f"it has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read"
                )
            return image.convert("RGB")


def open_images(source: Path) -> ImageSet:
    """List the images of a folder or zip.

    A zip may hold the class folders inside other folders, as long as all of them lie side by side. Hidden
    files and files that are not images are passed over.

    Raises:
        UsageError: there are no images, they do not lie in class folders, or the zip is damaged, encrypted,
            or has a member whose name leads out of it.
    """
    with reading("the image folder or zip", source):
        names = _listed(source) if source.is_dir() else _members(source)
    if not names:
        raise UsageError(f"{source} holds no images: class folders with JPEG or PNG files in them are wanted")
    parents = {PurePosixPath(name).parent for name in names}
    if len({parent.parent for parent in parents}) > 1 or PurePosixPath(".") in parents:
        raise UsageError(f"{source}: all images must lie in class folders side by side, as in cat/1.jpg")
    classes = tuple(sorted(parent.name for parent in parents))
    position = {name: number for number, name in enumerate(classes)}
    names.sort(key=lambda name: (PurePosixPath(name).parent.name, name))
    labels = np.array([position[PurePosixPath(name).parent.name] for name in names], dtype=np.int64)
    return ImageSet(source, classes, tuple(names), labels)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _listed(source: Path) -> list[str]:
    return [
        f"{entry.name}/{file.name}"
        for entry in os.scandir(source)
        if entry.is_dir() and not entry.name.startswith(".")
        for file in os.scandir(entry)
        if _is_image(file.name) and file.is_file()
    ]


def _members(source: Path) -> list[str]:
    with opened(source, most=MAX_ZIP) as file, zipfile.ZipFile(limited(file, once=MAX_DIRECTORY)) as archive:
        members = archive.infolist()
    names = []
    for member in members:
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename:
            raise UsageError(f"{source} has a member {member.filename!r} that leads out of it; do not use it")
        if member.is_dir() or path.parts[0] == "__MACOSX" or not _is_image(path.name):
            continue
        if member.flag_bits & 1:
            raise UsageError(f"{source}: {member.filename!r} is encrypted; unpack the zip first")
        if member.file_size > MAX_FILE:
            raise UsageError(f"{source}: {member.filename!r} is larger than {MAX_FILE >> 20} MiB")
        names.append(member.filename)
    return names


def read_images(images: ImageSet) -> npt.NDArray[np.uint8]:
    """Decode all images of a set whose images have one size (10,000 of 32 x 32 take a second).

    Returns:
        uint8 [images, 3, height, width].

    Raises:
        UsageError: an image cannot be read or has another size than the first.
    """
    width, height = images.image(0).size
    if len(images) * 3 * height * width > MAX_ALL:
        raise UsageError(
            f"{images.source}: {len(images)} images of {width} x {height} pixels take more than "
            f"{MAX_ALL >> 20} MiB"
        )
    pixels = np.empty((len(images), 3, height, width), dtype=np.uint8)
    for index in range(len(images)):
        image = images.image(index)
        if image.size != (width, height):
            raise UsageError(
                f"{images.source}: {images.names[index]!r} has size {image.size}, the others "
                f"{(width, height)}; resize them first"
            )
        pixels[index] = np.asarray(image).transpose(2, 0, 1)
    return pixels
