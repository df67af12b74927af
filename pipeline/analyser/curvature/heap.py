"""Free memory that the C library holds on to."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch

__all__ = ["give_back"]

ALLOWED = 2**28
"""Bytes that may lie free: to give them back takes time, as the next tensors are given new ones."""


def give_back(device: torch.device) -> None:
    """Give the system what is free between tensors on the CPU, if it is much and the C library can do so.

    A pass over a network frees most of what it takes. What is kept lies in between, and leaves no room there
    for larger tensors of the next pass: without this, every pass adds to the memory of the process.
    """
    if device.type != "cpu":
        return
    library = _glibc()
    if library is not None and library.mallinfo2().fordblks > ALLOWED:
        library.malloc_trim(0)


class _Allocations(ctypes.Structure):
    """``struct mallinfo2`` of glibc; ``fordblks`` is the number of bytes that are free and held."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
            "keepcost",
        )
    ]  # fmt: skip


@cache
def _glibc() -> Any:
    """glibc from 2.33 on; None if the C library is another one."""
    try:
        library = ctypes.CDLL(None)
        library.malloc_trim.argtypes = [ctypes.c_size_t]
        library.mallinfo2.restype = _Allocations
    except (OSError, TypeError, AttributeError):
        return None
    return library
