"""Writing: a file or folder appears whole or not at all, and files of other programs are never removed.

Everything is written into a staging folder beside the target (``.growpipe-…``) and renamed at the end. The
writer holds a lock on its staging folder; the kernel drops the lock if the writer is killed, and the next
writer in the same place removes what was left, or puts back the folder that was about to be replaced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath

from growpipe.graph_ops.errors import UsageError

__all__ = [
    "STAGING",
    "check_file_target",
    "check_folder_target",
    "check_not_read",
    "publish_file",
    "publish_folder",
    "settle",
    "staging_folder",
    "sweep",
    "write_bytes",
    "write_text",
]

STAGING = ".growpipe-"
"""The names of staging folders begin with this."""

_NEW, _OLD = "new", "old"
_SHOWN = 3
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Owned = Callable[[Path], Collection[str]]
"""The names of the files that growpipe wrote into a folder, with ``/`` between folders; empty if the folder
is not one of growpipe's."""


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all; see `publish_file`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all; see `publish_file`."""
    with publish_file(path) as staged:
        staged.write_bytes(data)


@contextlib.contextmanager
def publish_file(path: Path) -> Iterator[Path]:
    """Write the file that is yielded; at the end it replaces ``path``.

    An exception leaves ``path`` as it was. The mode of the new file follows the umask.

    Raises:
        UsageError: ``path`` is a link, a folder or a device, or its folder is missing.
        OSError: the disk is full, read-only or otherwise not writable.
    """
    place = check_file_target(path)
    with staging_folder(place) as staging:
        staged = staging / place.name
        yield staged
        settle(staged, staging)
        staged.replace(place)
        _flush(place.parent)


@contextlib.contextmanager
def publish_folder(path: Path, owned: Owned | None = None) -> Iterator[Path]:
    """Fill the folder that is yielded; at the end it replaces ``path``.

    An exception leaves ``path`` as it was. The modes of the folder and its files follow the umask.

    Args:
        path: the folder to write. Its parent must exist.
        owned: names the files that growpipe wrote into an earlier version of the folder. Nothing else is ever
            removed. None if the folder is growpipe's alone, whatever is in it: a stage of a run.

    Raises:
        UsageError: ``path`` is refused by `check_folder_target`.
        OSError: the disk is full, read-only or otherwise not writable.
    """
    place = Path(os.path.abspath(path))
    if owned is not None:
        place = check_folder_target(path, owned)
    with staging_folder(place) as staging:
        filled = staging / _NEW
        filled.mkdir()
        yield filled
        for file in filled.rglob("*"):
            settle(file, filled)
        _flush(filled)
        if os.path.lexists(place):
            _replace(place, staging, owned)
        else:
            filled.rename(place)
        _flush(place.parent)


def check_file_target(path: str | os.PathLike[str]) -> Path:
    """Refuse a place that no file can be written to, before any work is done; return its absolute path.

    Raises:
        UsageError: ``path`` is a link, a folder or a device, or its folder is missing.
    """
    place = Path(os.path.abspath(path))
    if place.is_symlink():
        raise UsageError(f"{place} is a link, and links are not written through; name the file itself")
    if place.is_dir():
        raise UsageError(f"{place} is a folder; name a file")
    if place.exists() and not place.is_file():
        raise UsageError(f"{place} is not a regular file; choose another file")
    if not place.parent.is_dir():
        raise UsageError(f"there is no folder {place.parent}; make it first")
    return place


def check_not_read(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str] | None]) -> None:
    """Refuse to write over what the same command reads.

    Args:
        path: the file to write; it may be absent.
        inputs: the files and folders that are read; None is passed over.

    Raises:
        UsageError: ``path`` is one of ``inputs``, or a file that is there in one of them.
    """
    real = Path(os.path.realpath(path))
    exists = real.exists()
    for place in (Path(os.path.realpath(given)) for given in inputs if given is not None):
        if real == place or (exists and real.is_relative_to(place)):
            raise UsageError(f"{path} is read by this command and is not overwritten; choose another file")


def check_folder_target(
    path: str | os.PathLike[str], owned: Owned, inputs: Iterable[str | os.PathLike[str]] = ()
) -> Path:
    """Refuse a folder that must not be replaced, before any work is done; return its absolute path.

    Args:
        path: the folder to write; it may be absent, empty, or an earlier version of what is to be written.
        owned: names the files that growpipe wrote into an earlier version.
        inputs: files that are read meanwhile.

    Raises:
        UsageError: ``path`` is a file, a link, the working folder or a parent of it, holds an input, or holds
            a file that growpipe did not write.
    """
    place = Path(os.path.abspath(path))
    if place.is_symlink():
        raise UsageError(f"{place} is a link, and links are not replaced; name the folder itself")
    if not place.exists():
        return place
    if not place.is_dir():
        raise UsageError(f"{place} is a file; choose another folder")
    real = Path(os.path.realpath(place))
    if Path.cwd().is_relative_to(real):
        raise UsageError(
            f"{place} is the working folder, or holds it; name a folder of its own, e.g. {place}/out"
        )
    for given in inputs:
        if Path(os.path.realpath(given)).is_relative_to(real):
            raise UsageError(f"{place} holds {given}, which is read; choose another folder")
    _refuse_foreign(place, place, owned)
    return place


def _refuse_foreign(folder: Path, called: Path, owned: Owned) -> Collection[str]:
    """The names of the files in ``folder``, all of them growpipe's own."""
    ours = set(owned(folder)) if os.listdir(folder) else set()
    present = sorted(_entries(folder, _folders_of(ours)))
    foreign = [name for name in present if name not in ours or not _is_regular(folder / name)]
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        raise UsageError(
            f"{called} holds files that growpipe did not write there ({', '.join(foreign[:_SHOWN])}{more}); "
            "choose another folder"
        )
    return present


