"""The child process: reads requests, does one of `growpipe.checks.child.requests` at a time, answers.

Started by `growpipe.checks.child.model_process`; nothing else calls it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from growpipe.checks.child import requests
from growpipe.checks.child.messages import NotAMessage, TooLarge, pack, read_message
from growpipe.checks.measure.memory import bytes_of, in_words
from growpipe.checks.measure.sessions import Device, Session
from growpipe.environment import how_to_install
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import CheckFailed, GrowpipeError

__all__ = ["serve"]

Arrays = dict[str, AnyArray]
Answer = tuple[dict[str, Any], Mapping[str, AnyArray]]

KEPT_SESSIONS = 4
KEPT_BYTES = 2**30
"""Of memory that this process takes: beyond it no session is kept beside a new one."""
MAX_MESSAGE = 4000
_TOO_MUCH = "it needs more memory than limits.memory_mb allows"
_ALLOCATION = re.compile(r"Failed to allocate memory for requested buffer of size (\d+)")
_sessions: dict[tuple[Any, ...], Session] = {}
_modules: dict[tuple[str, str | None], Any] = {}


def serve(settings: Mapping[str, Any]) -> None:
    """Answer requests on stdin until it closes. What libraries print to stdout goes to stderr."""
    source = _Stdin(os.fdopen(os.dup(0), "rb"))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    memory_mb = int(settings["memory_mb"])
    _limit_memory(memory_mb)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        if settings["torch"]:
            # Before onnxruntime: the other order can load two copies of one CUDA library.
            import torch

            torch.set_num_threads(1)
    except ImportError:
        needed = "--torch and a metric of your own need torch, which is not installed"
        print(f"{needed}: {how_to_install('train')}", file=sys.stderr)
        sys.exit(3)
    warnings.simplefilter("ignore")  # of the libraries; what counts is in the answers
    while True:
        try:
            document, arrays = read_message(source, memory_mb * 2**20)
        except (EOFError, NotAMessage, TooLarge):
            return
        data, values = _answer(requests.from_fields(document), arrays)
        for part in pack(data, values):
            answers.write(part)
        answers.flush()


class _Stdin:
    """Requests, as `read_message` reads them."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) != size:
            raise EOFError
        return data

    def read_into(self, view: memoryview) -> None:
        while view:
            count = self._stream.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            view = view[count:]


def _answer(request: requests.Request, arrays: Arrays) -> Answer:
    try:
        data, values = _HANDLERS[type(request)](request, arrays)
    except GrowpipeError as error:
        asked = _ALLOCATION.search(str(error))
        if asked:
            return _as_error("CheckFailed", f"{_TOO_MUCH}: one tensor takes {in_words(int(asked.group(1)))}")
        return _as_error(type(error).__name__, str(error))
    except MemoryError:
        return _as_error("CheckFailed", _TOO_MUCH)
    except Exception as error:
        return _as_error("CheckFailed", " ".join(f"{type(error).__name__}: {error}".split()))
    room = getattr(request, "room", None)
    needed = bytes_of(values)
    if room is not None and needed > room:
        return {"error": {"too_large": needed}}, {}
    return data, values


def _as_error(kind: str, message: str) -> Answer:
    return {"error": {"kind": kind, "message": message[:MAX_MESSAGE]}}, {}


def _end_with_parent(parent: int) -> None:
    """A tool that was killed cannot end a child that hangs in a model."""
    while os.getppid() == parent:
        time.sleep(2.0)
    os._exit(1)


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


def _session(model: str, device: Device, optimised: bool = True) -> Session:
    from growpipe.checks.measure.sessions import open_session

    status = os.stat(model)
    key = (model, status.st_mtime_ns, status.st_size, status.st_ino, optimised, device)
    session = _sessions.pop(key, None)
    if session is None:
        while _sessions and (len(_sessions) >= KEPT_SESSIONS or _resident_bytes() > KEPT_BYTES):
            del _sessions[next(iter(_sessions))]
        session = open_session(model, optimised=optimised, device=device)
    _sessions[key] = session
    return session


def _used_providers(request: requests.UsedProviders, arrays: Arrays) -> Answer:
    return {"providers": _session(request.model, request.device).providers}, {}


def _run_model(request: requests.RunModel, arrays: Arrays) -> Answer:
    return {}, _session(request.model, request.device, request.optimised).run(arrays)


def _run_float64(request: requests.RunFloat64, arrays: Arrays) -> Answer:
    from growpipe.checks.measure.float64 import run_in_double

    return {}, run_in_double(request.model, arrays)


def _run_inner(request: requests.RunInner, arrays: Arrays) -> Answer:
    import onnx

    from growpipe.checks.measure.trace import inner_values

    model, names = onnx.load(request.model), list(request.values)
    parts = inner_values(model, names, arrays, device=request.device, optimised=False)
    return {}, {name: value for part in parts for name, value in part.items()}


