"""Memory that the C library holds on to is given back if it is much."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from growpipe.analyser.curvature import heap

CPU = torch.device("cpu")


class Library:
    """glibc, and the memory of a process that has so much allocated, free and of others.

    As in glibc, free memory that was given back still counts as free.
    """

    def __init__(self, used: int, free: int, others: int) -> None:
        self.used, self.free, self.others = used, free, others
        self.trims = self.given = 0

    def mallinfo2(self) -> SimpleNamespace:
        return SimpleNamespace(uordblks=self.used, hblkhd=0, fordblks=self.free)

    def malloc_trim(self, pad: int) -> int:
        self.given, self.trims = self.free, self.trims + 1
        return 1

    def memory(self) -> int:
        return self.used + self.free - self.given + self.others


@pytest.mark.parametrize("others", [0, 10 * heap.ALLOWED])
def test_much_free_memory_is_given_back_once_and_little_is_kept(others: int) -> None:
    library = Library(used=heap.ALLOWED, free=heap.ALLOWED, others=others)
    own = heap.Heap(library, library.memory)
    own.give_back(heap.ALLOWED)
    assert library.trims == 0
    library.free += 1
    own.give_back(heap.ALLOWED)
    own.give_back(heap.ALLOWED)
    assert library.trims == 1
    # A pass takes some of what was given back, and frees it again.
    library.given -= heap.ALLOWED // 2
    own.give_back(heap.ALLOWED)
    assert library.trims == 1
    own.give_back(0)
    assert library.trims == 2
    library.free += 2 * heap.ALLOWED
    own.give_back(heap.ALLOWED)
    assert library.trims == 3


def test_memory_of_a_device_is_no_business_of_the_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(used=0, free=2 * heap.ALLOWED, others=0)
    monkeypatch.setattr(heap, "_heap", lambda: heap.Heap(library, library.memory))
    heap.give_back(torch.device("meta"))
    assert library.trims == 0
    heap.give_back(CPU)
    assert library.trims == 1


def test_a_c_library_without_such_functions_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(malloc_trim=SimpleNamespace())  # as glibc before 2.33, which has no mallinfo2
    for library in (SimpleNamespace(), other):
        monkeypatch.setattr(heap.ctypes, "CDLL", lambda name, library=library: library)
        heap._glibc.cache_clear()
        heap._heap.cache_clear()
        heap.give_back(CPU)  # would call what is not there
        assert heap._heap() is None
    heap._glibc.cache_clear()
    heap._heap.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is the C library of Linux")
def test_glibc_tells_what_is_used_and_free() -> None:
    library = heap._glibc()
    if library is None:
        pytest.skip("a glibc before 2.33, or another C library")
    told = library.mallinfo2()
    held = bytearray(100_000)  # below glibc's least threshold of mapping
    more = library.mallinfo2()
    assert told.uordblks > 0
    assert more.uordblks + more.fordblks == more.arena
    assert len(held) <= more.uordblks


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the memory of a process")
def test_the_memory_of_the_process_is_what_it_has_written_to() -> None:
    before = heap._own_memory()
    held = bytearray(b"x" * 50_000_000)
    assert 45_000_000 < heap._own_memory() - before < 120_000_000
    assert len(held) == 50_000_000
