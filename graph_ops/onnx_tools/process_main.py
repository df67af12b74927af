"""A process that does nothing but run ONNX's checker and shape inference for `process`.

Run as a file, so that it imports nothing of growpipe. Its protocol are frames: one byte of kind, eight of
length, and the content. A request's kind says what to do, an answer's whether it was done (`DONE`) or why
not (`FAILED`).
"""

from __future__ import annotations

import contextlib
import struct
import sys
from collections.abc import Iterator
from typing import BinaryIO

CHECK_FILE, CHECK, INFER, INFER_STRICTLY = b"f", b"c", b"i", b"s"
"""Check a file, named by its path; check a model; infer the shapes of a model."""

DONE, FAILED = b"\0", b"\1"
HEADER = struct.Struct("<cQ")
"""Of a frame: kind and length of the content."""

MEMORY = 4 * 2**30
INFERENCE_MEMORY, TIMES_THE_MODEL = 2**27, 32
"""What an inference of shapes may take: so many bytes, and this multiple of the model's own.

It gets models without their weights. Honest ones of 100,000 nodes take less than 20 times their bytes; a
length of 2^40 in a shape makes it fill whatever it may.
"""


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    while header := requests.read(HEADER.size):
        task, length = HEADER.unpack(header)
        try:
            kind, answer = DONE, run(task, requests.read(length))
        except Exception as error:
            kind, answer = FAILED, (str(error) or type(error).__name__).encode(errors="replace")
        answers.write(HEADER.pack(kind, len(answer)) + answer)
        answers.flush()


def run(task: bytes, content: bytes) -> bytes:
    """The model with its shapes inferred, or nothing for a check that it passes."""
    import onnx

    if task in (CHECK, CHECK_FILE):
        onnx.checker.check_model(content if task == CHECK else content.decode("utf-8", "surrogateescape"))
        return b""
    with less_memory(INFERENCE_MEMORY + TIMES_THE_MODEL * len(content)):
        inferred = onnx.shape_inference.infer_shapes(
            content, check_type=True, strict_mode=task == INFER_STRICTLY, data_prop=True
        )
        result: bytes = inferred.SerializeToString()
    return result


@contextlib.contextmanager
def less_memory(room: int) -> Iterator[None]:
    """Limit the memory of the process to what it has and ``room`` bytes, if the system tells what it has."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            present = int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = present + room
    resource.setrlimit(
        resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(soft, most), hard)
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


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