def _find_not_finite(request: requests.FindNotFinite, arrays: Arrays) -> Answer:
    from growpipe.checks.measure.trace import first_not_finite

    place = first_not_finite(request.model, arrays, device=request.device)
    return {"place": None if place is None else asdict(place)}, {}


def _find_divergence(request: requests.FindDivergence, arrays: Arrays) -> Answer:
    from growpipe.checks.measure.trace import KnownValues, OtherModel, first_diverging

    against: KnownValues | OtherModel
    if request.reference:
        against = OtherModel(request.reference, request.reference_optimised)
    else:
        against = KnownValues({tensor: arrays.pop(key) for tensor, key in request.values.items()})
    place = first_diverging(request.model, arrays, request.limit, against, device=request.device)
    return {"place": None if place is None else asdict(place)}, {}


def _time_pair(request: requests.TimePair, arrays: Arrays) -> Answer:
    from growpipe.checks.measure.latency import Timing, paired_latency

    _sessions.clear()
    renamed = {request.names.get(name, name): array for name, array in arrays.items()}
    timing = Timing(**request.timing)
    measured = paired_latency(request.reference, request.candidate, arrays, timing, candidate_inputs=renamed)
    return asdict(measured), {}


def _judge_samples(request: requests.JudgeSamples, arrays: Arrays) -> Answer:
    from growpipe.checks.measure.judge import Judge, judge_samples

    judge = Judge(**request.judge)
    targets = arrays.pop(request.targets)
    session = _session(request.model, request.device)
    if judge.is_own:
        from growpipe.checks.child.torch_metric import judge_by_own_metric

        judged = judge_by_own_metric(session, arrays, targets, judge)
    else:
        judged = judge_samples(session, arrays, targets, judge)
    rows = {} if judged.rows is None else {"rows": judged.rows}
    return {"value": judged.value, "samples": judged.samples}, rows


def _measure_memory(request: requests.MeasureMemory, arrays: Arrays) -> Answer:
    from growpipe.checks.measure.sessions import open_session

    _sessions.clear()
    _give_memory_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    except OSError:
        return {"bytes": None}, {}
    before = _status_bytes("VmRSS")
    open_session(request.model, device=request.device).run(arrays)
    return {"bytes": max(0, _status_bytes("VmHWM") - before)}, {}


def _give_memory_back() -> None:
    import ctypes
    import gc

    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _resident_bytes() -> int:
    """The memory that this process takes; 0 if the system does not tell."""
    try:
        return _status_bytes("VmRSS")
    except OSError:
        return 0


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise CheckFailed(f"the system does not tell {field}")


def _count_nodes(request: requests.CountNodes, arrays: Arrays) -> Answer:
    import json
    import tempfile
    from collections import Counter

    from growpipe.checks.measure.sessions import open_session

    with tempfile.TemporaryDirectory(prefix="growpipe-check-") as folder:
        session = open_session(request.model, device=request.device, profile_prefix=f"{folder}/profile")
        session.run(arrays)
        events = json.loads(Path(session.raw.end_profiling()).read_text())
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
        "elsewhere": [entry for entry in placed if entry[2] != session.providers[0]],
    }, {}


def _build_torch(request: requests.TorchTarget, arrays: Arrays) -> Answer:
    return {"class": type(_module(request.target, request.weights)).__name__}, {}


def _list_calls(request: requests.ListCalls, arrays: Arrays) -> Answer:
    from growpipe.checks.child.torch_reference import call_ways

    return {"calls": list(map(str, call_ways(_module(request.target, request.weights), request.names)))}, {}


def _run_torch(request: requests.RunTorch, arrays: Arrays) -> Answer:
    from growpipe.checks.child.torch_reference import call_ways, run_module

    module = _module(request.target, request.weights)
    call = call_ways(module, list(arrays))[request.way]
    outputs, inner = run_module(module, arrays, call, double=request.double, modules=request.modules)
    numbered = {f"output/{i}": value for i, value in enumerate(outputs)}
    keys = {name: f"inner/{i}" for i, name in enumerate(inner)}
    return {"outputs": list(numbered), "inner": keys}, {
        **numbered,
        **{keys[name]: value for name, value in inner.items()},
    }


def _module(target: str, weights: str | None) -> Any:
    from growpipe.checks.child.torch_reference import load_module

    if (target, weights) not in _modules:
        _modules[target, weights] = load_module(target, weights)
    return _modules[target, weights]


_HANDLERS: Mapping[type[requests.Request], Callable[[Any, Arrays], Answer]] = {
    requests.UsedProviders: _used_providers,
    requests.RunModel: _run_model,
    requests.RunFloat64: _run_float64,
    requests.RunInner: _run_inner,
    requests.FindNotFinite: _find_not_finite,
    requests.FindDivergence: _find_divergence,
    requests.TimePair: _time_pair,
    requests.JudgeSamples: _judge_samples,
    requests.MeasureMemory: _measure_memory,
    requests.CountNodes: _count_nodes,
    requests.TorchTarget: _build_torch,
    requests.ListCalls: _list_calls,
    requests.RunTorch: _run_torch,
}
