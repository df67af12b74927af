"""Messages between the tool and the child process that runs models: JSON and raw arrays, never pickle.

A message is a frame (kind, length, content) whose content is a JSON document, and then the bytes of the
arrays that the document describes under ``arrays``, in order. What the child says is data from a process that
ran a foreign model: everything is bounded before it is allocated, and checked when it is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from growpipe.checks.measure.memory import in_words
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.onnx_tools.process_main import HEADER

__all__ = ["Arrays", "NotAMessage", "Source", "TooLarge", "pack", "read_message"]

Arrays = Mapping[str, AnyArray]

MAX_DOCUMENT = 64 * 2**20
_KIND = b"m"


class NotAMessage(Exception):
    """The other side sent something that is not a message."""


class TooLarge(Exception):
    """The arrays of a message need more room than there is.

    Attributes:
        needed: bytes of all arrays of the message.
    """

    def __init__(self, needed: int) -> None:
        super().__init__(f"arrays of {in_words(needed)}")
        self.needed = needed


class Source(Protocol):
    """Where messages come from; both methods raise an error of their own at the end of the stream."""

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes."""

    def read_into(self, view: memoryview) -> None:
        """Fill ``view``."""


def pack(document: Mapping[str, Any], arrays: Arrays | None = None) -> list[bytes | memoryview]:
    """The parts of a message, to be written one after the other; large arrays are not copied."""
    described: list[dict[str, Any]] = []
    payload: list[bytes | memoryview] = []
    for name, array in (arrays or {}).items():
        if array.dtype.kind in "OUST":  # strings, of any of numpy's kinds
            texts = [x.decode("utf-8", "replace") if isinstance(x, bytes) else str(x) for x in array.flat]
            described.append({"name": name, "shape": list(array.shape), "strings": texts})
            continue
        if array.dtype.kind == "V":  # bfloat16 and its like have no name that numpy alone could read back
            array = array.astype(np.float32)
        described.append({"name": name, "shape": list(array.shape), "dtype": array.dtype.str})
        if array.size:
            payload.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    body = json.dumps({**document, "arrays": described}).encode()
    return [HEADER.pack(_KIND, len(body)) + body, *payload]


def read_message(source: Source, room: int) -> tuple[dict[str, Any], dict[str, AnyArray]]:
    """The next message.

    Args:
        source: the stream.
        room: bytes that the arrays may take.

    Raises:
        NotAMessage: the stream holds something else.
        TooLarge: the arrays need more than ``room``; they are still in the stream.
    """
    kind, length = HEADER.unpack(source.read(HEADER.size))
    if kind != _KIND or length > MAX_DOCUMENT:
        raise NotAMessage(f"a frame of kind {kind!r} and {length} bytes")
    try:
        document = json.loads(source.read(length))
        described = [_Described(**entry) for entry in document.pop("arrays")]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise NotAMessage(str(error)) from None
    needed = sum(entry.bytes for entry in described)
    if needed > room:
        raise TooLarge(needed)
    return document, {entry.name: entry.read(source) for entry in described}


class _Described:
    """An array as a message describes it, checked."""

    def __init__(
        self, name: str, shape: list[int], dtype: str | None = None, strings: list[str] | None = None
    ) -> None:
        self.name = str(name)
        self.shape = tuple(int(n) for n in shape)
        self.strings = strings
        self.dtype = np.dtype(object if dtype is None else dtype)
        if any(n < 0 for n in self.shape) or (strings is None) == self.dtype.hasobject:
            raise ValueError(f"the array {name!r} is neither numbers nor texts")
        if strings is not None and len(strings) != math.prod(self.shape):
            raise ValueError(f"{len(strings)} texts for the shape {self.shape}")

    @property
    def bytes(self) -> int:
        return 0 if self.strings is not None else self.dtype.itemsize * math.prod(self.shape)

    def read(self, source: Source) -> AnyArray:
        if self.strings is not None:
            return np.array(self.strings, dtype=object).reshape(self.shape)
        array = np.empty(self.shape, self.dtype)
        if array.size:
            source.read_into(array.reshape(-1).view(np.uint8).data)
        return array
