"""The first node at which two models part, or at which one leaves the finite numbers."""

from __future__ import annotations

import ast
import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from growpipe.checks.measure.compare import compare
from growpipe.checks.measure.sessions import Device, open_session
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import CheckFailed

__all__ = [
    "KnownValues",
    "OtherModel",
    "Place",
    "first_diverging",
    "first_not_finite",
    "inner_values",
    "last_of_module",
    "module_of",
]

PER_RUN = 64
"""Values kept per run: all at once would need the memory of the whole forward pass."""

_SCOPES = "pkg.torch.onnx.name_scopes"
_NAMESPACE = "namespace"


@dataclass(frozen=True, slots=True)
class Place:
    """A node at which something was found.

    Attributes:
        node: its name.
        operator: its operator type.
        tensor: its output that was looked at.
        module: the torch module that the node was exported from; empty if the exporter did not say.
        detail: what was found there.
    """

    node: str
    operator: str
    tensor: str
    module: str
    detail: str


@dataclass(frozen=True, slots=True)
class OtherModel:
    """A model as the reference of another one.

    Attributes:
        path: its file.
        optimised: whether onnxruntime optimises its graph.
    """

    path: str | os.PathLike[str]
    optimised: bool = False


@dataclass(frozen=True, slots=True)
class KnownValues:
    """Right values of a model's inner tensors, by the names of the tensors."""

    values: Mapping[str, AnyArray]


def module_of(node: onnx.NodeProto) -> str:
    """The torch module that a node was exported from, as far as the exporter wrote it down; else ''."""
    metadata = {entry.key: entry.value for entry in node.metadata_props}
    if _SCOPES in metadata:
        try:
            scopes = ast.literal_eval(metadata[_SCOPES])
            return str(scopes[-2]) if len(scopes) >= 2 else ""
        except (ValueError, SyntaxError, TypeError, IndexError):
            return ""
    if _NAMESPACE in metadata:
        parts = [part.partition(":")[0].strip() for part in metadata[_NAMESPACE].split("/")]
        return parts[-2] if len(parts) >= 2 else ""
    # The older exporter names nodes "/features/features.0/Conv".
    if node.name.startswith("/") and node.name.count("/") >= 2:
        return ".".join(_unrepeated(node.name.strip("/").split("/")[:-1]))
    return ""


def _unrepeated(parts: list[str]) -> list[str]:
    """``features/features.0`` is one path, ``features.0``: every part may repeat its parent."""
    path: list[str] = []
    for part in parts:
        if path and part.startswith(path[-1] + "."):
            path[-1] = part
        else:
            path.append(part)
    return path


def last_of_module(model: onnx.ModelProto) -> dict[str, str]:
    """Per torch module the first output of the last node that was exported from it."""
    return {
        module: node.output[0] for node in model.graph.node if (module := module_of(node)) and node.output
    }


def _place(node: onnx.NodeProto, tensor: str, detail: str) -> Place:
    return Place(node.name, node.op_type, tensor, module_of(node), detail)


def first_not_finite(
    path: str | os.PathLike[str], inputs: Mapping[str, AnyArray], *, device: Device = "cpu"
) -> Place | None:
    """The first node that makes a NaN or an infinity, in the order of the graph; None if none does."""
    model = onnx.load(path)
    producer = _producers(model)
    for values in inner_values(model, list(producer), inputs, device=device, optimised=False):
        for tensor, value in values.items():
            if value.dtype.kind in "fV":
                bad = int(np.count_nonzero(~np.isfinite(value.astype(np.float64))))
                if bad:
                    detail = f"{bad} of {value.size} values are NaN or infinite"
                    return _place(producer[tensor], tensor, detail)
    return None


