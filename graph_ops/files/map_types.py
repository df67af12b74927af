"""Values that are maps, such as the probabilities of a classifier of ``ai.onnx.ml``.

onnx_ir has no type for a map. A value of such a type is read without its type, and the type is kept beside
it, so that a file that is written again declares what the file that was read declared.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import onnx
import onnx_ir as ir

__all__ = ["keep_map_types", "to_proto", "untyped_maps"]

_KEPT = "growpipe.map_type"


@contextlib.contextmanager
def untyped_maps(proto: onnx.ModelProto) -> Iterator[dict[str, bytes]]:
    """Within, no value has a map type; the types of the values of the main graph by name."""
    infos = [info for info in _infos(proto) if _is_map(info.type)]
    types = [info.type.SerializeToString() for info in infos]
    main = {info.name for info in _infos_of(proto.graph)}
    for info in infos:
        info.ClearField("type")
    try:
        yield {info.name: type_ for info, type_ in zip(infos, types, strict=True) if info.name in main}
    finally:
        for info, type_ in zip(infos, types, strict=True):
            info.type.ParseFromString(type_)


def keep_map_types(model: ir.Model, types: dict[str, bytes]) -> None:
    """Keep what `untyped_maps` took off, for `to_proto`."""
    if types:
        outputs = (value for node in model.graph for value in node.outputs)
        for value in (*model.graph.inputs, *outputs):
            if value.name in types:
                value.meta[_KEPT] = types[value.name]


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as a message, with the types that onnx_ir does not know."""
    proto = ir.to_proto(model)
    for infos, values in ((proto.graph.input, model.graph.inputs), (proto.graph.output, model.graph.outputs)):
        for info, value in zip(infos, values, strict=True):
            if _KEPT in value.meta:
                info.type.ParseFromString(value.meta[_KEPT])
    return proto


def _infos(proto: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    """The declarations of all values: of the main graph, of branches and bodies, and of functions."""
    yield from _infos_of(proto.graph)
    nodes = list(proto.graph.node)
    for function in proto.functions:
        yield from function.value_info
        nodes.extend(function.node)
    while nodes:
        for attribute in nodes.pop().attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _infos_of(graph)
                nodes.extend(graph.node)


def _infos_of(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    return itertools.chain(graph.input, graph.output, graph.value_info)


def _is_map(type_: onnx.TypeProto) -> bool:
    while not type_.HasField("map_type"):
        if type_.HasField("sequence_type"):
            type_ = type_.sequence_type.elem_type
        elif type_.HasField("optional_type"):
            type_ = type_.optional_type.elem_type
        else:
            return False
    return True
