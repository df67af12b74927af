"""CIFAR in its binary version, as a tar archive and unpacked, and as a zip of images."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from growpipe.data.augment import crop_and_flip, to_float
from growpipe.data.cifar import cifar10, cifar100, parse_records
from growpipe.graph_ops.errors import UsageError

RNG = np.random.default_rng(0)


def records(labels: list[int], coarse: bool = False) -> tuple[bytes, np.ndarray]:
    pixels = RNG.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    heads = np.array([[7, label] if coarse else [label] for label in labels], dtype=np.uint8)
    return np.concatenate([heads, pixels], axis=1).tobytes(), pixels.reshape(-1, 3, 32, 32)


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for number in range(1, 6):
        (folder / f"data_batch_{number}.bin").write_bytes(records(list(range(10)) * 4)[0])
    (folder / "test_batch.bin").write_bytes(records(list(range(10)))[0])
    return folder


def test_a_record_is_a_label_and_three_planes() -> None:
    data, pixels = records([3, 9, 0])
    images, labels = parse_records(data, 1, 10, "x.bin")
    assert labels.tolist() == [3, 9, 0]
    assert np.array_equal(images, pixels)
    with pytest.raises(UsageError, match="no multiple of a record's 3073"):
        parse_records(data[:-1], 1, 10, "x.bin")
    with pytest.raises(UsageError, match="label 9, but there are 5 classes"):
        parse_records(data, 1, 5, "x.bin")


def test_cifar10_binary_holds_out_the_last_tenth_of_each_class(binary: Path) -> None:
    loaders = cifar10(50, 0, str(binary), augment=False)
    images, labels = next(iter(loaders.validation))
    assert labels.bincount().tolist() == [2] * 10
    raw = np.frombuffer((binary / "data_batch_5.bin").read_bytes(), np.uint8).reshape(-1, 3073)[-20:]
    assert labels.tolist() == raw[:, 0].tolist()
    assert torch.equal(images, torch.from_numpy(raw[:, 1:].reshape(-1, 3, 32, 32) / np.float32(255)))
    assert sum(len(target) for _, target in loaders.train) == 150  # of 180: incomplete batches are left out
    assert len(next(iter(loaders.test))[1]) == 10


def test_the_archive_gives_what_the_folder_gives(
    binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "data"
    home.mkdir()
    with tarfile.open(home / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(binary, "cifar-10-batches-bin")
    monkeypatch.setenv("GROWPIPE_DATA", str(home))
    packed, plain = cifar10(20, 0), cifar10(20, 0, str(binary))
    for part in ("validation", "test"):
        for ours, theirs in zip(getattr(packed, part), getattr(plain, part), strict=True):
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])


def test_cifar100_reads_the_fine_label(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(records(list(range(100)) * 4, coarse=True)[0])
    (tmp_path / "test.bin").write_bytes(records(list(range(100)), coarse=True)[0])
    loaders = cifar100(100, 0, str(tmp_path))
    assert next(iter(loaders.test))[1].tolist() == list(range(100))
    assert len(next(iter(loaders.validation))[1]) == 100


def test_cifar10_as_a_zip_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, int] = {}
    with zipfile.ZipFile(tmp_path / "cifar10-train.zip", "w") as archive:
        for label in range(10):
            for number in range(20):
                name = f"class{label}/{number:04d}.png"
                values[name] = 20 * label + number
                buffer = io.BytesIO()
                Image.new("RGB", (32, 32), (values[name],) * 3).save(buffer, "PNG")
                archive.writestr(name, buffer.getvalue())
    monkeypatch.setenv("GROWPIPE_DATA", str(tmp_path))
    loaders = cifar10(30, 0, train_samples=30)

    def seen(part: object) -> list[int]:
        return sorted(round(float(i.max()) * 255) for images, _ in part for i in images)  # type: ignore[attr-defined]

    # Of each class the last two are held out: the first of them for validation, the other for the test.
    assert seen(loaders.validation) == [20 * label + 18 for label in range(10)]
    assert seen(loaders.test) == [20 * label + 19 for label in range(10)]
    assert seen(loaders.train) == [20 * label + k for label in range(10) for k in range(3)]
    larger = cifar10(30, 0, test_share=0.25)
    assert seen(larger.test) == [20 * label + k for label in range(10) for k in range(15, 20)]
    assert seen(larger.validation) == [20 * label + 14 for label in range(10)]


def test_an_epoch_may_draw_a_part_of_the_images_anew_each_time(binary: Path) -> None:
    loaders = cifar10(20, 0, str(binary), augment=False, epoch_samples=60)
    torch.manual_seed(0)
    first, second = (torch.cat([images for images, _ in loaders.train]) for _ in range(2))
    assert len(first) == len(second) == 60
    assert len(loaders.train) == 3
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, torch.cat([images for images, _ in loaders.train]))
    with pytest.raises(UsageError, match="cannot draw"):
        cifar10(20, 0, str(binary), epoch_samples=10_000_000)


def test_crops_without_padding_only_mirror() -> None:
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    flipped = crop_and_flip(images, padding=0)
    same = (flipped == to_float(images)).flatten(1).all(1)
    mirrored = (flipped == to_float(images).flip(3)).flatten(1).all(1)
    assert torch.all(same ^ mirrored)
    assert 0 < int(mirrored.sum()) < 64


def test_absent_data_are_told_with_where_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GROWPIPE_DATA", raising=False)
    with pytest.raises(UsageError, match=r"get cifar-10-binary.tar.gz from https.* and set GROWPIPE_DATA"):
        cifar10(10, 0)
    monkeypatch.setenv("GROWPIPE_DATA", str(tmp_path))
    with pytest.raises(UsageError, match="CIFAR-100 is not in"):
        cifar100(10, 0)
    (tmp_path / "data_batch_1.bin").write_bytes(records([1, 2])[0])
    with pytest.raises(UsageError, match=r"lacks data_batch_2.bin"):
        cifar10(10, 0, str(tmp_path))


def test_augmentation_cuts_a_padded_image_and_mirrors_half() -> None:
    images = torch.randint(1, 256, (64, 3, 32, 32), dtype=torch.uint8)
    torch.manual_seed(1)
    first = crop_and_flip(images)
    torch.manual_seed(1)
    assert torch.equal(first, crop_and_flip(images))
    assert not torch.equal(first, crop_and_flip(images))
    padded = torch.nn.functional.pad(to_float(images), (4, 4, 4, 4))
    mirrored = 0
    for image, source in zip(first, padded, strict=True):
        windows = source.unfold(1, 32, 1).unfold(2, 32, 1)  # [3, 9, 9, 32, 32]
        plain = (windows == image[:, None, None]).all(-1).all(-1).all(0)
        flipped = (windows == image.flip(2)[:, None, None]).all(-1).all(-1).all(0)
        assert int(plain.sum()) + int(flipped.sum()) == 1
        mirrored += int(flipped.sum())
    assert 16 < mirrored < 48
