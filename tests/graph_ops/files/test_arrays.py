"""NumPy's files of strangers: sizes known before they are read, checksums compared, plain arrays alone."""

from __future__ import annotations

import io
import os
import resource
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.arrays import read_npy, read_npz


def npy(array: npt.NDArray, **header: Any) -> bytes:
    """The bytes of an ``.npy`` file, whose header may lie."""
    content = io.BytesIO()
    if header:
        described = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | header
        np.lib.format.write_array_header_1_0(content, described)
        content.write(array.tobytes())
    else:
        np.save(content, array)
    return content.getvalue()


def archive(path: Path, compression: int = zipfile.ZIP_DEFLATED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


ARRAYS = {
    "x": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "text": np.array(["ä", "bc"]),
    "flags": np.array([True, False]),
    "big": np.arange(3, dtype=">i4"),
    "number": np.float64(3.5),
    "empty": np.zeros((0, 7), np.int64),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_as_they_were_saved(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", **ARRAYS)
    read = read_npz(tmp_path / "a.npz", "the data")
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype.isnative
    np.save(tmp_path / "a.npy", ARRAYS["columns"])
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy", "the data"), ARRAYS["columns"])


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_one_flipped_byte_is_told_in_every_compression(tmp_path: Path, method: int) -> None:
    array = np.random.default_rng(0).integers(0, 9, 4000)
    path = archive(tmp_path / "a.npz", method, x=npy(array))
    content = path.read_bytes()
    for position in range(60, len(content) - 100, len(content) // 40):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        with pytest.raises(UsageError, match=r"^the data .*a\.npz cannot be read: "):
            read_npz(path, "the data")


def test_cut_archives_are_told_at_every_length(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", x=npy(np.arange(100)))
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(UsageError, match=r"^the data .*a\.npz cannot be read: "):
            read_npz(path, "the data")


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy(np.zeros(3), shape=(2**43,)), r"'x' has the shape \(8796093022208,\) of float64, but only"),
        (npy(np.zeros(3), shape=(2**40, 2**40)), "'x' has the shape"),
        (npy(np.zeros(3), shape=(-3,)), "impossible shape"),
        (npy(np.zeros(3), shape=(2,)), "goes on after its last number"),
        (npy(np.zeros(3), shape=("a",)), "shape is not valid"),
        (npy(np.zeros(3), descr="|O"), "holds object, not numbers"),
        (npy(np.zeros(3), descr="<M8[s]"), "holds datetime64"),
        (npy(np.zeros(3), descr=[("a", "<f8")]), "not numbers, booleans or text"),
        (npy(np.zeros(3), descr="|S0", shape=(2**50,)), "not numbers, booleans or text"),
        (npy(np.zeros(3), descr="nonsense"), "descr is not a valid dtype"),
        (npy(np.array([2], np.uint8), descr="|b1"), "not booleans"),
        (npy(np.array([2**31], np.uint32), descr="<U1"), "not Unicode"),
        (b"\x93NUMPY\x09\x00", "unknown format version"),
        (b"no array", "magic string is not correct"),
        (b"", "EOF"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "."),
    ],
)
def test_members_that_are_no_plain_arrays_are_told(tmp_path: Path, member: bytes, message: str) -> None:
    path = archive(tmp_path / "a.npz", x=member)
    with pytest.raises(UsageError, match=f"^the data .*a.npz cannot be read: .*{message}") as told:
        read_npz(path, "the data")
    assert len(str(told.value).splitlines()) == 1


def test_what_unfolds_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", x=npy(np.zeros(2**22)))
    assert path.stat().st_size < 100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match=r"its arrays take 33,554,\d+ bytes; at most 33,554,432 are read"):
        read_npz(path, "the data", most=2**25)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**13  # KiB
    assert read_npz(path, "the data")["x"].nbytes == 2**25


def test_faults_of_the_archive_are_told(tmp_path: Path) -> None:
    np.save(tmp_path / "single.npz", np.zeros(3))
    os.replace(tmp_path / "single.npz.npy", tmp_path / "single.npz")
    with pytest.raises(UsageError, match=r"single array; save it by name with numpy.savez"):
        read_npz(tmp_path / "single.npz", "the data")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("notes.txt", "x")
    with pytest.raises(UsageError, match=r"'notes.txt' is not an array"):
        read_npz(tmp_path / "a.npz", "the data")
    path = archive(tmp_path / "b.npz", x=npy(np.zeros(1)), y=npy(np.zeros(1)))
    path.write_bytes(path.read_bytes().replace(b"y.npy", b"x.npy"))
    with pytest.raises(UsageError, match="there twice"):
        read_npz(tmp_path / "b.npz", "the data")
    path = archive(tmp_path / "c.npz", x=npy(np.zeros(4)))
    content = bytearray(path.read_bytes())
    for header in (b"PK\x03\x04", b"PK\x01\x02"):
        content[content.find(header) + (6 if header[2] == 3 else 8)] |= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UsageError, match="encrypted"):
        read_npz(path, "the data")
