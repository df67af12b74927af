"""Damaged, hostile and unfolding data sets: one line that names the file, in bounded time and memory."""

from __future__ import annotations

import gzip
import io
import os
import random
import resource
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from growpipe.data import modelnet
from growpipe.data.cifar import cifar10
from growpipe.data.images import decode, open_images, read_images
from growpipe.data.meshes import parse_off, sample_surface
from growpipe.graph_ops.errors import UsageError

pytestmark = pytest.mark.slow


def peak() -> int:
    """KiB that this process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_of_children() -> int:
    """The most that any ended child process of this one has taken, in KiB."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def told(action: Callable[[], object]) -> str:
    """The one line with which ``action`` is refused; empty if it works."""
    line = ""
    try:
        action()
    except UsageError as error:
        line = str(error)
    assert len(line.splitlines()) <= 1
    return line


def flipped(content: bytes, generator: random.Random, bits: int = 1) -> bytes:
    damaged = bytearray(content)
    for _ in range(bits):
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
    return bytes(damaged)


def png(value: int, size: tuple[int, int] = (8, 6), form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 0, 9)).save(buffer, form)
    return buffer.getvalue()


def zipped(path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
            archive.writestr(name, png(len(name)))
    return path


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_damaged_zips_of_images_are_told(tmp_path: Path, method: int) -> None:
    content = zipped(tmp_path / "a.zip", method).read_bytes()
    generator = random.Random(method)
    refused = 0
    for number in range(150):
        changed = flipped(content, generator) if number % 3 else content[: generator.randrange(len(content))]
        (tmp_path / "a.zip").write_bytes(changed)
        line = told(lambda: read_images(open_images(tmp_path / "a.zip")))
        assert not line or str(tmp_path) in line
        refused += bool(line)
    assert refused > 100  # a flipped bit of a date, or of an attribute, does no harm


def test_an_image_is_told_whatever_is_wrong_with_it() -> None:
    generator = random.Random(0)
    for form in ("PNG", "JPEG"):
        content = png(3, form=form)
        for _ in range(200):
            line = told(partial(decode, flipped(content, generator, 3), "a.png"))
            assert not line or line.startswith("the image a.png cannot be read: ")


def test_images_that_unfold_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        big = png(0, (4000, 4000))
        for number in range(30):
            archive.writestr(f"cat/{number}.png", big)
    with pytest.raises(UsageError, match="30 images of 4000 x 4000 pixels take more than 1024 MiB"):
        read_images(open_images(tmp_path / "a.zip"))
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.png", bytes(65 << 20))
    with pytest.raises(UsageError, match="larger than 64 MiB"):
        open_images(tmp_path / "b.zip")


@pytest.fixture
def batches(tmp_path: Path) -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    return {
        name: b"".join(bytes([label % 10]) + generator.bytes(3072) for label in range(20)) for name in names
    }


def tarred(path: Path, members: dict[str, bytes], level: int = 0) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    path.write_bytes(gzip.compress(buffer.getvalue(), level))
    return path


def test_a_flipped_pixel_in_a_stored_block_is_told(tmp_path: Path, batches: dict[str, bytes]) -> None:
    path = tarred(tmp_path / "cifar-10-binary.tar.gz", batches)
    assert not told(lambda: cifar10(10, 0, str(path)))
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        position = int(share * len(content))
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(bytes(damaged))
        with pytest.raises(UsageError, match=r"the archive .*tar.gz cannot be read: CRC check failed"):
            cifar10(10, 0, str(path))
    path.write_bytes(content[:-6])
    with pytest.raises(UsageError, match="ended before the end-of-stream marker"):
        cifar10(10, 0, str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(lambda: b"", "empty|lacks", id="empty"),
        pytest.param(lambda: b"no archive", "cannot be read: ", id="text"),
        pytest.param(lambda: gzip.compress(b"no archive" * 100), "cannot be read: ", id="compressed text"),
        pytest.param(
            lambda: gzip.compress(bytes(300 << 20), 1), "unpacks to more than 268,435,456 bytes", id="large"
        ),
        pytest.param(lambda: b"\xfd7zXZ\x00" + bytes(600), "cannot be read: ", id="damaged xz"),
    ],
)
def test_other_archives_are_told(tmp_path: Path, content: Callable[[], bytes], message: str) -> None:
    (tmp_path / "a.tar.gz").write_bytes(content())
    with pytest.raises(UsageError, match=message) as error:
        cifar10(10, 0, str(tmp_path / "a.tar.gz"))
    assert len(str(error.value).splitlines()) == 1


