"""What the child process can be asked to do: one type per operation, known to both sides.

A request crosses to the child as its name and its fields; arrays travel beside it. Paths are absolute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from growpipe.checks.measure.sessions import Device

__all__ = [
    "CountNodes",
    "FindDivergence",
    "FindNotFinite",
    "JudgeSamples",
    "ListCalls",
    "MeasureMemory",
    "Request",
    "RunFloat64",
    "RunInner",
    "RunModel",
    "RunTorch",
    "TimePair",
    "TorchTarget",
    "UsedProviders",
    "from_fields",
    "to_fields",
]


@dataclass(frozen=True)
class Request:
    """The base of all requests."""


@dataclass(frozen=True)
class ModelRequest(Request):
    """A request about one model on one device.

    Attributes:
        model: path of the model.
        device: where it runs.
    """

    model: str
    device: Device


@dataclass(frozen=True)
class UsedProviders(ModelRequest):
    """The execution providers of a session of the model."""


@dataclass(frozen=True)
class RunModel(ModelRequest):
    """One run on the arrays, which are the inputs by name; the outputs come back by name.

    Attributes:
        optimised: whether onnxruntime optimises the graph.
        room: bytes that the outputs may take.
    """

    optimised: bool
    room: int


@dataclass(frozen=True)
class RunInner(ModelRequest):
    """One run without optimisation; inner values come back by name.

    Attributes:
        values: their names.
        room: bytes that they may take.
    """

    values: tuple[str, ...]
    room: int


@dataclass(frozen=True)
class RunFloat64(Request):
    """One run of the model with every float32 made a float64."""

    model: str
    room: int


@dataclass(frozen=True)
class FindNotFinite(ModelRequest):
    """The first node whose output is not finite."""


@dataclass(frozen=True)
class FindDivergence(ModelRequest):
    """The first node at which the model departs from another model, or from known values.

    Attributes:
        limit: of the relative difference.
        reference: path of the other model; empty if values are given.
        reference_optimised: whether onnxruntime optimises the other model.
        values: by the name of a tensor of the model, the name of the array that holds its right value.
    """

    limit: float
    reference: str
    reference_optimised: bool
    values: Mapping[str, str]


@dataclass(frozen=True)
class TimePair(Request):
    """The latency of the candidate over that of the reference.

    Attributes:
        reference: path.
        candidate: path.
        names: by the reference's name of an input, the candidate's.
        timing: the fields of `growpipe.checks.measure.latency.Timing`.
    """

    reference: str
    candidate: str
    names: Mapping[str, str]
    timing: Mapping[str, Any]


@dataclass(frozen=True)
class JudgeSamples(ModelRequest):
    """How well the model does on samples that have targets.

    Attributes:
        judge: the fields of `growpipe.checks.measure.judge.Judge`.
        targets: the name of the array that holds the targets.
    """

    judge: Mapping[str, Any]
    targets: str


@dataclass(frozen=True)
class MeasureMemory(ModelRequest):
    """How far the child's resident memory rises by loading the model and running it once."""


@dataclass(frozen=True)
class CountNodes(ModelRequest):
    """The nodes that remain after optimisation, and the provider of each."""


@dataclass(frozen=True)
class TorchTarget(Request):
    """A torch module of the user's, to be built.

    Attributes:
        target: ``my_net.py:build``.
        weights: path of its weights; None to keep those that it is built with.
    """

    target: str
    weights: str | None


@dataclass(frozen=True)
class ListCalls(TorchTarget):
    """The ways to call a torch module with inputs of these names.

    Attributes:
        names: of the model's inputs, in order.
    """

    names: tuple[str, ...]


@dataclass(frozen=True)
class RunTorch(TorchTarget):
    """One run of a torch module.

    Attributes:
        way: which of the ways to call the module, by position.
        double: whether a copy in float64 runs.
        modules: names of submodules whose outputs are wanted too.
        room: bytes that the outputs may take.
    """

    way: int
    double: bool
    modules: tuple[str, ...]
    room: int


def _below(kind: type[Request]) -> Iterator[type[Request]]:
    for inner in kind.__subclasses__():
        yield inner
        yield from _below(inner)


_REQUESTS: Mapping[str, type[Request]] = {kind.__name__: kind for kind in _below(Request)}


def to_fields(request: Request) -> dict[str, Any]:
    """The request as plain values."""
    return {"request": type(request).__name__, "fields": asdict(request)}


def from_fields(document: Mapping[str, Any]) -> Request:
    """The request that `to_fields` wrote down."""
    return _REQUESTS[document["request"]](**document["fields"])
