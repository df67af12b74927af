"""ONNX's checker and shape inference, in a process of their own.

They are written for honest models: a hostile one makes them abort, or fill the memory, and the process with
them. The process is started at the first use and kept; a model that ends it is refused.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from pathlib import Path

import onnx

from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.onnx_tools.child_process import ChildEnded, ChildProcess, ChildTimedOut
from growpipe.graph_ops.onnx_tools.process_main import (
    CHECK,
    CHECK_FILE,
    DONE,
    HEADER,
    INFER,
    INFER_STRICTLY,
)

__all__ = ["check_file", "check_model", "infer_model_shapes"]

_SECONDS = 120.0
_LOCK = threading.Lock()


def check_file(path: str | os.PathLike[str]) -> None:
    """`onnx.checker.check_model` on a file, external data included.

    Raises:
        CheckFailed: the model is not valid, or the checker did not survive it.
    """
    _ask(CHECK_FILE, os.fsencode(os.path.abspath(path)), "ONNX's checker")


def check_model(model: onnx.ModelProto) -> None:
    """`onnx.checker.check_model`.

    Raises:
        CheckFailed: the model is not valid, or the checker did not survive it.
    """
    _ask(CHECK, model.SerializeToString(), "ONNX's checker")


def infer_model_shapes(model: onnx.ModelProto, *, strict: bool) -> onnx.ModelProto:
    """`onnx.shape_inference.infer_shapes`, with types checked and values propagated.

    Raises:
        CheckFailed: the shapes contradict each other, or inference did not survive the model.
    """
    inferred = onnx.ModelProto()
    task = INFER_STRICTLY if strict else INFER
    inferred.ParseFromString(_ask(task, model.SerializeToString(), "shape inference"))
    return inferred


_process: ChildProcess | None = None


def _ask(task: bytes, content: bytes, what: str) -> bytes:
    global _process
    with _LOCK:
        if _process is not None and not _process.is_ours:
            _process.close()
            _process = None
        if _process is None:
            # -P: no folder of ours or of the user's may stand in for a module of Python or of ONNX.
            program = Path(__file__).with_name("process_main.py")
            _process = ChildProcess([sys.executable, "-P", str(program)])
        deadline = time.monotonic() + _SECONDS
        try:
            _process.write([HEADER.pack(task, len(content)), content], deadline)
            kind, length = HEADER.unpack(_process.read(HEADER.size, deadline))
            answer = _process.read(length, deadline)
        except BaseException as error:
            _process.close()
            _process = None
            if isinstance(error, ChildTimedOut):
                raise CheckFailed(f"{what} did not end within {_SECONDS:g} s on this model") from None
            if isinstance(error, ChildEnded):
                raise CheckFailed(
                    f"{what} did not survive the model: it crashed, or took too much memory ({error.how})"
                ) from None
            raise
    if kind != DONE:
        lines = [line.strip() for line in answer.decode(errors="replace").splitlines() if line.strip()]
        reason = lines[-1 if task in (INFER, INFER_STRICTLY) else 0] if lines else "no reason given"
        raise CheckFailed(f"{what} fails: {reason}")
    return answer


@atexit.register
def _close() -> None:
    if _process is not None and _process.is_ours:
        _process.close()
