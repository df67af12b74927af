"""The child process: reads requests, runs one operation of `OPERATIONS` at a time, answers.

Started by `growpipe.checks.child.sandbox`; nothing else calls it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy.typing as npt

from growpipe.checks.child.messages import BrokenPipeMessage, pack, read_message
from growpipe.graph_ops.errors import CheckFailed, GrowpipeError

__all__ = ["OPERATIONS", "serve"]

Arrays = dict[str, npt.NDArray]
Answer = tuple[dict[str, Any], Mapping[str, npt.NDArray]]

KEPT_SESSIONS = 4
MAX_MESSAGE = 4000
_sessions: dict[tuple[Any, ...], Any] = {}


def serve(settings: Mapping[str, Any]) -> None:
    """Answer requests on stdin until it closes. What libraries print to stdout goes to stderr."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _limit_memory(int(settings["memory_mb"]))
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        if settings["torch"]:
            # Before onnxruntime: the other order can load two copies of one CUDA library.
            import torch

            torch.set_num_threads(1)
    except ImportError:
        print("torch is not installed: pip install 'growpipe[train]' to use --torch", file=sys.stderr)
        sys.exit(3)
    warnings.simplefilter("ignore")  # of the libraries; what counts is in the answers
    while True:
        try:
            document, arrays = read_message(requests.read)
        except BrokenPipeMessage:
            return
        operation = OPERATIONS[document.pop("operation")]
        try:
            data, values = operation(arrays, **document)
        except GrowpipeError as error:
            data, values = _as_error(type(error).__name__, str(error)), {}
        except MemoryError:
            data, values = _as_error("CheckFailed", "it needs more memory than limits.memory_mb allows"), {}
        except Exception as error:
            line = " ".join(f"{type(error).__name__}: {error}".split())
            data, values = _as_error("CheckFailed", line), {}
        _answer(answers, data, values)


def _end_with_parent(parent: int) -> None:
    """A tool that was killed cannot end a child that hangs in a model."""
    while os.getppid() == parent:
        time.sleep(2.0)
    os._exit(1)


def _as_error(kind: str, message: str) -> dict[str, Any]:
    return {"error": {"kind": kind, "message": message[:MAX_MESSAGE]}}


def _answer(stream: BinaryIO, data: Mapping[str, Any], values: Mapping[str, npt.NDArray]) -> None:
    for part in pack(data, values):
        stream.write(part)
    stream.flush()


def _limit_memory(megabytes: int) -> None:
    try:
        import resource
    except ImportError:  # not a POSIX system: the time limit alone protects
        return
    # Private writable memory, not address space: libraries and mapped weights would count there.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (megabytes * 2**20,) * 2)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _session(model: str, optimised: bool, device: str, threads: int = 1) -> Any:
    from growpipe.checks.measure.sessions import open_session

    status = os.stat(model)
    key = (model, status.st_mtime_ns, status.st_size, status.st_ino, optimised, device, threads)
    session = _sessions.pop(key, None)
    if session is None:
        while len(_sessions) >= KEPT_SESSIONS:
            del _sessions[next(iter(_sessions))]
        session = open_session(model, optimised=optimised, device=device, threads=threads)  # type: ignore[arg-type]
    _sessions[key] = session
    return session


def onnx_checker(arrays: Arrays, *, model: str) -> Answer:
    """The ONNX checker on a file, external data included."""
    import onnx

    try:
        onnx.checker.check_model(model)
    except Exception as error:
        raise CheckFailed(" ".join(str(error).split())) from None
    return {}, {}


def infer_shapes(arrays: Arrays, *, model: str) -> Answer:
    """Strict shape inference with data propagation; an error of it is a failure."""
    import onnx

    from growpipe.graph_ops.onnx_tools.shape_inference import spell_out_defaults

    # Without external data: shapes are computed from small constants, which are stored inline.
    proto = onnx.load(model, load_external_data=False)
    spell_out_defaults(proto.graph)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        raise CheckFailed(" ".join(str(error).split())) from None
    known = {i.name for i in inferred.graph.value_info} | {o.name for o in inferred.graph.output}
    produced = [name for node in inferred.graph.node for name in node.output if name]
    return {"values": len(produced), "inferred": sum(name in known for name in produced)}, {}


def describe(arrays: Arrays, *, model: str, device: str) -> Answer:
    """The signature of a model, as onnxruntime sees it."""
    session = _session(model, True, device)
    return {
        "inputs": {name: [list(shape), kind] for name, (shape, kind) in session.inputs.items()},
        "outputs": list(session.outputs),
        "providers": list(session.providers),
    }, {}


def run(arrays: Arrays, *, model: str, optimised: bool, device: str) -> Answer:
    """One run; the outputs by name."""
    session = _session(model, optimised, device)
    begin = time.perf_counter()
    outputs = session.run(arrays)
    return {"seconds": time.perf_counter() - begin, "providers": list(session.providers)}, outputs


def run_float64(arrays: Arrays, *, model: str) -> Answer:
    """One run of the model with every float32 made a float64."""
    from growpipe.checks.measure.float64 import run_in_double

    return {}, run_in_double(model, arrays)


