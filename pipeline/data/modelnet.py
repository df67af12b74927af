"""ModelNet40 as it is distributed: the OFF meshes, or the HDF5 files of 2,048 points each.

Batches are point clouds float32 [N, points, 3], centred and scaled into the unit ball.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from growpipe.data import Loaders
from growpipe.data.array_batches import Batches
from growpipe.data.hdf5 import read_numbers
from growpipe.data.location import locate
from growpipe.data.meshes import parse_off, sample_surface
from growpipe.data.train_test import held_out
from growpipe.environment import require
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.arrays import read_npy
from growpipe.graph_ops.files.atomic import publish_file
from growpipe.graph_ops.files.reading import read_bytes, reading

__all__ = ["jitter", "loaders", "read_hdf5", "read_meshes"]

SOURCE = "https://modelnet.cs.princeton.edu"
CLASSES = 40
MAX_FILE = 128 << 20  # bytes of one mesh
MAX_RADIUS = 1e6  # of a point; the clouds lie in the unit ball
EVALUATION_BATCH = 64

Clouds = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def loaders(
    batch_size: int,
    seed: int,
    path: str | None = None,
    points: int = 1024,
    augment: bool = True,
    cache: str | None = None,
) -> Loaders:
    """ModelNet40; of each class the last tenth of the training shapes is the validation set.

    Args:
        batch_size: of the training batches.
        seed: not used: order and augmentation come from torch's generator, which the trainer seeds for
            every epoch; the points of a mesh never change.
        path: see `growpipe.data.location.locate`: ``modelnet40_ply_hdf5_2048`` (the HDF5 files) or
            ``ModelNet40`` (a folder per class, with ``train`` and ``test`` folders of OFF files).
        points: of a cloud; at most 2,048 from the HDF5 files.
        augment: scale, shift and jitter the training clouds (see `jitter`).
        cache: a folder for the points drawn from OFF meshes, which take minutes to read; None keeps nothing.

    Returns:
        Batches of clouds float32 [N, points, 3] and classes int64 [N].

    Raises:
        UsageError: the data are not there, or damaged.
        MissingEnvironment: h5py is not installed and the data are HDF5 files.
    """
    del seed
    place = locate(path, ("modelnet40_ply_hdf5_2048", "ModelNet40"), "ModelNet40", SOURCE)
    if any(place.glob("*.h5")):
        learn, test = (read_hdf5(place, part, points) for part in ("train", "test"))
    else:
        learn, test = (read_meshes(place, part, points, cache) for part in ("train", "test"))
    train, validation = held_out(learn[1], 0.1)

    def part(
        clouds: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], size: int, training: bool
    ) -> Batches:
        return Batches(
            torch.from_numpy(clouds),
            torch.from_numpy(labels),
            size,
            shuffle=training,
            transform=jitter if training and augment else None,
        )

    return Loaders(
        part(learn[0][train], learn[1][train], batch_size, True),
        part(learn[0][validation], learn[1][validation], EVALUATION_BATCH, False),
        part(*test, EVALUATION_BATCH, False),
    )


def jitter(clouds: Tensor) -> Tensor:
    """Scale each axis by 2/3 to 3/2, shift by up to 0.2, and add noise of 0.01; from torch's generator."""
    count, points, _ = clouds.shape
    scale = (2.0 / 3.0) + torch.rand(count, 1, 3) * (1.5 - 2.0 / 3.0)
    shift = 0.4 * torch.rand(count, 1, 3) - 0.2
    noise = (0.01 * torch.randn(count, points, 3)).clamp_(-0.05, 0.05)
    return clouds * scale.to(clouds.device) + (shift + noise).to(clouds.device)


def read_hdf5(folder: Path, part: str, points: int) -> Clouds:
    """All of ``ply_data_{part}*.h5``: the data sets ``data`` [n, 2048, 3] and ``label`` [n, 1].

    Raises:
        UsageError: there are no such files, or they hold something else.
        MissingEnvironment: h5py is not installed.
    """
    require("h5py", "hdf5", "reading the HDF5 files of ModelNet40")
    files = sorted(folder.glob(f"ply_data_{part}*.h5"), key=lambda file: (len(file.name), file.name))
    if not files:
        raise UsageError(f"{folder} has no ply_data_{part}*.h5; get modelnet40_ply_hdf5_2048 whole")
    clouds, labels = [], []
    for file in files:
        with reading("the HDF5 file", file):
            data, label = read_numbers(file, ("data", "label"))
            if data.ndim != 3 or not len(data) or data.shape[1] < points or data.shape[2] != 3:
                raise UsageError(f"it holds clouds {data.shape}, not [n, at least {points}, 3]")
            if label.dtype.kind not in "iu" or label.size != len(data):
                raise UsageError(f"it holds labels {label.shape} of {label.dtype}, not whole numbers [n, 1]")
            if not np.isfinite(data).all() or np.abs(data).max() > MAX_RADIUS:
                raise UsageError(f"it holds points that are not finite, or farther out than {MAX_RADIUS:g}")
            if not 0 <= label.min() <= label.max() < CLASSES:
                raise UsageError(f"it holds labels that are not 0 to {CLASSES - 1}")
        clouds.append(np.asarray(data[:, :points], dtype=np.float32))
        labels.append(np.asarray(label, dtype=np.int64).reshape(-1))
    return np.concatenate(clouds), np.concatenate(labels)


def read_meshes(folder: Path, part: str, points: int, cache: str | None) -> Clouds:
    """Points from the surfaces of all ``CLASS/{part}/*.off``; classes in alphabetical order.

    The points of a mesh depend on its name alone.

    Raises:
        UsageError: there are no such files, or one is damaged.
    """
    with reading("the folder", folder):
        classes = sorted(entry.name for entry in folder.iterdir() if (entry / part).is_dir())
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((folder / name / part).glob("*.off"))
    ]
    if not files:
        raise UsageError(f"{folder} holds neither HDF5 files nor CLASS/{part}/*.off; get it from {SOURCE}")
    labels = np.array([label for _, label in files], dtype=np.int64)
    names = "\n".join(f"{file.parent.parent.name}/{file.name} {file.stat().st_size}" for file, _ in files)
    kept = None
    if cache is not None:
        kept = (
            Path(cache)
            / f"modelnet-{part}-{points}-{zlib.crc32(names.encode('utf-8', 'surrogateescape')):08x}.npy"
        )
        if kept.is_file():
            return _kept(kept, (len(files), points, 3)), labels
    clouds = np.stack([_cloud(file, points) for file, _ in files])
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with publish_file(kept) as staged:
            np.save(staged, clouds)
    return clouds, labels


def _kept(file: Path, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    clouds = read_npy(file, "the cache of points")
    if clouds.shape != shape or clouds.dtype != np.float32 or not np.isfinite(clouds).all():
        raise UsageError(f"{file} does not hold the points of these meshes; remove it")
    return clouds


def _cloud(file: Path, points: int) -> npt.NDArray[np.float32]:
    text = read_bytes(file, "the mesh", most=MAX_FILE).decode("utf-8", "replace")
    generator = np.random.default_rng(zlib.crc32(file.name.encode("utf-8", "surrogateescape")))
    with reading("the mesh", file):
        return sample_surface(parse_off(text, str(file)), points, generator)
