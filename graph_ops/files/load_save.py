"""The one reader and the one writer of ONNX files. Nothing else in growpipe opens a model."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from growpipe.graph_ops.errors import UnsafeModel, UsageError
from growpipe.graph_ops.files.atomic import check_file_target, settle, staging_folder
from growpipe.graph_ops.files.map_types import keep_map_types, to_proto, untyped_maps
from growpipe.graph_ops.files.proto_rules import check_proto, shortened
from growpipe.graph_ops.files.protobuf_size import check_wire
from growpipe.graph_ops.files.schema_rules import check_attributes
from growpipe.graph_ops.operators import plain_domain

__all__ = [
    "EXTERNAL_ABOVE",
    "MAX_MODEL_BYTES",
    "external_files",
    "hold_in_memory",
    "load_model",
    "read_model",
    "save_model",
]

MAX_MODEL_BYTES = 2**31 - 1
"""The largest protobuf file; bigger models keep their tensors in external data."""

EXTERNAL_ABOVE = 1_800_000_000
"""`save_model` moves tensors to external data when they take more bytes than this."""

_INLINE_BELOW = 256
"""Bytes of a tensor that is not worth a place in the external data."""

_WRITERS = min(4, os.cpu_count() or 1)

_WALKED_ABOVE = 4 * 2**20
"""Smaller files cannot unfold to more than some hundred megabytes."""


def load_model(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX model without trusting it.

    External tensors stay on disk, mapped when they are used. Libraries of custom operators are never loaded;
    nodes of unknown operators are read as they are.

    Args:
        path: a binary ONNX file. Its external data must be regular files inside its folder.

    Raises:
        UnsafeModel: the file is not there, is no model, is damaged, or points out of its folder.
    """
    return read_model(path)[1]


