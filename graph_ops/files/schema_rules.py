"""Do the attributes of the nodes have the types that their operators define?

Everything behind the reader takes an attribute as what its operator's schema says it is. A runtime refuses a
model in which one is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

import onnx

from growpipe.graph_ops.errors import UnsafeModel
from growpipe.graph_ops.files.proto_rules import shortened
from growpipe.graph_ops.operators import plain_domain

__all__ = ["check_attributes"]

_KINDS: Mapping[int, str] = {number: name for name, number in onnx.AttributeProto.AttributeType.items()}


def check_attributes(proto: onnx.ModelProto) -> None:
    """Hold every attribute of a node against the schema of the node's operator.

    Operators that ONNX does not know are left alone.

    Raises:
        UnsafeModel: an attribute has another type than the schema says, or is given twice; a Constant has no
            attribute or several; a node outside of a function refers to an attribute of a function.
    """
    _check(proto.graph.node, _versions(proto.opset_import), in_function=False)
    for function in proto.functions:
        _check(function.node, _versions(function.opset_import), in_function=True)


def _versions(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {plain_domain(entry.domain): entry.version for entry in imports}


def _check(nodes: Iterable[onnx.NodeProto], versions: Mapping[str, int], *, in_function: bool) -> None:
    for node in nodes:
        domain = plain_domain(node.domain)
        types = _schema(node.op_type, versions.get(domain, 0), domain)
        seen: set[str] = set()
        for attribute in node.attribute:
            _check_one(node, attribute, types, in_function)
            if attribute.name in seen:
                raise UnsafeModel(f"{_call(node)} has the attribute {shortened(attribute.name)} twice")
            seen.add(attribute.name)
            for graph in (attribute.g, *attribute.graphs):
                _check(graph.node, versions, in_function=in_function)
        if node.op_type == "Constant" and types and len(seen) != 1:
            raise UnsafeModel(f"{_call(node)} has {len(seen)} attributes; its value must be the only one")


def _check_one(
    node: onnx.NodeProto, attribute: onnx.AttributeProto, types: Mapping[str, int], in_function: bool
) -> None:
    if attribute.ref_attr_name and not in_function:
        raise UnsafeModel(
            f"{_call(node)} takes its attribute {shortened(attribute.name)} from a function, but is in none"
        )
    wanted = types.get(attribute.name)
    if wanted is not None and attribute.type != wanted and not attribute.ref_attr_name:
        raise UnsafeModel(
            f"{_call(node)} has the attribute {shortened(attribute.name)} of type {_KINDS[attribute.type]}; "
            f"the operator asks for {_KINDS[wanted]}"
        )


@lru_cache(maxsize=4096)
def _schema(operator: str, version: int, domain: str) -> Mapping[str, int]:
    """The types of an operator's attributes, by name; nothing for an operator that ONNX does not know.

    Attributes of other versions are among them: exporters leave them behind, and readers look for them.
    """
    types: dict[str, int] = {}
    for schema in sorted(_history().get((operator, domain), ()), key=lambda schema: schema.since_version):
        # Schemas have an enumeration of their own, with the names of that of attributes.
        named = {name: str(entry.type).rpartition(".")[2] for name, entry in schema.attributes.items()}
        found = {name: onnx.AttributeProto.AttributeType.Value(kind) for name, kind in named.items()}
        types = types | found if schema.since_version <= version else found | types
    return types


@lru_cache(maxsize=1)
def _history() -> Mapping[tuple[str, str], list[onnx.defs.OpSchema]]:
    """All versions of every operator."""
    versions: dict[tuple[str, str], list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        versions.setdefault((schema.name, schema.domain), []).append(schema)
    return versions


def _call(node: onnx.NodeProto) -> str:
    return f"{shortened(node.op_type)} {shortened(node.name)}" if node.name else shortened(node.op_type)
