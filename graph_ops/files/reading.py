"""The border for reading: every file that growpipe reads is opened here.

A file may be anybody's. So it is opened only if it is a regular file of a sane size (a named pipe would make
us wait, a device never ends), and whatever a library raises on its content becomes one line that names the
file. `documents`, `arrays` and `load_save` build on it; a test refuses any other way to open a file.

    with reading("the mesh", path), opened(path, most=MAX_FILE) as file:
        ...   # an exception of any kind becomes "the mesh /data/a.off cannot be read: ..."
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from growpipe.graph_ops.errors import GrowpipeError, UsageError

__all__ = [
    "LimitedReader",
    "MissingFile",
    "Place",
    "hash_file",
    "limited",
    "one_line",
    "opened",
    "read_bytes",
    "read_text",
    "reading",
]

Place = str | os.PathLike[str]

# Non-blocking: opening a named pipe must not wait for somebody who writes to it.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


_MOST_TEXT = 1000
"""Characters of a message about a file."""


class MissingFile(UsageError):
    """There is no file of that name."""


@contextlib.contextmanager
def reading(what: str, path: Place, *, error: type[GrowpipeError] = UsageError) -> Iterator[None]:
    """Turn whatever is raised inside into one line of bounded length that names the file.

    Args:
        what: the kind of file, for the message, such as ``"the policy"``.
        path: the file or folder that is read.
        error: the class of the error raised.

    Raises:
        MissingFile: a file is not there, and ``error`` is `UsageError`.
        GrowpipeError: of the class ``error``, for every other exception; a GrowpipeError keeps its class.
    """
    place = os.fspath(path)
    try:
        yield
    except GrowpipeError as fault:
        text = one_line(fault, _MOST_TEXT)  # it may show what the file holds
        if place in text:
            raise type(fault)(text) from None
        raise type(fault)(f"{what} {place} cannot be read: {text}") from None
    except (FileNotFoundError, NotADirectoryError) as fault:
        kind = MissingFile if error is UsageError else error
        raise kind(f"{what} {place} cannot be read: {_reason(fault)}") from None
    except Exception as fault:
        # The libraries that parse a stranger's bytes raise what they like, each its own classes.
        raise error(f"{what} {place} cannot be read: {_reason(fault)}") from None


def one_line(text: object, most: int = 200) -> str:
    """A text of a library in one printable line of bounded length."""
    words = " ".join(str(text)[: 8 * most].split())
    line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)
    return line if len(line) <= most else line[: most - 1] + "…"


def _reason(fault: Exception) -> str:
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror
    if isinstance(fault, RecursionError):
        return "it is nested too deeply"
    if isinstance(fault, MemoryError):
        return "it needs more memory than there is"
    if isinstance(fault, KeyError):
        return f"it lacks {one_line(fault)}"
    return one_line(fault) or type(fault).__name__


@contextlib.contextmanager
def opened(path: Place, *, most: int, inside: Place | None = None) -> Iterator[BinaryIO]:
    """Open a regular file. Use it within `reading`.

    Args:
        path: the file.
        most: the most bytes that it may have.
        inside: the folder, perhaps a stranger's, in which ``path`` lies: below it no symbolic link is
            followed, so that the file cannot lie elsewhere. None follows links.

    Raises:
        UsageError: it is not a regular file, has more than ``most`` bytes, or is reached by a link.
        OSError: it is not there, or may not be read.
    """
    descriptor = os.open(path, _FLAGS) if inside is None else _open_inside(Path(path), Path(inside))
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise UsageError("it is not a regular file")
        if status.st_size > most:
            raise UsageError(f"it has {status.st_size:,} bytes; at most {most:,} are read")
        yield file


def _open_inside(path: Path, inside: Path) -> int:
    """Open ``path``, walking down from ``inside`` without following a link."""
    *folders, name = path.relative_to(inside).parts
    with contextlib.ExitStack() as stack:
        where = os.open(inside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, where)
        for part in folders:
            where = _step(part, _FOLDER, where)
            stack.callback(os.close, where)
        return _step(name, _FLAGS | os.O_NOFOLLOW, where)


def _step(name: str, flags: int, where: int) -> int:
    if name == "..":
        raise UsageError("its path leads out of the folder")
    try:
        return os.open(name, flags, dir_fd=where)
    except OSError as fault:
        # Linux says "too many links" or "not a directory" for a link that is not followed.
        if fault.errno in (errno.ELOOP, errno.ENOTDIR) and stat.S_ISLNK(
            os.stat(name, dir_fd=where, follow_symlinks=False).st_mode
        ):
            raise UsageError(f"{name!r} is a symbolic link, which is not followed there") from None
        raise


def read_bytes(path: Place, what: str, *, most: int, inside: Place | None = None) -> bytes:
    """The content of a regular file; see `opened` and `reading` for the arguments and the errors."""
    with reading(what, path), opened(path, most=most, inside=inside) as file:
        content = file.read(most + 1)
        if len(content) > most:  # it grew since, or is of a file system that tells no sizes
            raise UsageError(f"it has more than {most:,} bytes")
        return content


def read_text(path: Place, what: str, *, most: int, inside: Place | None = None) -> str:
    """The content of a UTF-8 text file; see `opened` and `reading` for the arguments and the errors."""
    content = read_bytes(path, what, most=most, inside=inside)
    with reading(what, path):
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise UsageError("it is not UTF-8 text") from None


def hash_file(path: Place, *, inside: Place | None = None) -> str:
    """SHA-256 of a regular file; see `opened` for ``inside``.

    Raises:
        UsageError: it cannot be read.
    """
    with reading("the file", path), opened(path, most=2**63, inside=inside) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


_READS_BEYOND = 100
"""How often a file may be read at its end: what reads on is lost in what a damaged header announces."""


class LimitedReader(io.RawIOBase):
    """A binary file of which no more than so many bytes are ever read, in all or at once.

    Libraries that unpack archives read as much as the archive tells them to, some of them beyond the end of
    the file, block by block.

    Args:
        file: what is read.
        total: the most bytes in all; None for any number.
        once: the most bytes that one call may ask for; None for any number.

    Raises:
        UsageError: on reading more, or at the end of the file again and again.
    """

    def __init__(self, file: BinaryIO, *, total: int | None = None, once: int | None = None) -> None:
        self._file, self._total, self._once = file, total, once
        self._seen = self._beyond = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int | None = -1) -> bytes:
        most = [limit for limit in (self._once, self._total) if limit is not None]
        if size is None or size < 0:
            size = min(most, default=2**62) + 1
        elif self._once is not None and size > self._once:
            raise UsageError(f"it asks for {size:,} bytes at once; at most {self._once:,} are read")
        if self._total is not None:
            size = min(size, self._total - self._seen + 1)
        content = self._file.read(size)
        self._seen += len(content)
        self._beyond += bool(size) and not content
        if self._beyond > _READS_BEYOND:
            raise UsageError("it ends before what it announces")
        if self._total is not None and self._seen > self._total:
            raise UsageError(f"it unpacks to more than {self._total:,} bytes")
        if self._once is not None and len(content) > self._once:
            raise UsageError(f"it has more than {self._once:,} bytes")
        return content

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def limited(file: BinaryIO, *, total: int | None = None, once: int | None = None) -> BinaryIO:
    """`LimitedReader` as the type that libraries take."""
    return LimitedReader(file, total=total, once=once)  # type: ignore[return-value]
