"""Free memory that the C library holds on to."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["Heap", "give_back"]

ALLOWED = 2**27
"""Bytes that may lie free: to give them back takes time, as the next tensors are given new ones."""


def give_back(device: torch.device, allowed: int = ALLOWED) -> None:
    """Give the system what is free between tensors on the CPU, if it is much and the C library can do so.

    A pass over a network frees most of what it takes. What is kept lies in between, and leaves no room there
    for larger tensors of the next pass: without this, every pass adds to the memory of the process.

    Args:
        device: where the tensors are.
        allowed: the bytes that may lie free.
    """
    heap = _heap()
    if device.type == "cpu" and heap is not None:
        heap.give_back(allowed)


class Heap:
    """The memory of the process, as the system and glibc see it.

    glibc counts as free what it has given back, too. So what can be given back is found from the memory that
    the process has: less what is allocated, and less what was left the last time.

    Args:
        library: glibc.
        memory: tells the bytes of memory that the process has for itself.
    """

    def __init__(self, library: Any, memory: Callable[[], int]) -> None:
        self._library, self._memory = library, memory
        self._left: int | None = None

    def give_back(self, allowed: int) -> None:
        """Give the system what is free, if it is more than the allowed bytes."""
        free = self._unallocated()
        if self._left is None:
            free = min(free, self._library.mallinfo2().fordblks)
        else:
            self._left = min(self._left, free)
            free -= self._left
        if free > allowed:
            self._library.malloc_trim(0)
            self._left = self._unallocated()

    def _unallocated(self) -> int:
        """The memory of the process that glibc has not allocated: what is free, and what others have."""
        known = self._library.mallinfo2()
        return self._memory() - int(known.uordblks + known.hblkhd)


class _Allocations(ctypes.Structure):
    """``struct mallinfo2`` of glibc.

    ``fordblks`` is the number of bytes that are free, ``uordblks`` and ``hblkhd`` those that are allocated.
    """

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
            "keepcost",
        )
    ]  # fmt: skip


@cache
def _heap() -> Heap | None:
    """That of this process; None if the C library is not glibc from 2.33 on, or the system not Linux."""
    library = _glibc()
    if library is None or not _STATM.exists():
        return None
    return Heap(library, _own_memory)


_STATM = Path("/proc/self/statm")


def _own_memory() -> int:
    """The resident bytes of the process that are no file's."""
    _, resident, of_files, *_ = map(int, _STATM.read_text().split())
    return (resident - of_files) * os.sysconf("SC_PAGE_SIZE")


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