def read_model(path: str | os.PathLike[str]) -> tuple[onnx.ModelProto, ir.Model]:
    """`load_model`, with the message that the file holds, for those who judge the file itself.

    Returns:
        The message, without its external data; and the model.

    Raises:
        UnsafeModel: as `load_model`.
    """
    place = Path(os.path.abspath(path))
    try:
        proto = _parse(place)
        is_sorted = check_proto(proto, place.parent)
        check_attributes(proto)
        with untyped_maps(proto) as map_types:
            model = ir.serde.deserialize_model(proto)
        keep_map_types(model, map_types)
        _keep_input_declarations(model, proto)
        _join_opset_imports(model, proto)
        for tensor in _external_tensors(model):
            tensor.base_dir = place.parent
        if not is_sorted:
            _sort(model)
    except UnsafeModel as error:
        raise UnsafeModel(f"{place}: {error}") from None
    except OSError as error:
        raise UnsafeModel(f"{place} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        # The file is anybody's: whatever the libraries stumble over is a fault of the file.
        reason = shortened(str(error) or type(error).__name__)
        raise UnsafeModel(f"{place} is not a readable ONNX model: {reason}") from None
    return proto, model


def _parse(path: Path) -> onnx.ModelProto:
    # Non-blocking: a named pipe must not make us wait for somebody to write to it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeModel("it is not a regular file")
        if status.st_size == 0:
            raise UnsafeModel("it is empty")
        if status.st_size > MAX_MODEL_BYTES:
            raise UnsafeModel(f"it has {status.st_size} bytes; an ONNX file has at most {MAX_MODEL_BYTES}")
        if status.st_size > _WALKED_ABOVE:
            check_wire(file)
        proto = onnx.ModelProto()
        try:
            proto.ParseFromString(file.read())
        except DecodeError:
            raise UnsafeModel("it is not an ONNX model, or is truncated") from None
    return proto


def _keep_input_declarations(model: ir.Model, proto: onnx.ModelProto) -> None:
    """An input that is an output too keeps what it is declared as; onnx_ir takes what the output claims."""
    outputs = {info.name for info in proto.graph.output}
    for value, info in zip(model.graph.inputs, proto.graph.input, strict=True):
        if info.name in outputs and info.type.HasField("tensor_type"):
            value.shape = None
            ir.serde.deserialize_value_info_proto(info, value)


def _join_opset_imports(model: ir.Model, proto: onnx.ModelProto) -> None:
    """One entry per operator set. Of several entries the last holds, as in onnxruntime."""
    versions = {plain_domain(opset.domain): opset.version for opset in proto.opset_import}
    model.graph.opset_imports.clear()
    model.graph.opset_imports.update(versions)


def _sort(model: ir.Model) -> None:
    try:
        model.graph.sort()
        for function in model.functions.values():
            function.sort()
    except ValueError:
        raise UnsafeModel("its nodes form a cycle") from None


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Every graph and subgraph of the model, those of its functions included."""
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.subgraphs()


def _attribute_tensors(graphs: Iterable[ir.Graph]) -> Iterator[ir.TensorProtocol]:
    for graph in graphs:
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()
                elif attribute.type == ir.AttributeType.TENSORS:
                    yield from attribute.as_tensors()


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    seen: set[int] = set()
    for graph in _graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None and id(value) not in seen:
                seen.add(id(value))
                yield value


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for value in _initializers(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            yield value.const_value
    for tensor in _attribute_tensors(_graphs(model)):
        if isinstance(tensor, ir.ExternalTensor):
            yield tensor


def external_files(model: ir.Model) -> set[str]:
    """The files in which the model keeps its external tensors."""
    return {os.path.realpath(tensor.path) for tensor in _external_tensors(model)}


def save_model(model: ir.Model, path: str | os.PathLike[str], *, external_data: bool | None = None) -> None:
    """Write a model, whole or not at all. The model is not changed.

    Everything is written beside the target and renamed at the end; a model that is replaced disappears before
    its external data changes, so no reader ever sees one model's graph with another's weights.

    Args:
        model: the model; its external tensors are copied.
        path: the file; external data goes to ``<file>.data`` in the same folder.
        external_data: whether tensors go to external data; None when the model's tensors already are, or
            when they take more than `EXTERNAL_ABOVE` bytes.

    Raises:
        UsageError: ``path`` is a folder, a link or a device, or its folder is missing; the model is too large
            for one file, or reads its own tensors from the file that would be replaced.
        OSError: the disk is full, read-only or otherwise not writable.
    """
    place = Path(os.path.abspath(path))
    check_file_target(place)
    data_place = place.with_name(place.name + ".data")
    externals = list(_external_tensors(model))
    if external_files(model) & {os.path.realpath(place), os.path.realpath(data_place)}:
        raise UsageError(f"{data_place} holds the tensors of this very model; choose another file")
    size = sum(v.const_value.nbytes for v in _initializers(model) if v.const_value is not None)
    if external_data is None:
        external_data = bool(externals) or size > EXTERNAL_ABOVE
    elif not external_data and size > EXTERNAL_ABOVE:
        raise UsageError(f"a model of {size} bytes does not fit into one file; let it have external data")
    if external_data:
        check_file_target(data_place)
    with staging_folder(place) as staging:
        staged, staged_data = staging / place.name, staging / data_place.name
        _write(model, staged, data_place.name if external_data else None)
        for file in staging.iterdir():
            settle(file, staging)
        if staged_data.exists():
            place.unlink(missing_ok=True)
            staged_data.replace(data_place)
        staged.replace(place)


def _write(model: ir.Model, path: Path, data_name: str | None) -> None:
    """Write with every external tensor in the new data file or inline; ``model`` stays as it was."""
    if any(isinstance(tensor, ir.ExternalTensor) for tensor in _attribute_tensors(_graphs(model))):
        model = model.clone()
        for graph in _graphs(model):
            for node in graph:
                _inline_attributes(node)
    values = list(_initializers(model))
    tensors = [value.const_value for value in values]
    outside = {
        value: tensor
        for value, tensor in zip(values, tensors, strict=True)
        if tensor is not None and tensor.nbytes > _INLINE_BELOW and tensor.dtype != ir.DataType.STRING
    }
    try:
        if data_name is not None and outside:
            written = ir.external_data.convert_tensors_to_external(
                list(outside.values()), path.parent, data_name, max_workers=_WRITERS
            )
            for value, tensor in zip(outside, written, strict=True):
                value.const_value = tensor
        for value in values:
            if (data_name is None or value not in outside) and value.const_value is not None:
                value.const_value = _in_memory(value.const_value)
        onnx.save(to_proto(model), path)
    finally:
        for value, original in zip(values, tensors, strict=True):
            value.const_value = original


def hold_in_memory(model: ir.Model) -> None:
    """Replace every external tensor of a model by one that holds its own data, in place."""
    for value in _initializers(model):
        if value.const_value is not None:
            value.const_value = _in_memory(value.const_value)
    for graph in _graphs(model):
        for node in graph:
            _inline_attributes(node)


def _inline_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            node.attributes[name] = ir.AttrTensor(name, _in_memory(attribute.as_tensor()))
        elif attribute.type == ir.AttributeType.TENSORS:
            node.attributes[name] = ir.AttrTensors(name, [_in_memory(t) for t in attribute.as_tensors()])


def _in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return ir.Tensor(tensor.numpy(), name=tensor.name, doc_string=tensor.doc_string)
