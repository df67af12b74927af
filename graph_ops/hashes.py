"""Telling models apart by their parameters, at the speed of memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["hash_contents", "hash_parameters"]

_ROW = 2**13  # bytes
_ROWS = 2**7


def hash_parameters(names: Iterable[str], read: Callable[[str], npt.NDArray]) -> str:
    """SHA-256 over name, type, shape and checksums of the named parameters, in name order.

    The ONNX graph and the torch module give the same hash when their parameters are equal. The checksums of
    a block are its sums along rows and along columns, as integers modulo 2^64: they see a change of any one
    value and any exchange of rows, which tells a retrained model from the one a plan was made for. They are
    no protection against forgery, and cost a tenth of the time of hashing all bytes, which on a large model
    would take longer than growing it.
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        content = _header(digest, name, read(name))
        whole = len(content) - len(content) % _ROW
        words = np.frombuffer(content[:whole], np.uint64).reshape(-1, _ROW // 8)
        for start in range(0, len(words), _ROWS):
            block = words[start : start + _ROWS]
            digest.update(np.add.reduce(block, axis=0).data)
            digest.update(np.add.reduce(block, axis=1).data)
        digest.update(content[whole:])
    return digest.hexdigest()


def hash_contents(names: Iterable[str], read: Callable[[str], npt.NDArray]) -> str:
    """SHA-256 over name, type, shape and bytes of the named tensors, in name order."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(_header(digest, name, read(name)))
    return digest.hexdigest()


def _header(digest: hashlib._Hash, name: str, array: npt.NDArray) -> memoryview:
    """Add what describes the tensor, and return its bytes."""
    digest.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
