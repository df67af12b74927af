"""The structure of a graph as one number, to tell whether a plan was made for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["graph_hash"]


def graph_hash(model: ir.Model) -> str:
    """SHA-256 of operators, topology and shapes.

    Initializers count by name, since plans speak of them; all other values by where they come from: the names
    of inputs, outputs, results and free axes are the exporter's or the user's to choose.
    """
    digest = hashlib.sha256()

    def add(*facts: Any) -> None:
        digest.update(json.dumps(facts, default=str).encode())
        digest.update(b"\n")

    references: dict[ir.Value, str] = {}
    add("opsets", sorted(model.graph.opset_imports.items()))
    for position, value in enumerate(model.graph.inputs):
        references[value] = f"input {position}"
        add(references[value], None if value.shape is None else _sizes(value.shape))
    for name, value in sorted(model.graph.initializers.items()):
        references[value] = f"initializer {name}"
        tensor = value.const_value
        shape = tensor.shape if tensor is not None else value.shape
        add(references[value], str(value.dtype), None if shape is None else _sizes(shape))
    for position, node in enumerate(model.graph.all_nodes()):
        references.update({value: f"node {position} {i}" for i, value in enumerate(node.outputs)})
        add(
            node.domain,
            node.op_type,
            [None if value is None else references.get(value, value.name) for value in node.inputs],
            [_attribute_facts(attribute) for _, attribute in sorted(node.attributes.items())],
        )
    add("outputs", [references.get(value, value.name) for value in model.graph.outputs])
    return digest.hexdigest()


def _sizes(shape: Iterable[Any]) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in shape]


def _attribute_facts(attribute: ir.Attr) -> list[Any]:
    if attribute.is_ref():
        return [attribute.name, "reference"]
    match attribute.type:
        case ir.AttributeType.TENSOR:
            return [attribute.name, str(attribute.value.dtype), [str(size) for size in attribute.value.shape]]
        case ir.AttributeType.GRAPH | ir.AttributeType.GRAPHS | ir.AttributeType.SPARSE_TENSOR:
            return [attribute.name, str(attribute.type)]
        case ir.AttributeType.FLOAT | ir.AttributeType.FLOATS:
            # On disk they are float32.
            return [attribute.name, np.asarray(attribute.value, np.float32).tolist()]
        case _:
            return [attribute.name, str(attribute.value)]
