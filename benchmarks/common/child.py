"""A command in a process of its own, with limits of time and memory."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.processor_time import processor_seconds

__all__ = ["Ended", "limit_memory", "run_child"]

_PATIENCE = 10


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended.

    Attributes:
        code: the exit code; negative if a signal ended the process.
        timed_out: whether the process was ended because its time was over.
        seconds: the time it took.
        stdout: what it printed.
        stderr: what it printed as errors.
    """

    code: int
    timed_out: bool
    seconds: float
    stdout: str
    stderr: str

    @property
    def traceback(self) -> bool:
        """Whether an exception reached the user."""
        return "Traceback (most recent call last)" in self.stderr

    @property
    def signal(self) -> str | None:
        """The signal that ended the process."""
        return None if self.code >= 0 or self.timed_out else signal.Signals(-self.code).name

    @property
    def last_line(self) -> str:
        """The last line that is not empty, of stderr or else of stdout."""
        lines = [line for line in (self.stderr or self.stdout).splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""


def limit_memory(megabytes: int) -> Callable[[], None]:
    """What sets the limit of a child's address space, to be called in the child."""

    def apply() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, megabytes * 2**20))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    return apply


def run_child(
    command: Sequence[str],
    *,
    seconds: float,
    megabytes: int,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run ``command``, and end it with all its children when its time is over.

    Args:
        command: the program and its arguments.
        seconds: the processor time that it and its children may take, so that a busy machine ends nothing;
            and a `_PATIENCE`-th of the time that it may take at all.
        megabytes: the address space each of its processes may take.
        folder: where it runs.
        environment: variables beside those of this process.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
        preexec_fn=limit_memory(megabytes),
    )
    timed_out = False
    ticks = 0  # a second that this process is stopped does not count
    while True:
        try:
            out, err = process.communicate(timeout=1.0)
            break
        except subprocess.TimeoutExpired:
            ticks += 1
            if not timed_out and (processor_seconds(process.pid) > seconds or ticks > _PATIENCE * seconds):
                timed_out = True
                os.killpg(process.pid, signal.SIGKILL)
    return Ended(
        process.returncode,
        timed_out,
        time.monotonic() - started,
        out.decode(errors="replace"),
        err.decode(errors="replace"),
    )
