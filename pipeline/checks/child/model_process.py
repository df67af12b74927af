"""The child process in which models run, under limits of time and memory.

A model that crashes or hangs the runtime takes the child with it, not the tool; the next request gets a new
child. This contains accidents. It is not a jail for hostile code, and need not be one: models cannot carry
code, and libraries of custom operators are never loaded.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from growpipe.checks.child.messages import Arrays, NotAMessage, TooLarge, pack, read_message
from growpipe.checks.child.requests import (
    CountNodes,
    FindDivergence,
    FindNotFinite,
    JudgeSamples,
    ListCalls,
    MeasureMemory,
    Request,
    RunFloat64,
    RunInner,
    RunModel,
    RunTorch,
    TimePair,
    TorchTarget,
    UsedProviders,
    to_fields,
)
from growpipe.checks.measure.judge import Judge, Judged
from growpipe.checks.measure.latency import LatencyRatio, Timing
from growpipe.checks.measure.memory import MemoryRoom, child_memory_mb
from growpipe.checks.measure.sessions import Device
from growpipe.checks.measure.trace import KnownValues, OtherModel, Place
from growpipe.graph_ops import errors
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import CheckFailed, GrowpipeError, MissingEnvironment
from growpipe.graph_ops.onnx_tools.child_process import ChildEnded, ChildProcess, ChildTimedOut

__all__ = ["ModelCrashed", "ModelHung", "ModelProcess", "NodeCount", "PlacedNode", "TorchOutputs"]

_TARGETS = "/targets"  # as no input is called


class ModelCrashed(CheckFailed):
    """The process that ran the model died."""


class ModelHung(CheckFailed):
    """The model did not come to an end within the time limit."""


@dataclass(frozen=True)
class PlacedNode:
    """A node that remains after optimisation, and the execution provider that runs it."""

    name: str
    operator: str
    provider: str


@dataclass(frozen=True)
class NodeCount:
    """The nodes that remain after optimisation.

    Attributes:
        operators: how many nodes there are of each operator.
        placement: how many nodes each execution provider runs.
        elsewhere: the nodes that do not run on the provider that was asked for.
    """

    operators: Mapping[str, int]
    placement: Mapping[str, int]
    elsewhere: tuple[PlacedNode, ...]


@dataclass(frozen=True)
class TorchOutputs:
    """What a torch module gave.

    Attributes:
        outputs: flattened, in order.
        inner: by the name of a submodule, the tensor that it gave.
    """

    outputs: Sequence[AnyArray]
    inner: Mapping[str, AnyArray]


class ModelProcess:
    """Runs models in a child process, which is started when it is needed.

    Every method raises `ModelHung` if the time limit passes, `ModelCrashed` if the child dies, and otherwise
    the error that the operation itself raised, a `GrowpipeError`.

    Args:
        seconds: time limit of one request.
        memory_mb: limit in MiB of the private memory of the child and of the arrays in this process together.
            The child's part is enforced where the system can (Linux).
        torch: import torch in the child first; only for a torch module or a metric that are code of the user.
    """

    def __init__(self, *, seconds: float = 120.0, memory_mb: int = 16384, torch: bool = False) -> None:
        self.seconds = seconds
        self.memory_mb = memory_mb
        self.torch = torch
        self._process: ChildProcess | None = None

    def __enter__(self) -> ModelProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child, if there is one."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def providers(self, model: Path, device: Device) -> tuple[str, ...]:
        """The execution providers of a session of the model, in order."""
        return tuple(self._ask(UsedProviders(str(model), device))[0]["providers"])

    def run(
        self,
        model: Path,
        inputs: Arrays,
        device: Device,
        *,
        optimised: bool = True,
        room: MemoryRoom | None = None,
    ) -> dict[str, AnyArray]:
        """The outputs of one run, by name; a `CheckFailed` if they do not fit into ``room``."""
        room = room or MemoryRoom(self.memory_mb)
        return self._ask(RunModel(str(model), device, optimised, room.left), inputs, room)[1]

    def run_float64(
        self, model: Path, inputs: Arrays, seconds: float, room: MemoryRoom | None = None
    ) -> dict[str, AnyArray]:
        """The outputs of one run with every float32 made a float64, by name."""
        room = room or MemoryRoom(self.memory_mb)
        return self._ask(RunFloat64(str(model), room.left), inputs, room, seconds)[1]

    def run_inner(
        self,
        model: Path,
        inputs: Arrays,
        values: Sequence[str],
        device: Device,
        *,
        room: MemoryRoom | None = None,
    ) -> dict[str, AnyArray]:
        """Inner values of one run without optimisation, by name; a `CheckFailed` if they do not fit into
        ``room``, or the model is too large to be changed in memory.
        """
        room = room or MemoryRoom(self.memory_mb)
        return self._ask(RunInner(str(model), device, tuple(values), room.left), inputs, room)[1]

    def first_not_finite(self, model: Path, inputs: Arrays, device: Device) -> Place | None:
        """See `growpipe.checks.measure.trace.first_not_finite`."""
        return _place(self._ask(FindNotFinite(str(model), device), inputs)[0])

    def first_diverging(
        self, model: Path, inputs: Arrays, limit: float, against: OtherModel | KnownValues, device: Device
    ) -> Place | None:
        """See `growpipe.checks.measure.trace.first_diverging`."""
        reference, optimised, keys = "", False, dict[str, str]()
        arrays = dict(inputs)
        if isinstance(against, OtherModel):
            reference, optimised = os.fspath(against.path), against.optimised
        else:
            keys = {tensor: f"/value/{i}" for i, tensor in enumerate(against.values)}
            arrays.update({keys[tensor]: value for tensor, value in against.values.items()})
        request = FindDivergence(str(model), device, limit, reference, optimised, keys)
        return _place(self._ask(request, arrays)[0])

    def time_pair(
        self, reference: Path, candidate: Path, inputs: Arrays, names: Mapping[str, str], timing: Timing
    ) -> LatencyRatio:
        """The latency of the candidate over that of the reference.

        Args:
            reference: path.
            candidate: path.
            inputs: by the reference's names.
            names: by the reference's name of an input, the candidate's.
            timing: how long and how to measure; its seconds come on top of the time limit.
        """
        request = TimePair(str(reference), str(candidate), names, asdict(timing))
        answer, _ = self._ask(request, inputs, seconds=self.seconds + 3 * timing.seconds)
        return LatencyRatio(**answer)

    def judge(self, model: Path, inputs: Arrays, targets: AnyArray, device: Device, judge: Judge) -> Judged:
        """See `growpipe.checks.measure.judge.judge_samples`; for a metric of the user's own, with torch."""
        request = JudgeSamples(str(model), device, asdict(judge), _TARGETS)
        answer, arrays = self._ask(request, {**inputs, _TARGETS: targets})
        return Judged(float(answer["value"]), int(answer["samples"]), arrays.get("rows"))

    def peak_memory(self, model: Path, inputs: Arrays, device: Device) -> int | None:
        """How far the child's resident memory rises by loading the model and running it once, in bytes.

        None if the system does not tell.
        """
        peak = self._ask(MeasureMemory(str(model), device), inputs)[0]["bytes"]
        return None if peak is None else int(peak)

    def count_nodes(self, model: Path, inputs: Arrays, device: Device) -> NodeCount:
        """The nodes that remain after optimisation, from a profile of one run."""
        answer, _ = self._ask(CountNodes(str(model), device), inputs)
        elsewhere = tuple(PlacedNode(*entry) for entry in answer["elsewhere"])
        return NodeCount(answer["operators"], answer["placement"], elsewhere)

    def build_torch(self, module: TorchTarget) -> str:
        """Build a torch module, to fail early; the name of its class."""
        return str(self._ask(module)[0]["class"])

    def torch_calls(self, module: TorchTarget, names: Sequence[str]) -> list[str]:
        """The ways to call a torch module with inputs of these names, likely ones first."""
        request = ListCalls(module.target, module.weights, tuple(names))
        return [str(call) for call in self._ask(request)[0]["calls"]]

    def run_torch(
        self,
        module: TorchTarget,
        inputs: Arrays,
        *,
        way: int = 0,
        double: bool = False,
        modules: Sequence[str] = (),
        room: MemoryRoom | None = None,
    ) -> TorchOutputs:
        """See `growpipe.checks.child.torch_reference.run_module`; ``way`` is one of `torch_calls`."""
        room = room or MemoryRoom(self.memory_mb)
        request = RunTorch(module.target, module.weights, way, double, tuple(modules), room.left)
        answer, arrays = self._ask(request, inputs, room)
        outputs = [arrays[key] for key in answer["outputs"]]
        return TorchOutputs(outputs, {name: arrays[key] for name, key in answer["inner"].items()})

    def _ask(
        self,
        request: Request,
        arrays: Arrays | None = None,
        room: MemoryRoom | None = None,
        seconds: float | None = None,
    ) -> tuple[dict[str, Any], dict[str, AnyArray]]:
        room = room or MemoryRoom(self.memory_mb)
        limit = self.seconds if seconds is None else seconds
        deadline = time.monotonic() + limit
        process = self._started()
        try:
            process.write(pack(to_fields(request), arrays), deadline)
            document, values = read_message(_Answers(process, deadline), room.left)
        except ChildEnded as end:
            self.close()
            if end.code == 3:  # the child could not even start
                message = end.last_words or "the process that runs models could not start"
                raise MissingEnvironment(message) from None
            raise ModelCrashed(f"it crashed the process that ran it ({end.how}){_after(end)}") from None
        except NotAMessage as error:
            self.close()
            raise ModelCrashed(f"the process that ran it wrote what is not an answer: {error}") from None
        except TooLarge as error:
            self.close()
            room.require(error.needed, "its outputs")
            raise
        except ChildTimedOut:
            self.close()
            raise ModelHung(
                f"it did not end within {limit:g} s and was stopped; "
                "if it may take longer, raise limits.seconds of growpipe check"
            ) from None
        except BaseException:
            self.close()
            raise
        refused = document.get("error")
        if refused is not None:
            if "too_large" in refused:
                room.require(int(refused["too_large"]), "its outputs")
            kind = getattr(errors, str(refused["kind"]), None)
            if not (isinstance(kind, type) and issubclass(kind, GrowpipeError)):
                kind = CheckFailed
            raise kind(str(refused["message"]))
        return document, values

    def _started(self) -> ChildProcess:
        if self._process is None or not self._process.is_ours:
            self.close()
            settings = json.dumps(
                {"memory_mb": child_memory_mb(self.memory_mb), "torch": self.torch, "path": sys.path}
            )
            # The search path of this process is handed on, and -P keeps the current folder out of it.
            bootstrap = (
                "import json, sys; settings = json.loads(sys.argv[1]); sys.path[:] = settings.pop('path'); "
                "from growpipe.checks.child.operations import serve; serve(settings)"
            )
            environment = {**os.environ, "PYTHONFAULTHANDLER": "", "OMP_NUM_THREADS": "1"}
            self._process = ChildProcess([sys.executable, "-P", "-c", bootstrap, settings], environment)
        return self._process


@dataclass(frozen=True)
class _Answers:
    """The child's answers, as `read_message` reads them."""

    process: ChildProcess
    deadline: float

    def read(self, size: int) -> bytes:
        return self.process.read(size, self.deadline)

    def read_into(self, view: memoryview) -> None:
        self.process.read_into(view, self.deadline)


def _after(end: ChildEnded) -> str:
    return f": {end.last_words}" if end.last_words else ""


def _place(answer: Mapping[str, Any]) -> Place | None:
    return None if answer["place"] is None else Place(**answer["place"])
