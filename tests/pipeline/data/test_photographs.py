"""Photographs decoded on the way, from folders and zips."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from growpipe.data.photographs import loaders, random_box
from growpipe.graph_ops.errors import UsageError


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for name in ("n01", "n02"):
            folder = tmp_path / "imagenet" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (40 + number, 60, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.JPEG")
    return tmp_path


def test_train_and_val_folders(imagenet: Path) -> None:
    parts = loaders(4, 0, str(imagenet), size=16, workers=0)
    torch.manual_seed(3)
    first = [batch for batch in parts.train]
    torch.manual_seed(3)
    again = [batch for batch in parts.train]
    assert sum(len(target) for _, target in first) == 8
    for (a, at), (b, bt) in zip(first, again, strict=True):
        assert a.shape == (4, 3, 16, 16)
        assert a.dtype == torch.float32
        assert 0.0 <= a.min() < a.max() <= 1.0
        assert torch.equal(a, b)
        assert torch.equal(at, bt)
    assert next(iter(parts.validation))[1].tolist() == [0, 1]
    assert next(iter(parts.test))[1].tolist() == [0, 0, 1, 1]


def test_a_zip_serves_as_well(imagenet: Path) -> None:
    plain = next(iter(loaders(4, 0, str(imagenet), size=16, workers=0).test))[0]
    folder = imagenet / "imagenet" / "val"
    with zipfile.ZipFile(imagenet / "imagenet" / "val.zip", "w") as archive:
        for file in sorted(folder.rglob("*.JPEG")):
            archive.write(file, file.relative_to(folder.parent))
            file.unlink()
    for entry in folder.iterdir():
        entry.rmdir()
    folder.rmdir()
    assert torch.equal(plain, next(iter(loaders(4, 0, str(imagenet), size=16, workers=0).test))[0])


def test_missing_and_differing_parts_are_told(imagenet: Path) -> None:
    (imagenet / "imagenet" / "val" / "n02").rename(imagenet / "imagenet" / "val" / "n03")
    with pytest.raises(UsageError, match="different classes: 'n02'"):
        loaders(4, 0, str(imagenet))
    (imagenet / "imagenet" / "val").rename(imagenet / "imagenet" / "other")
    with pytest.raises(UsageError, match="no folder val"):
        loaders(4, 0, str(imagenet))


def test_random_parts_lie_within_the_image() -> None:
    torch.manual_seed(0)
    for _ in range(200):
        left, upper, right, lower = random_box(50, 30)
        assert 0 <= left < right <= 50
        assert 0 <= upper < lower <= 30
