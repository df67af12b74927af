"""Memory that is free and still held by the process."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

__all__ = ["give_back"]


def give_back() -> None:
    """Give the memory of freed tensors back to the system.

    glibc keeps what lies between blocks that are still in use, and tensors of up to 32 MiB lie there.
    Products need activations and vectors in turn, of different sizes, so that a fifth of the process may be
    such gaps. With another C library nothing is done.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    """``malloc_trim`` of glibc; None if the C library has no such function."""
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):
        return None
    return found
