"""The child process in which models run, under limits of time and memory.

A model that crashes or hangs the runtime takes the child with it, not the tool; the next request gets a new
child. This contains accidents. It is no jail for hostile code, and needs none: models cannot carry code, and
libraries of custom operators are never loaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy.typing as npt

from growpipe.checks.child.messages import BrokenPipeMessage, pack, read_message
from growpipe.graph_ops import errors
from growpipe.graph_ops.errors import CheckFailed, GrowpipeError, MissingEnvironment

__all__ = ["ModelCrashed", "ModelHung", "Reply", "Sandbox"]


class ModelCrashed(CheckFailed):
    """The process that ran the model died."""


class ModelHung(CheckFailed):
    """The model did not come to an end within the time limit."""


class Reply:
    """What the child answered.

    Attributes:
        data: plain values.
        arrays: by name.
    """

    def __init__(self, data: dict[str, Any], arrays: dict[str, npt.NDArray]) -> None:
        self.data = data
        self.arrays = arrays


class Sandbox:
    """Runs the operations of `growpipe.checks.child.operations` in a child process, started when needed.

    Args:
        seconds: time limit of one request.
        memory_mb: limit of the child's private memory, in MiB; enforced where the system can (Linux).
        torch: import torch in the child first; only for `--torch`.
    """

    def __init__(self, *, seconds: float = 120.0, memory_mb: int = 16384, torch: bool = False) -> None:
        self.seconds = seconds
        self.memory_mb = memory_mb
        self.torch = torch
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(
        self,
        operation: str,
        arguments: Mapping[str, Any] | None = None,
        arrays: Mapping[str, npt.NDArray] | None = None,
        *,
        seconds: float | None = None,
    ) -> Reply:
        """Run one operation in the child.

        Args:
            operation: the name of a function of `growpipe.checks.child.operations`.
            arguments: plain values.
            arrays: by name.
            seconds: another time limit for this request.

        Raises:
            ModelHung: the time limit passed; the child was killed.
            ModelCrashed: the child died.
            GrowpipeError: the error that the operation itself raised.
        """
        limit = self.seconds if seconds is None else seconds
        deadline = time.monotonic() + limit
        process = self._started()
        try:
            self._write(process, pack({"operation": operation, **(arguments or {})}, arrays), deadline)
            document, values = read_message(lambda size: self._read(process, size, deadline))
        except (BrokenPipeMessage, BrokenPipeError):
            raise ModelCrashed(self._obituary(process)) from None
        except TimeoutError:
            self.close()
            raise ModelHung(
                f"it did not end within {limit:g} s and was stopped; "
                "if it may take longer raise limits.seconds"
            ) from None
        except BaseException:
            self.close()
            raise
        error = document.pop("error", None)
        if error is not None:
            kind = getattr(errors, str(error["kind"]), None)
            if isinstance(kind, type) and issubclass(kind, GrowpipeError):
                raise kind(str(error["message"]))
            raise CheckFailed(str(error["message"]))
        return Reply(document, values)

    def close(self) -> None:
        """End the child, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the child is
        settings = json.dumps({"memory_mb": self.memory_mb, "torch": self.torch, "path": sys.path})
        # -P: a file of the current folder must not stand in for a library. The search path of this process
        # follows in the settings, so that the child finds what its parent found.
        bootstrap = (
            "import json, sys; settings = json.loads(sys.argv[1]); sys.path[:] = settings['path'];"
            "from growpipe.checks.child.operations import serve; serve(settings)"
        )
        environment = {**os.environ, "PYTHONFAULTHANDLER": "", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", bootstrap, settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            start_new_session=os.name == "posix",
            bufsize=0,
        )
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        self._process = process
        return process

    @staticmethod
    def _write(process: subprocess.Popen[bytes], parts: Sequence[bytes], deadline: float) -> None:
        assert process.stdin is not None
        descriptor = process.stdin.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_WRITE)
            for part in parts:
                view = memoryview(part)
                while view:
                    if not selector.select(max(0.0, deadline - time.monotonic())):
                        raise TimeoutError
                    view = view[os.write(descriptor, view[: 2**16]) :]

    @staticmethod
    def _read(process: subprocess.Popen[bytes], size: int, deadline: float) -> bytes:
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        received = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while len(received) < size:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                chunk = os.read(descriptor, min(size - len(received), 2**20))
                if not chunk:
                    break
                received += chunk
        return bytes(received)

    def _obituary(self, process: subprocess.Popen[bytes]) -> str:
        try:
            code = process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        last = self._last_words()
        self.close()
        if code == 3:  # what the worker exits with when it cannot even start
            raise MissingEnvironment(last or "the process that runs models could not start")
        if code < 0:
            try:
                how = signal.Signals(-code).name
            except ValueError:
                how = f"signal {-code}"
            if -code == getattr(signal, "SIGKILL", None):
                how += ", perhaps out of memory"
        else:
            how = f"exit code {code}"
        return f"it crashed the process that ran it ({how}){': ' + last if last else ''}"

    def _last_words(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 4096))
        lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").splitlines()]
        return next((line[:300] for line in reversed(lines) if line), "")


def temporary_folder() -> Path:
    """A private folder for what a child writes; the caller removes it."""
    return Path(tempfile.mkdtemp(prefix="growpipe-check-"))
