"""How much memory arrays take, and how much of it there is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from growpipe.graph_ops.errors import CheckFailed

if TYPE_CHECKING:  # a policy is read without numpy
    from growpipe.graph_ops.arrays import AnyArray
__all__ = ["MemoryRoom", "NotEnoughRoom", "bytes_of", "child_memory_mb", "default_memory_mb", "in_words"]

MOST_MB = 16384
PARENT_SHARE = 0.25
"""Of limits.memory_mb, for the arrays of this process. The process that runs models has the rest."""


class NotEnoughRoom(CheckFailed):
    """Arrays need more memory than limits.memory_mb leaves for them."""


class MemoryRoom:
    """The memory that the arrays of this process may take, during the checks of one model.

    Args:
        memory_mb: limit in MiB for this process's arrays and the process that runs models together.

    Attributes:
        left: bytes that are still free.
    """

    def __init__(self, memory_mb: int) -> None:
        self.memory_mb = memory_mb
        self.left = int(PARENT_SHARE * memory_mb * 2**20)

    def reserve(self, count: int, what: str) -> None:
        """Take room for arrays that stay.

        Args:
            count: bytes.
            what: what needs them, for the message.

        Raises:
            NotEnoughRoom: there is less room left.
        """
        self.require(count, what)
        self.left -= count

    def require(self, count: int, what: str) -> None:
        """Refuse arrays for which there is no room; they are given up again soon.

        Raises:
            NotEnoughRoom: there is less room left.
        """
        if count > self.left:
            raise NotEnoughRoom(
                f"{what} need {in_words(count)}; limits.memory_mb = {self.memory_mb} leaves "
                f"{in_words(self.left)} for them: raise it, or give smaller inputs with --data"
            )


def default_memory_mb() -> int:
    """Half of the machine's memory in MiB, at most `MOST_MB`."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return MOST_MB
    return max(1, min(MOST_MB, total // 2**21))


def child_memory_mb(memory_mb: int) -> int:
    """The part of a limit that the process which runs models may use, in MiB."""
    return max(1, memory_mb - int(PARENT_SHARE * memory_mb))


def bytes_of(arrays: Mapping[str, AnyArray]) -> int:
    """How much memory the arrays take; a text counts as its characters."""
    return sum(a.nbytes if a.dtype.kind != "O" else sum(len(str(x)) for x in a.flat) for a in arrays.values())


def in_words(count: int) -> str:
    """A number of bytes as people say it."""
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"