def test_a_member_that_claims_more_than_it_may_have_is_refused(
    tmp_path: Path, batches: dict[str, bytes]
) -> None:
    entry = tarfile.TarInfo("data_batch_1.bin")
    entry.size = 1 << 40
    before = peak()
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        (tmp_path / "a.tar").write_bytes(entry.tobuf(form))
        with pytest.raises(UsageError, match=r"data_batch_1.bin has 1,099,511,627,776 bytes"):
            cifar10(10, 0, str(tmp_path / "a.tar"))
    assert peak() - before < 2**15


@pytest.mark.timeout(10)
def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar.gz")
    with pytest.raises(UsageError, match="not a regular file"):
        cifar10(10, 0, str(tmp_path / "a.tar.gz"))
    os.mkfifo(tmp_path / "data_batch_1.bin")
    for name in (
        "data_batch_2.bin",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin",
        "test_batch.bin",
    ):
        (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="not a regular file"):
        cifar10(10, 0, str(tmp_path))
    os.mkfifo(tmp_path / "a.zip")
    with pytest.raises(UsageError, match="not a regular file"):
        open_images(tmp_path / "a.zip")


def sampled(text: str) -> None:
    sample_surface(parse_off(text, "a.off"), 8, np.random.default_rng(0))


TRIANGLE = "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TRIANGLE.replace("3 0 1 2", f"3 0 1 {2**70}"), "a vertex that is not there"),
        (TRIANGLE.replace("3 0 1 2", "3 0 1 -1"), "a vertex that is not there"),
        (TRIANGLE.replace("3 0 1 2", "9 0 1 2"), "face 0 has 3 of 9 corners"),
        (TRIANGLE.replace("3 0 1 2", "-3 0 1 2"), "face 0 has 0 of -3 corners"),
        (TRIANGLE.replace("3 0 1 2", "3 0 1 " + "9" * 5000), "Exceeds the limit"),
        (TRIANGLE.replace("3 1 0", f"{10**12} 1 0"), "it ends before its 1000000000000 vertices"),
        (TRIANGLE.replace("3 1 0", f"3 {10**12} 0"), "it ends before its 3 vertices and 1000000000000 faces"),
        (TRIANGLE.replace("3 1 0", "-3 1 0"), "no numbers of vertices and faces"),
        (TRIANGLE.replace("3 1 0", "² 1 0"), "no numbers of vertices and faces"),
        (TRIANGLE.replace("1 0 0", "1e300 0 0"), "farther out than 1e"),
        (TRIANGLE.replace("1 0 0", "nan 0 0"), "not finite"),
        (TRIANGLE.replace("1 0 0", "1 0"), "vertex 1 has 2 coordinates"),
        (TRIANGLE.replace("1 0 0\n0 1 0", "1e-170 0 0\n0 1e-170 0"), "no surface"),
        ("OFF\n3 1 0\n" + "0" * (1 << 21), "a line of more than 1,048,576 characters"),
    ],
)
def test_numbers_out_of_range_in_meshes_are_told(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sampled(text)


def test_damaged_meshes_are_told() -> None:
    generator = random.Random(0)
    texts = [flipped(TRIANGLE.encode(), generator, 2).decode("utf-8", "replace") for _ in range(500)]
    refused = sum(bool(told(partial(sampled, text))) for text in texts)
    assert 100 < refused < 500  # another digit is another mesh


@pytest.fixture
def h5py() -> Any:
    return pytest.importorskip("h5py", reason="the extra hdf5 is not installed")


def data_in(file: Any, shape: tuple[int, ...] = (2, 16, 3), **options: Any) -> None:
    file.create_dataset("data", shape, np.float32, **options)
    file["label"] = np.zeros((2, 1), np.uint8)


def virtual(h5py: Any, file: Any) -> None:
    layout = h5py.VirtualLayout((2, 16, 3), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "data", (2, 16, 3))
    file.create_virtual_dataset("data", layout)
    file["label"] = np.zeros((2, 1), np.uint8)


def soft(h5py: Any, file: Any) -> None:
    data_in(file)
    file.move("data", "elsewhere")
    file["data"] = h5py.SoftLink("/elsewhere")


def linked(name: str) -> Callable[[Any, Any], None]:
    def make(h5py: Any, file: Any) -> None:
        data_in(file)
        del file[name]
        file[name] = h5py.ExternalLink("other.h5", f"/{name}")

    return make


def virtual_labels(h5py: Any, file: Any) -> None:
    layout = h5py.VirtualLayout((2, 1), np.uint8)
    layout[:] = h5py.VirtualSource("other.h5", "label", (2, 1))
    file.create_dataset("data", (2, 16, 3), np.float32)
    file.create_virtual_dataset("label", layout)


def special(name: str, *options: Any) -> Callable[[Any, Any], None]:
    def make(h5py: Any, file: Any) -> None:
        kind = getattr(h5py, name)
        typed(kind(*options) if options else kind)(h5py, file)

    return make


def group(h5py: Any, file: Any) -> None:
    file.create_group("data")
    file["label"] = np.zeros((2, 1), np.uint8)


def typed(dtype: Any) -> Callable[[Any, Any], None]:
    def make(h5py: Any, file: Any) -> None:
        file.create_dataset("data", (2, 16, 3), dtype)
        file["label"] = np.zeros((2, 1), np.uint8)

    return make


def labelled(labels: Any) -> Callable[[Any, Any], None]:
    def make(h5py: Any, file: Any) -> None:
        file.create_dataset("data", (2, 16, 3), np.float32)
        file["label"] = labels

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (virtual, "keeps 'data' in another file"),
        (lambda h5py, file: data_in(file, external=[("other.bin", 0, 384)]), "keeps 'data' in another file"),
        (soft, "keeps 'data' in another file"),
        (linked("data"), "keeps 'data' in another file"),
        (linked("label"), "keeps 'label' in another file"),
        (virtual_labels, "keeps 'label' in another file"),
        (special("ref_dtype"), "not numbers"),
        (special("vlen_dtype", np.float32), "not numbers"),
        (group, "'data' is not an array"),
        (
            lambda h5py, file: data_in(file, (10**7, 2048, 3), chunks=(1, 2048, 3)),
            "its arrays take 245,760,000,002",
        ),
        (
            lambda h5py, file: data_in(file, (2**40, 16, 3), chunks=(1, 16, 3), fillvalue=1.0),
            "its arrays take",
        ),
        (lambda h5py, file: data_in(file, (0, 16, 3)), r"holds clouds \(0, 16, 3\)"),
        (lambda h5py, file: data_in(file, (2, 8, 3)), r"not \[n, at least 16, 3\]"),
        (lambda h5py, file: data_in(file, ()), r"holds clouds \(\)"),
        (typed("S7"), "holds .*S7, not numbers"),
        (typed([("x", "<f4")]), "not numbers"),
        (typed(bool), "not numbers"),
        (labelled(np.array([1.0, 2.0])), "not whole numbers"),
        (labelled(np.array([1, 40])), "labels that are not 0 to 39"),
        (labelled(np.array([0, 2**64 - 1], np.uint64)), "labels that are not 0 to 39"),
        (labelled(np.zeros(3, np.uint8)), r"holds labels \(3,\)"),
    ],
)
def test_hostile_hdf5_files_are_told(h5py: Any, tmp_path: Path, make: Any, message: str) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        data_in(file)
    (tmp_path / "other.bin").write_bytes(bytes(384))
    before, before_children = peak(), peak_of_children()
    with h5py.File(tmp_path / "ply_data_train0.h5", "w") as file:
        make(h5py, file)
    with pytest.raises(UsageError, match=f"the HDF5 file .*train0.h5 cannot be read: .*{message}"):
        modelnet.read_hdf5(tmp_path, "train", 16)
    assert peak() - before < 2**15
    assert peak_of_children() <= max(before_children, 2**20)  # those of other tests may have taken more


def test_a_hdf5_file_that_ends_its_reader_is_told(h5py: Any, tmp_path: Path) -> None:
    path = tmp_path / "ply_data_train0.h5"
    with h5py.File(path, "w") as file:
        # A chunk of compressed zeros unfolds to more than the process may take.
        zeros = file.create_dataset("data", (2, 16, 3), np.float32, chunks=(2, 16, 3), compression="gzip")
        packer = zlib.compressobj()
        first = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
        block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
        bomb = first + 96 * block + packer.flush()
        zeros.id.write_direct_chunk((0, 0, 0), bomb)
        file["label"] = np.zeros((2, 1), np.uint8)
    with pytest.raises(UsageError, match=r"the HDF5 file .* cannot be read: "):
        modelnet.read_hdf5(tmp_path, "train", 16)


def test_a_cache_of_points_that_is_damaged_is_told(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for number in range(2):
            folder = tmp_path / "chair" / part
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.off").write_text(TRIANGLE)
    clouds, _ = modelnet.read_meshes(tmp_path, "train", 4, str(tmp_path / "cache"))
    (file,) = (tmp_path / "cache").iterdir()
    again, _ = modelnet.read_meshes(tmp_path, "train", 4, str(tmp_path / "cache"))
    np.testing.assert_array_equal(clouds, again)
    for content in (clouds[:1], clouds.astype(np.float64), np.full_like(clouds, np.nan)):
        np.save(file, content)
        with pytest.raises(UsageError, match="does not hold the points of these meshes; remove it"):
            modelnet.read_meshes(tmp_path, "train", 4, str(tmp_path / "cache"))
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UsageError, match=r"the cache of points .* cannot be read"):
        modelnet.read_meshes(tmp_path, "train", 4, str(tmp_path / "cache"))
