"""The idx format of MNIST, packed or not, as it is distributed and as it should not be."""

from __future__ import annotations

import gzip
import os
import random
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from growpipe.data import idx
from growpipe.data.idx import fashion, images, read_idx
from growpipe.graph_ops.errors import UsageError

RNG = np.random.default_rng(0)


def encoded(array: np.ndarray, code: int = 8) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.tobytes()


def written(
    folder: Path,
    count: int = 48,
    name: Callable[[str, str, int], str] = lambda part, kind, axes: f"{part}-{kind}-idx{axes}-ubyte",
    test: str = "t10k",
) -> dict[str, np.ndarray]:
    """The four files, with ``count`` training images and 20 test images of four classes."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for part, samples in (("train", count), (test, 20)):
        arrays[f"{part} images"] = RNG.integers(0, 256, (samples, 6, 5), dtype=np.uint8)
        arrays[f"{part} labels"] = np.arange(samples, dtype=np.uint8) % 4
        for kind, axes in (("images", 3), ("labels", 1)):
            content = encoded(arrays[f"{part} {kind}"])
            file = folder / name(part, kind, axes)
            file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return arrays


def told(path: Path) -> str:
    """The message with which a file is refused; empty if it is read."""
    try:
        read_idx(path)
    except UsageError as error:
        return str(error)
    return ""


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(idx, "DEBIAN_FOLDER", str(tmp_path / "absent"))
    monkeypatch.delenv("GROWPIPE_DATA", raising=False)


def test_the_last_twelfth_of_each_class_is_held_out(tmp_path: Path) -> None:
    arrays = written(tmp_path)
    loaders = images(8, 0, str(tmp_path))
    (pixels, labels), *more = loaders.validation
    assert not more
    assert labels.tolist() == [0, 1, 2, 3]
    expected = torch.from_numpy(arrays["train images"][-4:, None] / np.float32(255))
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, expected)
    assert sum(len(target) for _, target in loaders.train) == 40  # of 44: incomplete batches are left out
    ((test, classes),) = loaders.test
    assert torch.equal(test, torch.from_numpy(arrays["t10k images"][:, None] / np.float32(255)))
    assert classes.tolist() == arrays["t10k labels"].tolist()


def test_the_names_under_which_the_format_is_distributed(tmp_path: Path) -> None:
    def packed(part: str, kind: str, axes: int) -> str:
        return f"{part}-{kind}-idx{axes}-ubyte.gz"

    def dotted(part: str, kind: str, axes: int) -> str:
        return f"{part}-{kind}.idx{axes}-ubyte"

    written(tmp_path / "mnist", name=packed)
    written(tmp_path / "dotted", name=dotted)
    written(tmp_path / "emnist", name=lambda *of: f"emnist-letters-{packed(*of)}", test="test")
    written(tmp_path / "emnist", name=lambda *of: f"emnist-digits-{packed(*of)}", test="test", count=96)
    for folder, prefix, count in (
        ("mnist", "", 44),
        ("dotted", "", 44),
        ("emnist", "emnist-letters-", 44),
        ("emnist", "emnist-digits-", 88),
    ):
        loaders = images(4, 0, str(tmp_path / folder), prefix)
        assert sum(len(target) for _, target in loaders.train) == count
    with pytest.raises(UsageError, match=r"emnist lacks train-images-idx3-ubyte, with or without .gz"):
        images(4, 0, str(tmp_path / "emnist"))


@pytest.mark.usefixtures("nothing_installed")
def test_fashion_is_looked_for_where_it_may_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"from https://.*dataset-fashion-mnist.* set GROWPIPE_DATA to the"):
        fashion(4, 0)
    written(tmp_path / "debian")
    monkeypatch.setattr(idx, "DEBIAN_FOLDER", str(tmp_path / "debian"))
    monkeypatch.setenv("GROWPIPE_DATA", str(tmp_path))
    assert sum(len(target) for _, target in fashion(4, 0).train) == 44
    written(tmp_path / "fashion-mnist", count=96)  # one's own comes before the system's
    assert sum(len(target) for _, target in fashion(4, 0).train) == 88
    assert sum(len(target) for _, target in fashion(4, 0, str(tmp_path / "debian")).train) == 44


def test_training_may_draw_and_augment(tmp_path: Path) -> None:
    written(tmp_path)
    torch.manual_seed(0)
    plain = images(4, 0, str(tmp_path), train_samples=8, epoch_samples=4)
    ((first, _),) = plain.train
    pool = plain.train.inputs  # type: ignore[attr-defined]
    assert len(pool) == 8
    assert all(any(torch.equal(image, other / 255.0) for other in pool.float()) for image in first)
    moved = images(40, 0, str(tmp_path), augment=True, padding=1)
    ((batch, _),) = moved.train
    assert batch.shape == (40, 1, 6, 5)
    with pytest.raises(UsageError, match="train_samples is 99"):
        images(4, 0, str(tmp_path), train_samples=99)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file of unsigned bytes"),
        (b"no idx file", "not an idx file of unsigned bytes"),
        (encoded(np.zeros((2, 2), np.uint8), code=0x0D), "not an idx file of unsigned bytes"),
        (b"\0\0\x08\0", "it says that it has 0 axes"),
        (b"\0\0\x08\xff" + bytes(4 * 255), "it says that it has 255 axes"),
        (b"\0\0\x08\x03\0\0\0\x01", "it ends within its header"),
        (encoded(np.zeros((2, 2), np.uint8))[:-1], "does not hold the 4 bytes that its header says"),
        (encoded(np.zeros((2, 2), np.uint8)) + b"x", "does not hold the 4 bytes that its header says"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + b"x", "it says that it holds 79,228,"),
        (b"\0\0\x08\x02" + struct.pack(">2I", 1 << 20, 1 << 11), "it says that it holds 2,147,483,648 bytes"),
        (b"\0\0\x08\x02" + struct.pack(">2I", 1 << 20, 1 << 9), "does not hold the 536,870,912 bytes"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_no_such_file_is_told(tmp_path: Path, content: bytes, message: str, packed: bool) -> None:
    path = tmp_path / "a-idx3-ubyte"
    path.write_bytes(gzip.compress(content) if packed else content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match=f"the idx file {path} cannot be read: .*{message}") as error:
        read_idx(path)
    assert len(str(error.value).splitlines()) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15


def test_a_file_that_unfolds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(encoded(np.zeros(4, np.uint8)) + bytes(64 << 20), 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match="does not hold the 4 bytes"):
        read_idx(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15


@pytest.mark.timeout(10)
def test_pipes_links_to_devices_and_folders_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "device", "folder", "absent"):
        with pytest.raises(UsageError, match=f"the idx file {tmp_path / name} cannot be read: "):
            read_idx(tmp_path / name)


def test_damaged_files_are_told(tmp_path: Path) -> None:
    arrays = written(tmp_path)
    generator = random.Random(0)
    refused = 0
    for packed in (False, True):
        content = encoded(arrays["train images"])
        content = gzip.compress(content) if packed else content
        for number in range(200):
            damaged = bytearray(content)
            if number % 2:
                damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
            else:
                del damaged[generator.randrange(len(damaged)) :]
            (tmp_path / "b").write_bytes(bytes(damaged))
            line = told(tmp_path / "b")
            assert not line or str(tmp_path / "b") in line
            assert len(line.splitlines()) <= 1
            refused += bool(line)
    assert refused > 250  # a flipped bit of a pixel, or of gzip's date, does no harm


@pytest.mark.parametrize(
    ("kind", "array", "message"),
    [
        ("images-idx3", np.zeros((48, 30), np.uint8), r"shape \[48, 30\], not images"),
        ("images-idx3", np.zeros((0, 6, 5), np.uint8), r"shape \[0, 6, 5\], not images"),
        ("images-idx3", np.zeros((48, 5, 5), np.uint8), r"training images have size \(5, 5\), the test"),
        ("labels-idx1", np.zeros((4, 12), np.uint8), r"shape \[4, 12\], not labels"),
        ("labels-idx1", np.zeros(47, np.uint8), "48 train images and 47 labels"),
    ],
)
def test_files_that_do_not_belong_together_are_told(
    tmp_path: Path, kind: str, array: np.ndarray, message: str
) -> None:
    written(tmp_path)
    (tmp_path / f"train-{kind}-ubyte").write_bytes(encoded(array))
    with pytest.raises(UsageError, match=message):
        images(4, 0, str(tmp_path))
