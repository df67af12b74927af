"""Meshes, ModelNet40 in both of its forms, and the generated solids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from growpipe.data import modelnet
from growpipe.data import synthetic_shapes as shapes
from growpipe.data.meshes import parse_off, sample_surface
from growpipe.graph_ops.errors import UsageError

SQUARE = (
    "OFF\n# a square and a triangle\n5 2 0\n0 0 0\n2 0 0\n2 2 0\n0 2 0\n0 0 2\n4 0 1 2 3\n3 0 1 4 255 0 0\n"
)


def test_off_cuts_polygons_into_triangles() -> None:
    mesh = parse_off(SQUARE, "a.off")
    assert mesh.vertices.shape == (5, 3)
    assert mesh.triangles.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 4]]
    joined = parse_off(SQUARE.replace("OFF\n# a square and a triangle\n5", "OFF5"), "a.off")
    assert np.array_equal(joined.triangles, mesh.triangles)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PLY\n", "does not begin with OFF"),
        ("OFF\n", "no numbers of vertices and faces"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n", "ends after 2 of 3 vertices"),
        (SQUARE.replace("3 0 1 4", "3 0 1 9"), "vertex that is not there"),
        (SQUARE.replace("2 2 0", "2 two 0"), "could not convert string to float: 'two'"),
    ],
)
def test_faulty_off_files_are_told(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_off(text, "a.off")


def test_points_are_uniform_by_area() -> None:
    # Two triangles in one plane, one with three times the area of the other.
    mesh = parse_off("OFF\n4 2 0\n0 0 0\n3 0 0\n0 1 0\n-1 0 0\n3 0 1 2\n3 0 2 3\n", "a.off")
    cloud = sample_surface(mesh, 20_000, np.random.default_rng(0)).astype(np.float64)
    assert np.abs(cloud.mean(0)).max() < 1e-6
    assert np.linalg.norm(cloud, axis=1).max() == pytest.approx(1.0)
    assert np.ptp(cloud[:, 2]) == 0.0
    # The centroid of the whole is at x = 3/4 · 1 − 1/4 · 1/3; the share right of the common edge is 3/4.
    edge = cloud[:, 0].min() + np.ptp(cloud[:, 0]) / 4
    assert (cloud[:, 0] > edge).mean() == pytest.approx(0.75, abs=0.01)


@pytest.fixture
def h5py() -> Any:
    return pytest.importorskip("h5py", reason="the extra hdf5 is not installed")


def write_hdf5(h5py: Any, path: Path, labels: list[int], points: int = 2048) -> np.ndarray:
    data = np.random.default_rng(len(labels)).normal(size=(len(labels), points, 3)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["data"] = data
        file["label"] = np.array(labels, dtype=np.uint8)[:, None]
    return data


def test_modelnet_as_hdf5(h5py: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "modelnet40_ply_hdf5_2048"
    folder.mkdir()
    first = write_hdf5(h5py, folder / "ply_data_train0.h5", [0, 39] * 4)
    second = write_hdf5(h5py, folder / "ply_data_train1.h5", [0, 39] * 5)
    test = write_hdf5(h5py, folder / "ply_data_test0.h5", [3, 1])
    monkeypatch.setenv("GROWPIPE_DATA", str(tmp_path))
    parts = modelnet.loaders(4, 0, points=16, augment=False)
    clouds, labels = next(iter(parts.validation))
    assert labels.tolist() == [0, 39]
    assert np.array_equal(clouds.numpy(), second[-2:, :16])
    assert np.array_equal(next(iter(parts.test))[0].numpy(), test[:, :16])
    assert sum(len(target) for _, target in parts.train) == 16
    assert len(first) == 8


def test_a_hdf5_file_that_points_elsewhere_is_refused(h5py: Any, tmp_path: Path) -> None:
    write_hdf5(h5py, tmp_path / "other.h5", [0, 1])
    with h5py.File(tmp_path / "ply_data_train0.h5", "w") as file:
        file["data"] = h5py.ExternalLink("other.h5", "data")
        file["label"] = np.zeros((2, 1), np.uint8)
    with pytest.raises(UsageError, match="in another file"):
        modelnet.read_hdf5(tmp_path, "train", 16)
    (tmp_path / "ply_data_train0.h5").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match=r"the HDF5 file .* cannot be read: .*signature not found"):
        modelnet.read_hdf5(tmp_path, "train", 16)
    write_hdf5(h5py, tmp_path / "ply_data_train0.h5", [0, 40])
    with pytest.raises(UsageError, match="labels that are not 0 to 39"):
        modelnet.read_hdf5(tmp_path, "train", 16)


def test_modelnet_as_meshes(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("test", 1)):
        for name in ("chair", "airplane"):
            folder = tmp_path / "ModelNet40" / name / part
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{name}_{number:04d}.off").write_text(SQUARE)
    parts = modelnet.loaders(2, 0, str(tmp_path), points=8, cache=str(tmp_path / "kept"))
    assert next(iter(parts.validation))[1].tolist() == [0, 1]
    clouds, labels = next(iter(parts.test))
    assert labels.tolist() == [0, 1]
    assert clouds.shape == (2, 8, 3)
    assert clouds.dtype == torch.float32
    assert not torch.equal(clouds[0], clouds[1])
    assert len(list((tmp_path / "kept").iterdir())) == 2
    again = modelnet.loaders(2, 0, str(tmp_path), points=8, cache=str(tmp_path / "kept"))
    assert torch.equal(clouds, next(iter(again.test))[0])


def test_absent_modelnet_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither HDF5 files nor CLASS/train/\*.off"):
        modelnet.loaders(2, 0, str(tmp_path))


@pytest.mark.parametrize("name", shapes.CLASSES)
def test_a_solid_is_what_it_is_called(name: str) -> None:
    """Every point lies on the surface of the solid, before it is stretched and turned."""
    cloud = shapes._SAMPLERS[name](2, 500, torch.Generator().manual_seed(0)).double()
    x, y, z = cloud.unbind(-1)
    radius = (x**2 + y**2).sqrt()
    third = 2 * torch.pi / 3
    sides = torch.stack([x * np.cos(a) + y * np.sin(a) for a in (third / 2, 3 * third / 2, 5 * third / 2)])
    distance = {
        "box": lambda: cloud.abs().amax(-1) - 1,
        "capsule": lambda: (x**2 + y**2 + (z.abs() - 0.5).clamp(min=0) ** 2).sqrt() - 0.5,
        "cone": lambda: torch.minimum((radius - (1 - z) / 2).abs(), (z + 1).abs()),
        "cylinder": lambda: torch.maximum(radius, z.abs()) - 1,
        "ellipsoid": lambda: cloud.norm(dim=-1) - 1,
        "octahedron": lambda: cloud.abs().sum(-1) - 1,
        "prism": lambda: torch.maximum(sides.amax(0) - 0.5, z.abs() - 1),
        "pyramid": lambda: torch.minimum(
            (torch.maximum(x.abs(), y.abs()) - (1 - z) / 2).abs(), (z + 1).abs()
        ),
        "tetrahedron": lambda: torch.stack([x + y - z, x - y + z, -x + y + z, -x - y - z]).amax(0) - 1,
        "torus": lambda: ((radius - 1) ** 2 + z**2).std(dim=1)[:, None],
    }[name]()
    assert distance.abs().max() < 1e-5


def test_shapes_are_fresh_in_training_and_fixed_otherwise() -> None:
    parts = shapes.loaders(20, 0, points=32, train_samples=40, evaluation_samples=30)
    torch.manual_seed(0)
    first = list(parts.train)
    second = list(parts.train)
    torch.manual_seed(0)
    again = list(parts.train)
    assert [batch.shape for batch, _ in first] == [(20, 32, 3)] * 2
    assert torch.equal(first[1][0], again[1][0])
    assert not torch.equal(first[1][0], second[1][0])
    other = shapes.loaders(20, 1, points=32, train_samples=40, evaluation_samples=30)
    clouds, labels = next(iter(parts.validation))
    assert torch.equal(clouds, next(iter(other.validation))[0])
    assert not torch.equal(clouds, next(iter(parts.test))[0])
    assert labels.bincount().tolist() == [3] * 10
    assert torch.linalg.vector_norm(clouds, dim=2).amax() < 1.2
