"""What a parsed model must satisfy before anything is built from it. Reads no tensor data.

Every rule here is one that a damaged or hostile file breaks: tensors whose bytes do not match their shape,
external data outside the model's folder, values that nothing produces, functions that call themselves.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import Message

from growpipe.graph_ops.errors import UnsafeModel
from growpipe.graph_ops.operators import plain_domain

__all__ = ["MAX_EXPANDED_NODES", "MAX_NAME", "MAX_NODES", "MAX_RANK", "check_proto", "shortened"]

MAX_NODES = 500_000
MAX_EXPANDED_NODES = 5_000_000
"""Nodes after every call of a function is replaced by its body."""
MAX_NAME = 4096
MAX_RANK = 32
_MAX_ELEMENTS = 2**62

_EXTERNAL_KEYS = {"location", "offset", "length", "checksum"}
_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_TENSOR_ATTRIBUTES = {onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS}


def shortened(text: object, limit: int = 120) -> str:
    """``repr`` of a name that may be anything: one line, of bounded length."""
    quoted = repr(text if not isinstance(text, str) else text[: limit + 1])
    return quoted if len(quoted) <= limit else quoted[: limit - 1] + "…"


class _Later(set[str]):
    """The values of an outer graph, of which some may be produced only after the node being looked at."""


@dataclass
class _Findings:
    """What the walk through one model has seen so far."""

    folder: Path
    nodes: int = 0
    unsorted: bool = False
    files: dict[str, int] = field(default_factory=dict)  # location: length of the file


def check_proto(proto: onnx.ModelProto, folder: Path) -> bool:
    """Check a model that was parsed without its external data.

    Args:
        proto: the model.
        folder: the absolute path of the folder it stands in.

    Returns:
        Whether the nodes of every graph stand in topological order.

    Raises:
        UnsafeModel: the first rule that the model breaks.
    """
    if not proto.graph.node and not proto.graph.output:
        raise UnsafeModel("it holds no graph: it is empty, or no ONNX model")
    if proto.ir_version < 1:
        raise UnsafeModel("it has no IR version: it is not an ONNX model")
    if not proto.opset_import:
        raise UnsafeModel("it imports no operator set")
    _check_text(proto, "the model")
    _check_names((proto.producer_name, proto.producer_version, proto.domain), "the model")
    _check_names((opset.domain for opset in proto.opset_import), "the model")
    domains = {plain_domain(opset.domain) for opset in proto.opset_import}
    findings = _Findings(folder)
    _check_graph(proto.graph, [], domains, findings, "the graph")
    for info in proto.training_info:
        for graph in (info.initialization, info.algorithm):
            for tensor in _tensors_of(graph):
                _check_tensor(tensor, findings, "the training graph")
    for function in proto.functions:
        where = f"function {shortened(function.name)}"
        _check_text(function, where)
        _check_names((function.name, function.domain, function.overload), where)
        _check_names((*function.input, *function.output, *function.attribute), where)
        _check_values(function.value_info, where)
        for attribute in function.attribute_proto:
            _check_attribute(attribute, [], domains, findings, where)
        function_domains = {plain_domain(opset.domain) for opset in function.opset_import}
        scope = [_unique(function.input, set(), where)]
        _check_nodes(function.node, scope, function_domains, findings, where)
        _check_produced(function.output, scope, where)
    _check_calls(proto)
    return not findings.unsorted


def _check_text(message: Message, where: str) -> None:
    """Documentation and metadata must be text; protobuf hands out bytes where they are not UTF-8."""
    entries = [text for entry in message.metadata_props for text in (entry.key, entry.value)]
    if not all(isinstance(text, str) for text in (message.doc_string, *entries)):
        raise UnsafeModel(f"{where} has documentation or metadata that is not UTF-8 text")


def _check_names(names: Iterable[str], where: str) -> None:
    for name in names:
        if not isinstance(name, str):
            raise UnsafeModel(f"{where} has a name that is not UTF-8 text: {shortened(name)}")
        if len(name) > MAX_NAME:
            raise UnsafeModel(f"{where} has a name of {len(name)} characters; {MAX_NAME} are the limit")


def _unique(names: Iterable[str], taken: set[str], where: str) -> set[str]:
    for name in names:
        if name in taken:
            raise UnsafeModel(f"{where} defines {shortened(name)} twice")
        taken.add(name)
    return taken


def _check_graph(
    graph: onnx.GraphProto, scopes: list[set[str]], domains: set[str], findings: _Findings, where: str
) -> None:
    if graph.sparse_initializer:
        raise UnsafeModel(f"{where} has sparse initializers, which cannot be read")
    inputs = [info.name for info in graph.input]
    initializers = [tensor.name for tensor in graph.initializer]
    _check_text(graph, where)
    _check_names((graph.name, *initializers), where)
    for infos in (graph.input, graph.output, graph.value_info):
        _check_values(infos, where)
    if not all(initializers) or not all(inputs):
        raise UnsafeModel(f"{where} has an input or an initializer without a name")
    for tensor in graph.initializer:
        _check_tensor(tensor, findings, where)
    _unique(initializers, set(), where)
    # An initializer may share its name with an input, whose default it then is.
    scope = _unique(inputs, set(), where) | set(initializers)
    _check_nodes(graph.node, [*scopes, scope], domains, findings, where)
    _check_produced([info.name for info in graph.output], [*scopes, scope], where)


def _check_values(infos: Iterable[onnx.ValueInfoProto], where: str) -> None:
    for info in infos:
        _check_text(info, where)
        _check_names((info.name,), where)
        _check_type(info.type, where)


def _check_type(type_: onnx.TypeProto, where: str) -> None:
    _check_names((type_.denotation,), where)
    for tensor in (type_.tensor_type, type_.sparse_tensor_type):
        dims = tensor.shape.dim
        if len(dims) > MAX_RANK:
            raise UnsafeModel(f"{where} has a value of {len(dims)} dimensions; {MAX_RANK} are the limit")
        for dim in dims:
            _check_names((dim.dim_param, dim.denotation), where)
            if dim.dim_value < 0:
                dim.ClearField("value")  # how some exporters write a length that is not known
    for inner in (type_.sequence_type.elem_type, type_.optional_type.elem_type, type_.map_type.value_type):
        if inner.ByteSize():
            _check_type(inner, where)


def _check_produced(names: Iterable[str], scopes: list[set[str]], where: str) -> None:
    for name in names:
        if not any(name in scope for scope in scopes):
            raise UnsafeModel(f"{where} has the output {shortened(name)}, which nothing produces")


def _check_nodes(
    nodes: Sequence[onnx.NodeProto],
    scopes: list[set[str]],
    domains: set[str],
    findings: _Findings,
    where: str,
) -> None:
    findings.nodes += len(nodes)
    if findings.nodes > MAX_NODES:
        raise UnsafeModel(f"it has more than {MAX_NODES} nodes")
    for node in nodes:
        _check_text(node, where)
        _check_names((node.name, node.op_type, node.domain, node.overload), where)
        _check_names((*node.input, *node.output), where)
        if not node.op_type:
            raise UnsafeModel(f"{where} has a node without an operator: {shortened(node.name)}")
        if plain_domain(node.domain) not in domains:
            raise UnsafeModel(
                f"{where} uses {shortened(node.op_type)} of the domain {shortened(node.domain)}, "
                "which it does not import"
            )
    outputs = [name for node in nodes for name in node.output if name]
    produced = _unique(outputs, set(), where)
    _unique(produced, set(scopes[-1]), where)
    for node in nodes:
        for name in node.input:
            found = [scope for scope in scopes if name in scope]
            if not name or any(not isinstance(scope, _Later) for scope in found):
                continue
            if not found and name not in produced:
                raise UnsafeModel(
                    f"{where}: node {shortened(node.name or node.op_type)} reads {shortened(name)}, "
                    "which nothing produces"
                )
            findings.unsorted = True
        for attribute in node.attribute:
            # A subgraph may read values of the outer graph, in whatever order the nodes stand.
            later = _Later(produced.difference(node.output))
            inner = [*scopes, later] if attribute.HasField("g") or attribute.graphs else scopes
            _check_attribute(attribute, inner, domains, findings, where)
        scopes[-1].update(name for name in node.output if name)


def _check_attribute(
    attribute: onnx.AttributeProto,
    scopes: list[set[str]],
    domains: set[str],
    findings: _Findings,
    where: str,
) -> None:
    _check_names((attribute.name, attribute.ref_attr_name), where)
    if not isinstance(attribute.doc_string, str):
        raise UnsafeModel(f"{where} has documentation that is not UTF-8 text")
    for type_ in (attribute.tp, *attribute.type_protos):
        _check_type(type_, where)
    if not attribute.ref_attr_name and attribute.type == onnx.AttributeProto.UNDEFINED:
        raise UnsafeModel(f"{where} has the attribute {shortened(attribute.name)}, which has no type")
    if attribute.type in _TENSOR_ATTRIBUTES or attribute.HasField("sparse_tensor"):
        raise UnsafeModel(f"{where} has a sparse tensor, which cannot be read")
    if attribute.HasField("t"):
        _check_tensor(attribute.t, findings, where)
    for tensor in attribute.tensors:
        _check_tensor(tensor, findings, where)
    if attribute.HasField("g"):
        _check_graph(attribute.g, scopes, domains, findings, f"subgraph {shortened(attribute.name)}")
    for graph in attribute.graphs:
        _check_graph(graph, scopes, domains, findings, f"subgraph {shortened(attribute.name)}")


def _tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors_of(inner)


def _check_calls(proto: onnx.ModelProto) -> None:
    """Refuse functions that call themselves, and those that unfold to more nodes than a machine can hold."""
    bodies = {(f.domain, f.name, f.overload): f for f in proto.functions}
    sizes: dict[tuple[str, str, str], int] = {}

    def expanded(nodes: Iterable[onnx.NodeProto], active: tuple[tuple[str, str, str], ...]) -> int:
        total = 0
        for node in nodes:
            total += 1
            key = (node.domain, node.op_type, node.overload)
            if key in bodies:
                if key in active:
                    raise UnsafeModel(f"function {shortened(node.op_type)} calls itself")
                if key not in sizes:
                    if len(active) > 200:
                        raise UnsafeModel("its functions call each other more than 200 deep")
                    sizes[key] = expanded(bodies[key].node, (*active, key))
                total += sizes[key]
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    total += expanded(graph.node, active)
            if total > MAX_EXPANDED_NODES:
                raise UnsafeModel(f"its functions expand to more than {MAX_EXPANDED_NODES} nodes")
        return total

    if not bodies:
        return
    for key, body in bodies.items():
        expanded(body.node, (key,))
    expanded(proto.graph.node, ())


def _check_tensor(tensor: onnx.TensorProto, findings: _Findings, where: str) -> None:
    name = f"tensor {shortened(tensor.name)} of {where}"
    _check_names((tensor.name,), where)
    _check_text(tensor, name)
    dims = list(tensor.dims)
    size = math.prod(dims)
    if len(dims) > MAX_RANK or any(dim < 0 for dim in dims) or size > _MAX_ELEMENTS:
        raise UnsafeModel(f"{name} has an impossible shape: {shortened(dims)}")
    if tensor.HasField("segment"):
        raise UnsafeModel(f"{name} is stored in segments, which cannot be read")
    if tensor.data_location not in (onnx.TensorProto.DEFAULT, onnx.TensorProto.EXTERNAL):
        raise UnsafeModel(f"{name} has an unknown data location")
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        raise UnsafeModel(f"{name} has the unknown element type {tensor.data_type}") from None
    if dtype == ir.DataType.UNDEFINED:
        if tensor.ByteSize() == 0:
            return  # an attribute that has no tensor
        raise UnsafeModel(f"{name} has no element type")
    typed = {field_: len(getattr(tensor, field_)) for field_ in _TYPED_FIELDS}
    stored = {field_: count for field_, count in typed.items() if count}
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        if stored or tensor.raw_data:
            raise UnsafeModel(f"{name} has both external and inline data")
        if dtype == ir.DataType.STRING:
            raise UnsafeModel(f"{name} holds strings, which cannot be external")
        _check_external(tensor, math.ceil(size * dtype.bitwidth / 8), findings, name)
        return
    if tensor.external_data:
        raise UnsafeModel(f"{name} names external data, but is not external")
    if dtype == ir.DataType.STRING:
        expected = {"string_data": size}
    elif tensor.HasField("raw_data"):
        expected = {}
        nbytes = math.ceil(size * dtype.bitwidth / 8)
        if len(tensor.raw_data) != nbytes:
            raise UnsafeModel(
                f"{name} holds {len(tensor.raw_data)} bytes, but its shape {dims} asks for {nbytes}"
            )
    else:
        expected = {_typed_field(dtype): _typed_length(dtype, size)}
    if stored != {field_: count for field_, count in expected.items() if count}:
        raise UnsafeModel(f"{name} of shape {shortened(dims)} holds {stored or 'nothing'}, not {expected}")


def _typed_field(dtype: ir.DataType) -> str:
    match dtype:
        case ir.DataType.FLOAT | ir.DataType.COMPLEX64:
            return "float_data"
        case ir.DataType.DOUBLE | ir.DataType.COMPLEX128:
            return "double_data"
        case ir.DataType.INT64:
            return "int64_data"
        case ir.DataType.UINT32 | ir.DataType.UINT64:
            return "uint64_data"
    return "int32_data"


def _typed_length(dtype: ir.DataType, size: int) -> int:
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * size
    # Four- and two-bit elements are packed into bytes, each byte in one integer.
    return math.ceil(size * dtype.bitwidth / 8) if dtype.bitwidth in (2, 4) else size


def _check_external(tensor: onnx.TensorProto, nbytes: int, findings: _Findings, name: str) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data) or not entries.keys() <= _EXTERNAL_KEYS:
        raise UnsafeModel(f"{name} has unknown or repeated external data entries: {shortened(list(entries))}")
    location = entries.get("location", "")
    if location not in findings.files:
        findings.files[location] = _external_length(location, findings.folder, name)
    offset = _number(entries.get("offset", "0"), name)
    length = _number(entries["length"], name) if "length" in entries else nbytes
    if length != nbytes:
        raise UnsafeModel(
            f"{name} is {nbytes} bytes, but its external data says {shortened(entries['length'])}"
        )
    if offset + nbytes > findings.files[location]:
        raise UnsafeModel(
            f"{name} reaches to byte {offset + nbytes} of {shortened(location)}, "
            f"which has {findings.files[location]}"
        )


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise UnsafeModel(f"{name} has an external offset or length that is not a number: {shortened(text)}")
    return int(text)


def _external_length(location: str, folder: Path, name: str) -> int:
    """The length of an external data file, once it is sure that it lies inside the model's folder."""
    relative = Path(location)
    parts = location.replace("\\", "/").split("/")
    escapes = relative.is_absolute() or ".." in parts or ":" in parts[0]
    if escapes or "\0" in location or parts[-1] in ("", "."):
        raise UnsafeModel(
            f"{name} points to {shortened(location)}: external data must be a relative path inside the "
            "model's folder"
        )
    try:
        inside = os.path.realpath(folder / relative)
        home = os.path.realpath(folder)
        if os.path.commonpath((inside, home)) != home:
            raise UnsafeModel(f"{name}: {shortened(location)} is a link out of the model's folder")
        status = os.stat(inside)
    except OSError as error:
        raise UnsafeModel(
            f"{name}: its external data {shortened(location)} cannot be read: {error.strerror}"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeModel(f"{name}: {shortened(location)} is not a regular file")
    if status.st_nlink > 1:
        raise UnsafeModel(f"{name}: {shortened(location)} is a hard link; copy the file instead")
    return status.st_size
