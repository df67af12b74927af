"""ONNX's checker and shape inference, in a process of their own.

They are written for honest models: a hostile one makes them abort, or fill the memory, and the process with
them. The process is started at the first use and kept; a model that ends it is refused.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import onnx

from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.onnx_tools.process_main import CHECK, HEADER, INFER, INFER_STRICTLY

__all__ = ["check_model", "infer_model_shapes"]

_SECONDS = 120.0
_LOCK = threading.Lock()


def check_model(model: onnx.ModelProto) -> None:
    """`onnx.checker.check_model`.

    Raises:
        CheckFailed: the model is not valid, or the checker did not survive it.
    """
    _ask(CHECK, model, "ONNX's checker")


def infer_model_shapes(model: onnx.ModelProto, *, strict: bool) -> onnx.ModelProto:
    """`onnx.shape_inference.infer_shapes`, with types checked and values propagated.

    Raises:
        CheckFailed: the shapes contradict each other, or inference did not survive the model.
    """
    inferred = onnx.ModelProto()
    inferred.ParseFromString(_ask(INFER_STRICTLY if strict else INFER, model, "shape inference"))
    return inferred


class _Worker:
    """The other process. It belongs to the process that started it: a fork starts its own."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        # -P: no folder of ours or of the user's may stand in for a module of Python or of ONNX.
        command = [sys.executable, "-P", str(Path(__file__).with_name("process_main.py"))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    @property
    def is_ours(self) -> bool:
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, task: bytes, content: bytes) -> tuple[bytes, bytes] | None:
        """Status and answer; None when the process ended, or had to be ended, without one."""
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        alarm = threading.Timer(_SECONDS, self._process.kill)
        alarm.daemon = True
        alarm.start()
        try:
            requests.write(HEADER.pack(task, len(content)))
            requests.write(content)
            requests.flush()
            header = answers.read(HEADER.size)
            if len(header) < HEADER.size:
                return None
            status, length = HEADER.unpack(header)
            answer = answers.read(length)
            return (status, answer) if len(answer) == length else None
        except BrokenPipeError:
            return None
        finally:
            alarm.cancel()

    def close(self) -> None:
        """End the process, or only our hold on it where another process started it."""
        if self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


_worker: _Worker | None = None


def _ask(task: bytes, model: onnx.ModelProto, what: str) -> bytes:
    global _worker
    content = model.SerializeToString()
    with _LOCK:
        if _worker is not None and not _worker.is_ours:
            _worker.close()
            _worker = None
        _worker = _worker or _Worker()
        answer = _worker.ask(task, content)
        if answer is None:
            _worker.close()
            _worker = None
            raise CheckFailed(
                f"{what} did not survive the model: it crashed, or took too much time or memory"
            )
    status, text = answer
    if status != b"\0":
        lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
        raise CheckFailed(
            f"{what} fails: {lines[0 if task == CHECK else -1] if lines else 'no reason given'}"
        )
    return text


@atexit.register
def _close() -> None:
    if _worker is not None and _worker.is_ours:
        _worker.close()