def trace(
    arrays: Arrays,
    *,
    model: str,
    reference: str | None,
    limit: float,
    device: str,
    reference_optimised: bool = False,
    expected: Mapping[str, str] | None = None,
) -> Answer:
    """Where two models part, or where one stops being finite; see `growpipe.checks.measure.trace`."""
    from growpipe.checks.measure.trace import first_diverging, first_not_finite

    if expected is not None:
        given = {tensor: arrays.pop(key) for tensor, key in expected.items()}
        place = first_diverging(model, arrays, limit, device=device, expected=given)  # type: ignore[arg-type]
    elif reference is None:
        place = first_not_finite(model, arrays, device=device)  # type: ignore[arg-type]
    else:
        place = first_diverging(
            model,
            arrays,
            limit,
            device=device,  # type: ignore[arg-type]
            reference=reference,
            reference_optimised=reference_optimised,
        )
    return {"place": place}, {}


def latency(
    arrays: Arrays, *, reference: str, candidate: str, candidate_names: Mapping[str, str], **options: Any
) -> Answer:
    """`growpipe.checks.measure.latency.paired_latency`; ``candidate_names`` gives its name of an input."""
    from dataclasses import asdict

    from growpipe.checks.measure.latency import paired_latency

    _sessions.clear()
    renamed = {candidate_names.get(name, name): array for name, array in arrays.items()}
    return asdict(paired_latency(reference, candidate, arrays, candidate_inputs=renamed, **options)), {}


def classify(
    arrays: Arrays, *, model: str, device: str, batch_size: int, output: str | None, targets: str
) -> Answer:
    """Per sample, whether its class is right."""
    from growpipe.checks.measure.accuracy import correct_samples

    labels = arrays.pop(targets)
    session = _session(model, True, device)
    right = correct_samples(session, arrays, labels, batch_size=batch_size, output=output)
    return {}, {"right": right}


def peak_memory(arrays: Arrays, *, model: str, device: str) -> Answer:
    """How far this process's resident memory rises by loading the model and running it once, in bytes."""
    from growpipe.checks.measure.sessions import open_session

    _sessions.clear()
    _give_memory_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    except OSError:
        return {"bytes": None}, {}
    before = _status_bytes("VmRSS")
    open_session(model, device=device).run(arrays)  # type: ignore[arg-type]
    return {"bytes": max(0, _status_bytes("VmHWM") - before)}, {}


def _give_memory_back() -> None:
    import ctypes
    import gc

    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise CheckFailed(f"the system does not tell {field}")


def census(arrays: Arrays, *, model: str, device: str) -> Answer:
    """The operators that remain after optimisation, and the provider that each node runs on."""
    import json
    import shutil
    from collections import Counter

    from growpipe.checks.child.sandbox import temporary_folder
    from growpipe.checks.measure.sessions import open_session

    folder = temporary_folder()
    try:
        session = open_session(model, device=device, profile_prefix=str(folder / "profile"))  # type: ignore[arg-type]
        session.run(arrays)
        profile = Path(session.raw.end_profiling())
        events = json.loads(profile.read_text())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    nodes = {}
    for event in events:
        details = event.get("args") or {}
        if event.get("cat") == "Node" and "provider" in details and "op_name" in details:
            key = (details.get("node_index", ""), event["name"])
            nodes[key] = (event["name"].removesuffix("_kernel_time"), details["op_name"], details["provider"])
    placed = list(nodes.values())
    return {
        "operators": dict(sorted(Counter(operator for _, operator, _ in placed).items())),
        "placement": dict(sorted(Counter(provider for _, _, provider in placed).items())),
        "elsewhere": [
            [name, operator, provider]
            for name, operator, provider in placed
            if provider != session.providers[0]
        ],
        "providers": list(session.providers),
    }, {}


def torch_signature(arrays: Arrays, *, target: str, weights: str | None) -> Answer:
    """Load the user's module, to fail early."""
    from growpipe.checks.child.torch_reference import load_module

    return {"class": type(load_module(target, weights)).__name__}, {}


def torch_run(
    arrays: Arrays, *, target: str, weights: str | None, double: bool, modules: list[str] | None = None
) -> Answer:
    """The outputs of the user's module by position, and of those of its submodules that are asked for."""
    from growpipe.checks.child.torch_reference import load_module, run_module

    module = _kept_module(target, weights, load_module)
    outputs, inner = run_module(module, arrays, double=double, modules=modules or ())
    keys = {name: f"inner/{position}" for position, name in enumerate(inner)}
    return {"inner": keys}, {
        **{f"output/{i}": value for i, value in enumerate(outputs)},
        **{keys[name]: value for name, value in inner.items()},
    }


def _kept_module(target: str, weights: str | None, load: Callable[[str, str | None], Any]) -> Any:
    key = ("torch", target, weights)
    if key not in _sessions:
        _sessions[key] = load(target, weights)
    return _sessions[key]


OPERATIONS: dict[str, Callable[..., Answer]] = {
    operation.__name__: operation
    for operation in (
        onnx_checker,
        infer_shapes,
        describe,
        run,
        run_float64,
        trace,
        latency,
        classify,
        peak_memory,
        census,
        torch_signature,
        torch_run,
    )
}
