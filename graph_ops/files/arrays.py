"""NumPy's files that may be anybody's: what an array takes is known from its header before it is read."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np

from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.reading import Place, limited, one_line, opened, reading

__all__ = ["MAX_ARRAYS", "read_npy", "read_npz"]

MAX_ARRAYS = 1 << 30
"""Bytes of all arrays of one file."""

_LAST_CHARACTER = 0x10FFFF
_MAX_MEMBERS = 10_000
_MAX_READ = 16 << 20  # one read of numpy's takes 256 KiB; the directory of 10,000 members about 2 MiB
_HEADERS: Mapping[tuple[int, int], Callable[[BinaryIO], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = (
    MappingProxyType(
        {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    )
)


def read_npz(path: Place, what: str, *, most: int = MAX_ARRAYS) -> dict[str, AnyArray]:
    """Read the arrays of an ``.npz`` file by name: numbers, booleans and text.

    Every member is read to its end, so that its checksum is compared.

    Args:
        path: what `numpy.savez` or `numpy.savez_compressed` wrote.
        what: the kind of file, for the message.
        most: the most bytes that all arrays may take together.

    Raises:
        MissingFile: there is no such file.
        UsageError: it is not such a file, is damaged, holds something else than plain arrays, or more than
            ``most`` bytes of them.
    """
    with reading(what, path), opened(path, most=most) as file:
        if file.read(6) == np.lib.format.MAGIC_PREFIX:
            raise UsageError("it is a single array; save it by name with numpy.savez")
        with zipfile.ZipFile(limited(file, once=_MAX_READ)) as archive:
            members = archive.infolist()
            if len(members) > _MAX_MEMBERS:
                raise UsageError(f"it has {len(members):,} members; at most {_MAX_MEMBERS:,} are read")
            size = sum(member.file_size for member in members)
            if size > most:
                raise UsageError(f"its arrays take {size:,} bytes; at most {most:,} are read")
            arrays = {}
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name == member.filename or name in arrays:
                    shown = one_line(member.filename, 80)
                    raise UsageError(f"its member {shown!r} is not an array, or is there twice")
                with archive.open(member) as content:
                    arrays[name] = _array(content, member.file_size, one_line(name, 80))  # type: ignore[arg-type]
            return arrays


def read_npy(path: Place, what: str, *, most: int = MAX_ARRAYS) -> AnyArray:
    """Read a single array that `numpy.save` wrote; arguments and errors as of `read_npz`."""
    with reading(what, path), opened(path, most=most) as file:
        size = file.seek(0, 2)
        file.seek(0)
        return _array(file, size, "array")


def _array(file: BinaryIO, size: int, name: str) -> AnyArray:
    """The array in ``file``, which has ``size`` bytes from its magic number to its end."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise UsageError(f"{name!r} has the unknown format version {version}")
    shape, by_column, dtype = _HEADERS[version](file)
    if dtype.kind not in "biufcUS" or dtype.itemsize == 0:
        raise UsageError(f"{name!r} holds {dtype}, not numbers, booleans or text")
    if any(length < 0 for length in shape):
        raise UsageError(f"{name!r} has the impossible shape {shape}")
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > size:
        raise UsageError(f"{name!r} has the shape {shape} of {dtype}, but only {size:,} bytes")
    flat = np.empty(math.prod(shape), dtype)
    view = flat.view(np.uint8)
    done = 0
    while done < nbytes:
        content = file.read(min(nbytes - done, 1 << 20))
        if not content:
            raise UsageError(f"{name!r} ends after {done:,} of {nbytes:,} bytes")
        view[done : done + len(content)] = np.frombuffer(content, np.uint8)
        done += len(content)
    if file.read(1):  # a zip compares its checksum at the end
        raise UsageError(f"{name!r} goes on after its last number")
    if dtype.kind == "b" and flat.size and flat.view(np.uint8).max() > 1:
        raise UsageError(f"{name!r} holds bytes that are not booleans")
    native = flat.astype(dtype.newbyteorder("="), copy=False)
    if dtype.kind == "U" and flat.size and native.view(np.uint32).max() > _LAST_CHARACTER:
        raise UsageError(f"{name!r} holds text that is not Unicode")
    return native.reshape(shape, order="F" if by_column else "C")
