"""One mutated file through the commands, in this process, and what counts as a fault."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import growpipe
import growpipe.graph_ops
from benchmarks.graph.fuzz_judge import judge
from benchmarks.graph.mutations import mutate
from growpipe.cli import main as growpipe_main

__all__ = ["MEGABYTES", "SECONDS", "epsilon_of", "made", "run_content", "run_input"]

_OURS = tuple(str(Path(str(package.__file__)).parent) for package in (growpipe, growpipe.graph_ops))

SECONDS = 10.0
MEGABYTES = 2048

_CHANGES = {
    f"os.{name}" for name in ("rename", "remove", "mkdir", "rmdir", "link", "symlink", "chmod", "truncate")
}
_LIBRARIES = [place for place in sys.path if "-packages" in place]
_READABLE = (sys.prefix, sys.base_prefix, *_LIBRARIES, "/proc/self/", "/sys/", os.devnull, "/dev/urandom")
"""Where Python and its libraries read: what they ship, and what the system tells of the machine."""

_FORMS = ("form/model.onnx", "grown.onnx", "grown-form/model.onnx")
"""What the commands write, if they succeed."""


class _TooLong(BaseException):
    """The time of one input is over; no ``except Exception`` may swallow it."""


def made(corpus: Sequence[bytes], seed: int, number: int) -> tuple[bytes, str]:
    """The file of a number, and the kinds of mutation that made it."""
    random = np.random.default_rng([seed, number])
    # Small files are quick: they come more often.
    weights = 1 / np.sqrt([len(content) + 2000.0 for content in corpus])
    content = corpus[int(random.choice(len(corpus), p=weights / weights.sum()))]
    return mutate(content, corpus, random)


def run_input(
    corpus: Sequence[bytes], seed: int, number: int, folder: Path, *, show: bool = False
) -> dict[str, Any]:
    """Make input ``number`` and run the commands on it; what came of it, as JSON values.

    Args:
        corpus: the well-formed files.
        seed: the seed of the mutations.
        number: of the input.
        folder: where it goes, and everything that the commands write.
        show: whether the traceback of a fault goes to stderr.
    """
    content, kinds = made(corpus, seed, number)
    return {"number": number, "kinds": kinds, **run_content(content, folder, epsilon_of(number), show=show)}


def epsilon_of(number: int) -> float:
    """The ε of the plan for an input; at 0 the forms keep the function, and are judged."""
    return 0.01 if number % 3 else 0.0


def run_content(content: bytes, folder: Path, epsilon: float = 0.0, *, show: bool = False) -> dict[str, Any]:
    """`run_input` for a file that is there, with a plan of that ε."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    _reset_peak()
    started = time.monotonic()
    outcome, fault = "refused", ""
    with _watched(folder) as outside:
        for name, arguments in _commands(folder, epsilon):
            ended = _ended(arguments, show)
            if isinstance(ended, str):
                outcome, fault = "fault", f"{ended} [{name}]"
                break
            if ended == 3:
                outcome, fault = "fault", f"exit: {name} ended with 3, as if the machine were at fault"
                break
            if ended == 0:
                outcome = name
            elif name in ("inspect", "grow"):
                break
    seconds = time.monotonic() - started
    peak = _peak()
    forms = [folder / name for name in _FORMS if (folder / name).is_file()]
    judged = judge(folder / "model.onnx", forms) if forms and not fault and not epsilon else "not judged"
    if judged not in ("same", "not judged"):
        outcome, fault = "fault", f"another function: {judged}"
    if not fault and outside:
        outcome, fault = "fault", f"outside: {outside[0]}"
    if not fault and seconds > SECONDS:
        outcome, fault = "fault", f"slow: {seconds:.1f} s"
    if not fault and peak > MEGABYTES:
        outcome, fault = "fault", f"memory: {peak} MB"
    return {
        "outcome": outcome,
        "fault": fault,
        "judged": judged == "same",
        "seconds": round(seconds, 3),
        "peak_mb": peak,
    }


def _commands(folder: Path, epsilon: float) -> Iterator[tuple[str, list[str]]]:
    model, plan, grown = folder / "model.onnx", folder / "plan", folder / "grown.onnx"
    yield "inspect", ["inspect", str(model), "--json"]
    yield "deploy", ["deploy", str(model), "-o", str(folder / "form")]
    yield "plan", ["plan", str(model), "--random", "-o", str(plan), "--epsilon", str(epsilon)]
    if plan.is_dir():
        yield "grow", ["grow", str(model), "--plan", str(plan), "-o", str(grown)]
        if grown.is_file():
            yield "deploy grown", ["deploy", str(grown), "-o", str(folder / "grown-form")]


def _ended(arguments: list[str], show: bool) -> int | str:
    """The exit code of a command, or what went wrong within growpipe."""
    quiet = io.StringIO()
    handler = signal.signal(signal.SIGALRM, _alarm)
    others, _ = signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            growpipe_main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except _TooLong as error:
        return _told(f"hang: more than {SECONDS:.0f} s at {_place(error)}", show)
    except MemoryError as error:
        return _told(f"memory: MemoryError at {_place(error)}", show)
    except BaseException as error:
        line = " ".join(str(error).split())[:160]
        return _told(f"exception: {type(error).__name__} at {_place(error)}: {line}", show)
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, others)
    return 0


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
def _watched(folder: Path) -> Iterator[list[str]]:
    """Note what is changed outside ``folder``, and what is read outside of it and of Python's own files."""
    global _allowed, _hooked
    if not _hooked:
        tempfile.gettempdir()  # tries the folder out at its first call
        sys.addaudithook(_audit)
        _hooked = True
    _outside.clear()
    _allowed = os.path.realpath(folder)
    try:
        yield _outside
    finally:
        _allowed = None


def _alarm(number: int, frame: object) -> None:
    raise _TooLong


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _allowed is None:
        return
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.fsdecode(arguments[0])
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        known = path.endswith((".py", ".pyc", ".so", "entry_points.txt")) or path.startswith(_READABLE)
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


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The peak of this process since the last reset, and of its children in their life, in MB."""
    total = 0
    for process in ("self", *_children()):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return total // 1024


def _children() -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return []
