"""One growpipe at a time works on a run directory; a command takes the lock before it imports torch."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from growpipe.graph_ops.errors import UsageError

__all__ = ["LOCK_FILE", "hold"]

LOCK_FILE = ".lock"

_held: set[str] = set()  # the directories that this process holds


@contextlib.contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Hold a run directory against other processes. Within the same process it may be held again.

    The lock file is empty and stays: only the kernel's lock on it counts, which ends with the process.

    Raises:
        UsageError: another process holds the directory, or its lock file is a link or no regular file.
        OSError: the directory cannot be written.
    """
    place = os.path.realpath(directory)
    if place in _held:
        yield
        return
    lock = _open(directory / LOCK_FILE)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another growpipe is working on {directory}; wait for it or stop it") from None
        _held.add(place)
        yield
    finally:
        _held.discard(place)
        os.close(lock)


def _open(path: Path) -> int:
    # Neither followed nor emptied: the directory, and so the file, may be somebody else's.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(f"{path} is a symbolic link; remove it") from None
        if error.errno == errno.EISDIR:
            raise UsageError(f"{path} is a folder; remove it") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"{path} is not a regular file; remove it")
    return descriptor