def _folders_of(files: Iterable[str]) -> set[str]:
    """The folders in which the files are, without the one at the top."""
    return {str(parent) for name in files for parent in PurePosixPath(name).parents} - {".", "/"}


def _entries(folder: Path, folders: Collection[str], within: str = "") -> Iterator[str]:
    """What is in ``folder``: of the named folders what is in them, any other folder as one entry."""
    for entry in os.listdir(folder / within):
        name = f"{within}{entry}"
        if name in folders and stat.S_ISDIR((folder / name).lstat().st_mode):
            yield from _entries(folder, folders, f"{name}/")
        else:
            yield name


def _is_regular(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _replace(place: Path, staging: Path, owned: Owned | None) -> None:
    """Put ``staging/new`` in the place of a folder; after a kill half-way `sweep` puts the old one back."""
    old = staging / _OLD / place.name
    old.parent.mkdir()
    place.rename(old)
    try:
        names = None if owned is None else _refuse_foreign(old, place, owned)
        (staging / _NEW).rename(place)
    except BaseException:
        old.rename(place)
        raise
    if names is None:
        shutil.rmtree(old, ignore_errors=True)
    else:
        for name in names:
            (old / name).unlink()
        for name in sorted(_folders_of(names), reverse=True):  # what is deeper comes first
            (old / name).rmdir()
        old.rmdir()


@contextlib.contextmanager
def staging_folder(place: Path) -> Iterator[Path]:
    """A folder beside ``place`` to write into before renaming; removed at the end, or by the next writer.

    Raises:
        OSError: the disk is full, read-only or otherwise not writable. That of a full disk names ``place``.
    """
    sweep(place.parent)
    staging, lock = _make_staging(place.parent)
    try:
        yield staging
    except OSError as fault:
        # The system names no file, or a staged one that is gone when the message is read.
        if fault.errno in _NO_ROOM and Path(fault.filename or staging).is_relative_to(staging):
            fault.filename = str(place)
        raise
    finally:
        os.close(lock)
        shutil.rmtree(staging, ignore_errors=True)


def _make_staging(parent: Path) -> tuple[Path, int]:
    while True:
        staging = parent / f"{STAGING}{secrets.token_hex(6)}"
        staging.mkdir()  # by the umask, unlike a folder of tempfile
        lock = os.open(staging, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if staging.exists():  # nobody has swept it before it was locked
            return staging, lock
        os.close(lock)


def sweep(parent: Path) -> None:
    """Remove what killed writers left in ``parent``; a folder that was being replaced is put back."""
    for entry in list(os.scandir(parent)):
        if entry.name.startswith(STAGING) and entry.is_dir(follow_symlinks=False):
            _remove_leftover(Path(entry.path))


def _remove_leftover(staging: Path) -> None:
    try:
        lock = os.open(staging, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return  # another process has just removed it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return  # its writer lives, or there are no locks here
    else:
        for old in (staging / _OLD).glob("*"):
            place = staging.parent / old.name
            if not os.path.lexists(place):
                old.rename(place)
        shutil.rmtree(staging, ignore_errors=True)
    finally:
        os.close(lock)


def settle(file: Path, folder: Path) -> None:
    """Give a file the mode that the umask gives, which its folder shows, and bring it to the disk."""
    if not file.is_dir():
        file.chmod(folder.stat().st_mode & 0o666)
    _flush(file)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
