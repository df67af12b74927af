"""What the child process can be asked to do: one type per operation, known to both sides.

A request crosses to the child as its name and its fields; arrays travel beside it. Paths are absolute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from growpipe.checks.measure.sessions import Device

__all__ = [
    "Classify",
    "CountNodes",
    "FindDivergence",
    "FindNotFinite",
    "ListCalls",
    "MeasureMemory",
    "Request",
    "RunFloat64",
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
class UsedProviders(Request):
    """The execution providers of a session of the model."""

    model: str
    device: Device


@dataclass(frozen=True)
class RunModel(Request):
    """One run on the arrays, which are the inputs by name; the outputs come back by name.

    Attributes:
        model: path of the model.
        device: where it runs.
        optimised: whether onnxruntime optimises the graph.
        room: bytes that the outputs may take.
    """

    model: str
    device: Device
    optimised: bool
    room: int


@dataclass(frozen=True)
class RunFloat64(Request):
    """One run of the model with every float32 made a float64."""

    model: str
    room: int


@dataclass(frozen=True)
class FindNotFinite(Request):
    """The first node whose output is not finite."""

    model: str
    device: Device


@dataclass(frozen=True)
class FindDivergence(Request):
    """The first node at which the model departs from another model, or from known values.

    Attributes:
        model: path of the model.
        device: where both run.
        limit: of the relative difference.
        reference: path of the other model; empty if values are given.
        reference_optimised: whether onnxruntime optimises the other model.
        values: by the name of a tensor of the model, the name of the array that holds its right value.
    """

    model: str
    device: Device
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
class Classify(Request):
    """Whether the class of each sample is right.

    Attributes:
        model: path of the model.
        device: where it runs.
        batch_size: samples of one run.
        output: the output that holds scores or classes; None for the first.
        targets: the name of the array that holds the right classes.
    """

    model: str
    device: Device
    batch_size: int
    output: str | None
    targets: str


@dataclass(frozen=True)
class MeasureMemory(Request):
    """How far the child's resident memory rises by loading the model and running it once."""

    model: str
    device: Device


@dataclass(frozen=True)
class CountNodes(Request):
    """The nodes that remain after optimisation, and the provider of each."""

    model: str
    device: Device


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
class ListCalls(Request):
    """The ways to call a torch module with inputs of these names.

    Attributes:
        target: as in `TorchTarget`.
        weights: as in `TorchTarget`.
        names: of the model's inputs, in order.
    """

    target: str
    weights: str | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class RunTorch(Request):
    """One run of a torch module.

    Attributes:
        target: as in `TorchTarget`.
        weights: as in `TorchTarget`.
        way: which of the ways to call the module, by position.
        double: whether a copy in float64 runs.
        modules: names of submodules whose outputs are wanted too.
        room: bytes that the outputs may take.
    """

    target: str
    weights: str | None
    way: int
    double: bool
    modules: tuple[str, ...]
    room: int


_REQUESTS: Mapping[str, type[Request]] = {kind.__name__: kind for kind in Request.__subclasses__()}


def to_fields(request: Request) -> dict[str, Any]:
    """The request as plain values."""
    return {"request": type(request).__name__, "fields": asdict(request)}


def from_fields(document: Mapping[str, Any]) -> Request:
    """The request that `to_fields` wrote down."""
    return _REQUESTS[document["request"]](**document["fields"])