def first_diverging(
    path: str | os.PathLike[str],
    inputs: Mapping[str, AnyArray],
    limit: float,
    against: OtherModel | KnownValues,
    *,
    device: Device = "cpu",
) -> Place | None:
    """The first node whose output is further than ``limit`` (relative) from the reference's.

    Args:
        path: the candidate.
        inputs: by the names of the candidate; the reference's are taken by position if names differ.
        limit: as the ``relative`` of `growpipe.checks.measure.compare.Divergence`.
        against: the reference. Values of another model are matched by name and operator, else by aligning
            the operators of the two graphs.
        device: where both run.

    Returns:
        The place, or None if no comparable value diverges.
    """
    model = onnx.load(path)
    producer = _producers(model)
    compared = (
        _beside_model(model, inputs, against, device)
        if isinstance(against, OtherModel)
        else _beside_values(model, inputs, against.values, device)
    )
    for tensor, value, right in compared:
        if value.shape != right.shape or value.dtype.kind not in "fV" or right.dtype.kind not in "fV":
            continue
        found = compare({tensor: right}, {tensor: value})
        if found.relative > limit:
            detail = f"relative difference {found.relative:.3g} (limit {limit:.3g})"
            return _place(producer[tensor], tensor, detail)
    return None


_Pairs = Iterator[tuple[str, AnyArray, AnyArray]]
"""The name of a tensor of the candidate, its value, and the value that it should have."""


def _beside_model(
    model: onnx.ModelProto, inputs: Mapping[str, AnyArray], reference: OtherModel, device: Device
) -> _Pairs:
    other = onnx.load(reference.path)
    pairs = _matched(model, other)
    given = [i.name for i in model.graph.input if i.name in inputs]
    defaults = {t.name for t in other.graph.initializer}
    wanted = [i.name for i in other.graph.input if i.name not in defaults]
    named = wanted if all(name in inputs for name in wanted) else given
    other_inputs = {theirs: inputs[ours] for theirs, ours in zip(wanted, named, strict=False)}
    ours = inner_values(model, list(pairs), inputs, device=device, optimised=False)
    theirs = inner_values(
        other, list(pairs.values()), other_inputs, device=device, optimised=reference.optimised
    )
    for values, right in zip(ours, theirs, strict=True):
        yield from ((tensor, value, right[pairs[tensor]]) for tensor, value in values.items())


def _beside_values(
    model: onnx.ModelProto,
    inputs: Mapping[str, AnyArray],
    known: Mapping[str, AnyArray],
    device: Device,
) -> _Pairs:
    wanted = [name for name in _producers(model) if name in known]
    for values in inner_values(model, wanted, inputs, device=device, optimised=False):
        yield from ((tensor, value, known[tensor]) for tensor, value in values.items())


def _producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output if name}


def _matched(model: onnx.ModelProto, other: onnx.ModelProto) -> dict[str, str]:
    """The candidate's tensors, in its order, with the tensor of the reference that each corresponds to."""
    ours, theirs = _producers(model), _producers(other)
    pairs = {
        name: name for name, node in ours.items() if name in theirs and theirs[name].op_type == node.op_type
    }
    if len(pairs) * 4 >= min(len(ours), len(theirs)):
        return pairs
    a = [(name, node.op_type) for name, node in ours.items()]
    b = [(name, node.op_type) for name, node in theirs.items()]
    blocks = difflib.SequenceMatcher(None, [x[1] for x in a], [x[1] for x in b], autojunk=False)
    return {
        a[block.a + i][0]: b[block.b + i][0]
        for block in blocks.get_matching_blocks()
        for i in range(block.size)
    }


def inner_values(
    model: onnx.ModelProto,
    tensors: list[str],
    inputs: Mapping[str, AnyArray],
    *,
    device: Device,
    optimised: bool,
) -> Iterator[dict[str, AnyArray]]:
    """The values of these tensors, in their order, some at a time."""
    declared = {o.name: o for o in model.graph.output}
    for start in range(0, len(tensors), PER_RUN):
        part = tensors[start : start + PER_RUN]
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        del probe.graph.output[:]
        wanted = list(dict.fromkeys(part))
        probe.graph.output.extend(declared.get(n, onnx.ValueInfoProto(name=n)) for n in wanted)
        try:
            serialised = probe.SerializeToString()
        except ValueError:
            raise CheckFailed("the model is too large to look at its inner values") from None
        values = open_session(serialised, optimised=optimised, device=device).run(inputs)
        yield {name: values[name] for name in part if name in values}
