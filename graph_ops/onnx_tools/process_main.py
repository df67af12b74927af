"""A process that does nothing but run ONNX's checker and shape inference for `process`.

Run as a file, with this as its protocol: a request is one byte of what to do, eight of length, and the model;
an answer is one byte (0 or 1 for an error), eight of length, and the inferred model or the message.
"""

from __future__ import annotations

import struct
import sys
from typing import BinaryIO

import onnx

CHECK, INFER, INFER_STRICTLY = b"c", b"i", b"s"
HEADER = struct.Struct("<cQ")
MEMORY = 4 * 2**30


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    while header := requests.read(HEADER.size):
        task, length = HEADER.unpack(header)
        try:
            status, answer = b"\0", run(task, requests.read(length))
        except Exception as error:
            status, answer = b"\1", (str(error) or type(error).__name__).encode(errors="replace")
        answers.write(HEADER.pack(status, len(answer)) + answer)
        answers.flush()


def run(task: bytes, model: bytes) -> bytes:
    """The model with its shapes inferred, or nothing for a check that it passes."""
    if task == CHECK:
        onnx.checker.check_model(model)
        return b""
    inferred = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=task == INFER_STRICTLY, data_prop=True
    )
    return inferred.SerializeToString()


def limit_memory() -> None:
    try:
        import resource
    except ImportError:
        return  # not on this system; the time limit still holds
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    limit_memory()
    serve(sys.stdin.buffer, sys.stdout.buffer)
