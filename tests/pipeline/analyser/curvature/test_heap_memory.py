"""Memory that the C library holds on to is given back if it is much."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from growpipe.analyser.curvature import heap

CPU = torch.device("cpu")


class Library:
    """glibc with so many free bytes; every trim frees them."""

    def __init__(self, free: int) -> None:
        self.free, self.trims = free, 0

    def mallinfo2(self) -> SimpleNamespace:
        return SimpleNamespace(fordblks=self.free)

    def malloc_trim(self, pad: int) -> int:
        self.free, self.trims = pad, self.trims + 1
        return 1


def test_much_free_memory_is_given_back_once_and_little_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    much, little = Library(heap.ALLOWED + 1), Library(heap.ALLOWED)
    for library in (much, little):
        monkeypatch.setattr(heap, "_glibc", lambda library=library: library)
        heap.give_back(CPU)
        heap.give_back(CPU)
    assert (much.trims, little.trims) == (1, 0)
    elsewhere = Library(2 * heap.ALLOWED)
    monkeypatch.setattr(heap, "_glibc", lambda: elsewhere)
    heap.give_back(torch.device("meta"))
    assert elsewhere.trims == 0


def test_a_c_library_without_such_functions_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(malloc_trim=SimpleNamespace())  # as glibc before 2.33, which has no mallinfo2
    for library in (SimpleNamespace(), other):
        monkeypatch.setattr(heap.ctypes, "CDLL", lambda name, library=library: library)
        heap._glibc.cache_clear()
        heap.give_back(CPU)  # would call what is not there
        assert heap._glibc() is None
    heap._glibc.cache_clear()


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
