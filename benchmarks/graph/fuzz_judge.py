"""Do the forms that the commands wrote compute what the mutated file computes?

Runs in a process that is forked for one file: a mutated file may end onnxruntime, which is not a fault.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.common.watch import MEGABYTES
from benchmarks.graph import parity

__all__ = ["is_heavy", "judge"]

SECONDS = 10
_NO_MEMORY = "Failed to allocate memory"
_LONGEST_INPUT = 2**28
"""Elements of an input: to make a longer one takes seconds."""
_LARGEST = 1e6
"""Of a weight or an output: beyond it another order of sums overflows, or loses what the tolerance allows."""


def judge(model: Path, forms: list[Path]) -> str:
    """What is wrong with the first form that computes something else; ``same`` if none does.

    Returns:
        ``not judged`` if onnxruntime refuses the model, with or without optimisations, or crashes, if its
        numbers are not finite or very large, or if the time is over.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _in_child(writing, lambda: _judged(model, forms))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer.decode() or "not judged"


def _in_child(pipe: int, work: Callable[[], str]) -> NoReturn:
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 2)
        os.write(pipe, work().encode())
    finally:
        os._exit(0)


def _judged(model: Path, forms: list[Path]) -> str:
    if not _moderate(model):
        return "not judged"
    parity.SEARCH_SECONDS = 1.0
    try:
        feeds = parity.probe(model)[:4]
        references = parity.session(model, optimised=False)
        outputs = [parity.run(references, parity.inputs_of(references, feed)) for feed in feeds]
        usual = parity.session(model, optimised=True)  # as users run it
        for feed in feeds:
            parity.run(usual, parity.inputs_of(usual, feed))
    except Exception:
        return "not judged"
    if not feeds or not all(_is_moderate(array) for output in outputs for array in output.values()):
        return "not judged"
    for form in forms:
        found = parity.compare(model, form, feeds)
        if not found["same"]:
            if _NO_MEMORY in found["what"]:
                return "not judged"
            return f"{form.relative_to(model.parent)}: {found['what']}"
    return "same"


def is_heavy(model: Path) -> bool:
    """Whether the model by itself takes half of what an input may take, in time or in memory, in onnxruntime.

    No proof of what the commands write can be had for less: a Loop may have 2^63 steps.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _in_child(writing, lambda: _run_alone(model))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read().decode()
    _, _, usage = os.wait4(child, 0)
    seconds, megabytes = usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024
    return answer == _NO_MEMORY or seconds > SECONDS / 2 or megabytes > MEGABYTES / 2


def _run_alone(model: Path) -> str:
    """Run the model once with and once without optimisations; `_NO_MEMORY` if it found no memory."""
    try:
        for optimised in (False, True):
            alone = parity.session(model, optimised=optimised)
            shapes = [[d for d in entry.shape if isinstance(d, int)] for entry in alone.get_inputs()]
            if max(map(math.prod, shapes), default=0) > _LONGEST_INPUT:
                return _NO_MEMORY
            for feed in parity.probe(model)[:1]:
                parity.run(alone, parity.inputs_of(alone, feed))
    except MemoryError:
        return _NO_MEMORY
    except Exception as error:
        return _NO_MEMORY if _NO_MEMORY in str(error) else ""
    return ""


def _moderate(path: Path) -> bool:
    tensors = onnx.load(path).graph.initializer
    return all(_is_moderate(numpy_helper.to_array(tensor)) for tensor in tensors)


def _is_moderate(array: np.ndarray) -> bool:
    if array.dtype.kind != "f":
        return True
    return bool(np.isfinite(array).all() and np.abs(array.astype(np.float64)).max(initial=0.0) < _LARGEST)


def main() -> None:
    """Judge by hand: ``python -m benchmarks.graph.fuzz_judge MODEL FORM ...``."""
    model, *forms = map(Path, sys.argv[1:])
    print(json.dumps(judge(model, forms)))


if __name__ == "__main__":
    main()
