"""Messages between the tool and the child process that runs models: JSON and raw arrays, never pickle.

A message is an 8-byte length, a JSON document of that length, and the bytes of the arrays that the document
describes under ``arrays``, in order. What the child says is data from a process that ran a foreign model:
everything is bounded and checked when it is read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BrokenPipeMessage", "pack", "read_message"]

MAX_DOCUMENT = 64 * 2**20
MAX_ARRAYS = 16 * 2**30


class BrokenPipeMessage(Exception):
    """The other side ended in the middle of a message, or sent something that is none."""


def pack(document: Mapping[str, Any], arrays: Mapping[str, npt.NDArray] | None = None) -> list[bytes]:
    """The parts of a message, to be written one after the other."""
    described = []
    payload = []
    for name, array in (arrays or {}).items():
        if array.dtype.kind in "OUST":  # strings, of any of numpy's kinds
            texts = [x.decode("utf-8", "replace") if isinstance(x, bytes) else str(x) for x in array.flat]
            described.append({"name": name, "shape": list(array.shape), "strings": texts})
            continue
        if array.dtype.kind == "V":  # bfloat16 and its like have no name that numpy alone could read back
            array = array.astype(np.float32)
        described.append({"name": name, "shape": list(array.shape), "dtype": array.dtype.str})
        payload.append(np.ascontiguousarray(array).tobytes())
    body = json.dumps({**document, "arrays": described}).encode()
    return [struct.pack("<Q", len(body)), body, *payload]


def read_message(read: Callable[[int], bytes]) -> tuple[dict[str, Any], dict[str, npt.NDArray]]:
    """The next message.

    Args:
        read: gives exactly that many bytes, or fewer at the end of the stream.

    Raises:
        BrokenPipeMessage: the stream ended or holds no message.
    """
    (length,) = struct.unpack("<Q", _exactly(read, 8))
    if length > MAX_DOCUMENT:
        raise BrokenPipeMessage(f"a message of {length} bytes")
    try:
        document = json.loads(_exactly(read, length))
        described = document.pop("arrays")
        arrays: dict[str, npt.NDArray] = {}
        for entry in described:
            shape = tuple(int(n) for n in entry["shape"])
            if "strings" in entry:
                arrays[entry["name"]] = np.array(entry["strings"], dtype=object).reshape(shape)
                continue
            dtype = np.dtype(entry["dtype"])
            if dtype.hasobject or any(n < 0 for n in shape):
                raise ValueError("not an array of numbers")
            size = dtype.itemsize * int(np.prod(shape, dtype=object))
            if size > MAX_ARRAYS:
                raise ValueError(f"an array of {size} bytes")
            arrays[entry["name"]] = np.frombuffer(_exactly(read, size), dtype).reshape(shape)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BrokenPipeMessage(f"not a message: {error}") from None
    return document, arrays


def _exactly(read: Callable[[int], bytes], length: int) -> bytes:
    data = read(length)
    if len(data) != length:
        raise BrokenPipeMessage("the stream ended within a message")
    return data
