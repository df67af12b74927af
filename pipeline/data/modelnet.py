"""ModelNet40 as it is distributed: the OFF meshes, or the HDF5 files of 2,048 points each.

Batches are point clouds float32 [N, points, 3], centred and scaled into the unit ball.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from growpipe.data import Loaders
from growpipe.data.array_batches import Batches
from growpipe.data.location import locate
from growpipe.data.meshes import parse_off, sample_surface
from growpipe.data.train_test import held_out
from growpipe.environment import require
from growpipe.graph_ops.errors import UsageError

__all__ = ["jitter", "loaders", "read_hdf5", "read_meshes"]

SOURCE = "https://modelnet.cs.princeton.edu"
CLASSES = 40
MAX_FILE = 256 << 20  # bytes of one mesh
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
    h5py = require("h5py", "hdf5", "reading the HDF5 files of ModelNet40")
    files = sorted(folder.glob(f"ply_data_{part}*.h5"), key=lambda file: (len(file.name), file.name))
    if not files:
        raise UsageError(f"{folder} has no ply_data_{part}*.h5; get modelnet40_ply_hdf5_2048 whole")
    clouds, labels = [], []
    for file in files:
        try:
            with h5py.File(file, "r") as content:
                for name in ("data", "label"):
                    # A link could point into any other file of the machine.
                    if (
                        not isinstance(content.get(name, getlink=True), h5py.HardLink)
                        or content[name].external
                    ):
                        raise UsageError(f"{file} keeps {name!r} in another file; get it again")
                data, label = content["data"][:, :points], content["label"][:]
        except (OSError, KeyError, ValueError, RuntimeError, AttributeError) as error:
            raise UsageError(f"{file} is no readable file of ModelNet40: {error}") from None
        if data.ndim != 3 or data.shape[1:] != (points, 3) or label.size != len(data):
            raise UsageError(
                f"{file} holds clouds {data.shape} and labels {label.shape}, not [n, {points}, 3] and [n, 1]"
            )
        clouds.append(np.asarray(data, dtype=np.float32))
        labels.append(np.asarray(label, dtype=np.int64).reshape(-1))
    result = np.concatenate(clouds), np.concatenate(labels)
    if not np.isfinite(result[0]).all() or not 0 <= result[1].min() <= result[1].max() < CLASSES:
        raise UsageError(
            f"{folder} holds points that are not finite, or labels that are not 0 to {CLASSES - 1}"
        )
    return result


def read_meshes(folder: Path, part: str, points: int, cache: str | None) -> Clouds:
    """Points from the surfaces of all ``CLASS/{part}/*.off``; classes in alphabetical order.

    The points of a mesh depend on its name alone.

    Raises:
        UsageError: there are no such files, or one is damaged.
    """
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
        kept = Path(cache) / f"modelnet-{part}-{points}-{zlib.crc32(names.encode()):08x}.npy"
        if kept.is_file():
            return np.load(kept, allow_pickle=False), labels
    clouds = np.stack([_cloud(file, points) for file, _ in files])
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, suffix=".npy", delete=False) as beside:
            np.save(beside, clouds)
        os.replace(beside.name, kept)
    return clouds, labels


def _cloud(file: Path, points: int) -> npt.NDArray[np.float32]:
    if file.stat().st_size > MAX_FILE:
        raise UsageError(f"{file} is larger than {MAX_FILE >> 20} MiB; it is no mesh of ModelNet40")
    mesh = parse_off(file.read_text(encoding="utf-8", errors="replace"), str(file))
    generator = np.random.default_rng(zlib.crc32(file.name.encode()))
    return sample_surface(mesh, points, generator)
