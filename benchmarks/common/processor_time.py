"""Processor time of a process and its children: the same on a busy machine as on a quiet one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["children", "processor_seconds"]

_TICKS = os.sysconf("SC_CLK_TCK")


def processor_seconds(process: int | None = None) -> float:
    """The time that a process, its living descendants and its ended children have had a processor.

    Args:
        process: its number; None for this process.
    """
    return sum(map(_own_seconds, _family(os.getpid() if process is None else process)))


def children(process: int) -> list[int]:
    """The numbers of the living children of a process."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return found


def _family(process: int) -> Iterator[int]:
    yield process
    for child in children(process):
        yield from _family(child)


def _own_seconds(process: int) -> float:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return 0.0  # it has just ended, and is among what its parent has waited for
    # The name of the program stands in parentheses and may hold spaces.
    fields = stat.rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS
