"""A child process that runs models, forked instead of started: a start takes 0.1 s, most of it imports.

The process that forks has imported what the child needs, has no other threads and opens no session of
onnxruntime itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from subprocess import TimeoutExpired

from growpipe.checks.child import model_process
from growpipe.graph_ops.onnx_tools.child_process import ChildProcess

__all__ = ["forked_models"]


@contextlib.contextmanager
def forked_models() -> Iterator[None]:
    """Within it every `growpipe.checks.child.model_process.ModelProcess` forks its child."""
    import onnxruntime  # noqa: F401 - imported once, for all children

    import growpipe.checks.child.operations
    import growpipe.checks.measure.sessions  # noqa: F401

    usual = model_process.ChildProcess
    model_process.ChildProcess = _ForkedChild  # type: ignore[misc]
    try:
        yield
    finally:
        model_process.ChildProcess = usual  # type: ignore[misc]


class _ForkedChild(ChildProcess):
    """`ChildProcess` for the command of a `ModelProcess`, whose last argument holds its settings."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._owner = os.getpid()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the child
        requests, self_input = os.pipe()
        self_output, answers = os.pipe()
        child = os.fork()
        if child == 0:
            _serve(json.loads(command[-1]), requests, answers, self._log.fileno(), (self_input, self_output))
        os.close(requests)
        os.close(answers)
        self._process = _Forked(child)  # type: ignore[assignment]
        self._input, self._output = os.fdopen(self_input, "wb", 0), os.fdopen(self_output, "rb", 0)
        for stream in (self._input, self._output):
            os.set_blocking(stream.fileno(), False)


class _Forked:
    """What `ChildProcess` needs of `subprocess.Popen`."""

    def __init__(self, process: int) -> None:
        self.pid = process
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while deadline is not None and self.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutExpired("a forked child", timeout or 0.0)
            time.sleep(0.01)
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _serve(
    settings: Mapping[str, object], requests: int, answers: int, log: int, ours: Sequence[int]
) -> None:
    """Be the child; never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        os.dup2(requests, 0)
        os.dup2(answers, 1)
        os.dup2(log, 2)
        for descriptor in (requests, answers, log, *ours):
            os.close(descriptor)
        from growpipe.checks.child.operations import serve

        serve(settings)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)
