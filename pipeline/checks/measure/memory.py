"""How much memory arrays take, and how much of it there is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy.typing as npt

from growpipe.graph_ops.errors import CheckFailed

__all__ = ["MemoryRoom", "bytes_of", "child_memory_mb", "in_words"]

PARENT_SHARE = 0.25
"""Of limits.memory_mb, for the arrays of this process. The process that runs models has the rest."""


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
            CheckFailed: there is less room left.
        """
        self.require(count, what)
        self.left -= count

    def require(self, count: int, what: str) -> None:
        """Refuse arrays for which there is no room; they are given up again soon.

        Raises:
            CheckFailed: there is less room left.
        """
        if count > self.left:
            raise CheckFailed(
                f"{what} need {in_words(count)}; limits.memory_mb = {self.memory_mb} leaves "
                f"{in_words(self.left)} for them: raise it, or give smaller inputs with --data"
            )


def child_memory_mb(memory_mb: int) -> int:
    """The part of a limit that the process which runs models may use, in MiB."""
    return max(1, memory_mb - int(PARENT_SHARE * memory_mb))


def bytes_of(arrays: Mapping[str, npt.NDArray]) -> int:
    """How much memory the arrays take; a text counts as its characters."""
    return sum(a.nbytes if a.dtype.kind != "O" else sum(len(str(x)) for x in a.flat) for a in arrays.values())


def in_words(count: int) -> str:
    """A number of bytes as people say it."""
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"
