"""A child process that answers requests over its standard input and output, and may die over one of them.

This is the transport alone: starting, writing and reading with a deadline, and how the child ended. What the
bytes mean is up to the two sides; both of growpipe's child programs use the frames of `process_main`.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["ChildEnded", "ChildProcess", "ChildTimedOut"]

_CHUNK = 2**20


class ChildEnded(Exception):
    """The child ended before it had answered.

    Attributes:
        code: its exit code; negative for the signal that ended it.
        how: the end in words, such as "SIGSEGV" or "exit code 1".
        last_words: the last line that the child wrote to its standard error; empty if there is none.
    """

    def __init__(self, code: int, how: str, last_words: str) -> None:
        super().__init__(f"{how}{': ' + last_words if last_words else ''}")
        self.code = code
        self.how = how
        self.last_words = last_words


class ChildTimedOut(Exception):
    """The child did not answer before the deadline."""


class ChildProcess:
    """A running child. It belongs to the process that started it: a fork must start its own.

    Args:
        command: program and arguments.
        environment: the child's environment variables; None for those of this process.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._owner = os.getpid()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the child
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            start_new_session=os.name == "posix",  # Ctrl-C is for us; we end the child
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        for stream in (self._input, self._output):
            os.set_blocking(stream.fileno(), False)

    @property
    def is_ours(self) -> bool:
        """Whether this process started the child, and the child still runs."""
        return self._owner == os.getpid() and self._process.poll() is None

    def write(self, parts: Iterable[bytes | memoryview], deadline: float) -> None:
        """Write all parts.

        Args:
            parts: the bytes, in order.
            deadline: in the time of `time.monotonic`.

        Raises:
            ChildEnded: the child is gone.
            ChildTimedOut: the deadline passed.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._input, selectors.EVENT_WRITE)
            for part in parts:
                view = memoryview(part).cast("B")
                while view:
                    self._wait(selector, deadline)
                    try:
                        view = view[os.write(self._input.fileno(), view[:_CHUNK]) :]
                    except BrokenPipeError:
                        raise self._ended() from None

    def read(self, size: int, deadline: float) -> bytes:
        """Read exactly ``size`` bytes; the arguments and errors are those of `read_into`."""
        buffer = bytearray(size)
        self.read_into(memoryview(buffer), deadline)
        return bytes(buffer)

    def read_into(self, view: memoryview, deadline: float) -> None:
        """Fill ``view`` with what the child writes.

        Args:
            view: contiguous and writable.
            deadline: in the time of `time.monotonic`.

        Raises:
            ChildEnded: the child is gone before it has written that much.
            ChildTimedOut: the deadline passed.
        """
        view = view.cast("B")
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            while view:
                self._wait(selector, deadline)
                count = os.readv(self._output.fileno(), [view[:_CHUNK]])
                if not count:
                    raise self._ended()
                view = view[count:]

    def close(self) -> None:
        """End the child. In a process that did not start it, let go of it only."""
        if self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
        for stream in (self._input, self._output, self._log):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    @staticmethod
    def _wait(selector: selectors.BaseSelector, deadline: float) -> None:
        if not selector.select(max(0.0, deadline - time.monotonic())):
            raise ChildTimedOut

    def _ended(self) -> ChildEnded:
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # it closed its output and goes on
            self._process.kill()
            code = self._process.wait()
        if code >= 0:
            return ChildEnded(code, f"exit code {code}", self._last_words())
        try:
            how = signal.Signals(-code).name
        except ValueError:
            how = f"signal {-code}"
        if -code == getattr(signal, "SIGKILL", None):
            how += ", perhaps out of memory"
        return ChildEnded(code, how, self._last_words())

    def _last_words(self) -> str:
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 4096))
        lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").splitlines()]
        return next((line[:300] for line in reversed(lines) if line), "")
