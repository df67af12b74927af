"""What an input does to the process that reads it: exceptions, time, memory, files opened outside."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import growpipe
import growpipe.graph_ops
from benchmarks.common.processor_time import children, processor_seconds

__all__ = [
    "MEGABYTES",
    "SECONDS",
    "WAITING_SECONDS",
    "children_peak",
    "ended",
    "peak",
    "reset_peak",
    "watched",
]

SECONDS = 10.0
"""The processor time that one input may take, in this process and its children together."""

WAITING_SECONDS = 900
"""How long an input may last at all, on a busy machine; while this process is stopped no time passes."""

MEGABYTES = 2048
"""The memory that one input may take, in this process and its children together."""

_OURS = tuple(str(Path(str(package.__file__)).parent) for package in (growpipe, growpipe.graph_ops))
_CHANGES = {
    f"os.{name}" for name in ("rename", "remove", "mkdir", "rmdir", "link", "symlink", "chmod", "truncate")
}
_LIBRARIES = [place for place in sys.path if "-packages" in place]
_SYSTEM = ("/proc/self/", "/sys/", os.devnull, "/dev/urandom")
_READABLE = (sys.prefix, sys.base_prefix, *_LIBRARIES, *_OURS, *_SYSTEM)
"""Where Python, its libraries and growpipe read: what they ship, and what the system tells of the machine."""


class _TooLong(BaseException):
    """The time of one input is over; no ``except Exception`` may swallow it."""


def ended(action: Callable[[], Any], *, show: bool = False) -> int | str:
    """Call ``action`` quietly: its exit code (0 if it returns), or what went wrong within growpipe.

    Args:
        action: a command, or a function that reads a file.
        show: whether the traceback of a fault goes to stderr.
    """
    quiet = io.StringIO()
    clock = _Clock()
    handler = signal.signal(signal.SIGALRM, clock.tick)
    others = signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            action()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except _TooLong as error:
        return _told(f"hang: {error} at {_place(error)}", show)
    except MemoryError as error:
        return _told(f"memory: MemoryError at {_place(error)}", show)
    except BaseException as error:
        line = " ".join(str(error).split())[:160]
        return _told(f"exception: {type(error).__name__} at {_place(error)}: {line}", show)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *others)
    return 0


class _Clock:
    """Ends an input whose time is over: the alarm of every second, in which it looks at the time."""

    def __init__(self) -> None:
        self._begin: float | None = None
        self._ticks = 0

    def tick(self, number: int, frame: object) -> None:
        self._ticks += 1  # alarms that come while this process is stopped are one
        if self._begin is None:  # most inputs end before the first alarm, and the time costs a millisecond
            self._begin = _seconds() - 1.0
        if _seconds() - self._begin > SECONDS:
            raise _TooLong(f"more than {SECONDS:.0f} s of processor time")
        if self._ticks > WAITING_SECONDS:
            raise _TooLong(f"no end after {WAITING_SECONDS} s")


def _seconds() -> float:
    """`processor_seconds`, whose reading of /proc is no deed of the input."""
    global _allowed
    watching, _allowed = _allowed, None
    try:
        return processor_seconds()
    finally:
        _allowed = watching


def _told(fault: str, show: bool) -> str:
    if show:
        traceback.print_exc()
    return fault


def _place(error: BaseException) -> str:
    """The innermost place in growpipe, and the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(_OURS)]
    places = [f"{Path(f.filename).name}:{f.name}" for f in [*ours[-1:], *frames[-1:]]]
    return " > ".join(dict.fromkeys(places))


_allowed: str | None = None
_outside: list[str] = []
_hooked = False


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Note what is changed outside ``folder``, and what is read outside of it and of Python's own files."""
    global _allowed, _hooked
    if not _hooked:
        tempfile.gettempdir()  # tries the folder out at its first call
        sys.addaudithook(_audit)
        _hooked = True
    _outside.clear()
    _allowed = os.path.realpath(folder)
    # Temporary files belong into the folder too: proofs of a form write models for onnxruntime.
    usual = tempfile.gettempdir()
    tempfile.tempdir = _allowed
    try:
        yield _outside
    finally:
        tempfile.tempdir = usual
        _allowed = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _allowed is None:
        return
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.fsdecode(arguments[0])
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        known = path.endswith(
            (".py", ".pyc", ".so", "entry_points.txt", "METADATA", "PKG-INFO")
        ) or path.startswith(_READABLE)
        # A folder that is opened is listed, or takes a temporary file that has no name.
        if not _within(path) and path != os.devnull and (writes or not known) and not os.path.isdir(path):
            _outside.append(f"{event} {path}")
    elif event in _CHANGES:
        for path in arguments[:2]:
            if isinstance(path, (str, bytes)) and not _within(os.fsdecode(path)):
                _outside.append(f"{event} {os.fsdecode(path)}")
    elif event in ("socket.connect", "os.system", "os.exec"):
        _outside.append(event)


def _within(path: str) -> bool:
    # growpipe opens by absolute paths, or relative to a folder that it opened, which was looked at then.
    assert _allowed is not None
    return not os.path.isabs(path) or os.path.realpath(path).startswith(_allowed)


def reset_peak() -> None:
    """Begin a new peak of memory in this process, and of children that end from now on."""
    global _ended_before
    _ended_before = children_peak()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The peak in MB of this process since the reset, its living children and the largest one that ended."""
    total = 0
    for process in (os.getpid(), *children(os.getpid())):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    ended_child = children_peak()
    # The system keeps one peak for all that ended: one that did not rise is of an earlier input.
    return total // 1024 + (ended_child if ended_child > _ended_before else 0)


_ended_before = 0


def children_peak() -> int:
    """The peak in MB of the largest child that ended, since this process began."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
