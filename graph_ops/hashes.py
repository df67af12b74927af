"""Telling models apart: by their parameters, at the speed of memory, and by the structure of their graph."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from growpipe.graph_ops.arrays import AnyArray

__all__ = ["graph_hash", "hash_contents", "hash_parameters"]

_ROW = 2**13  # bytes
_ROWS = 2**7


def hash_parameters(names: Iterable[str], read: Callable[[str], AnyArray]) -> str:
    """SHA-256 over name, type, shape and checksums of the named parameters, in name order.

    The ONNX graph and the torch module give the same hash when their parameters are equal. The checksums of
    a block are its sums along rows and along columns, as integers modulo 2^64: they see a change of any one
    value and any exchange of rows, which tells a retrained model from the one a plan was made for. They are
    no protection against forgery, and cost a tenth of the time of hashing all bytes, which on a large model
    would take longer than growing it.
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        content = _header(digest, name, read(name))
        whole = len(content) - len(content) % _ROW
        words = np.frombuffer(content[:whole], np.uint64).reshape(-1, _ROW // 8)
        for start in range(0, len(words), _ROWS):
            block = words[start : start + _ROWS]
            digest.update(np.add.reduce(block, axis=0).data)
            digest.update(np.add.reduce(block, axis=1).data)
        digest.update(content[whole:])
    return digest.hexdigest()


def hash_contents(names: Iterable[str], read: Callable[[str], AnyArray]) -> str:
    """SHA-256 over name, type, shape and bytes of the named tensors, in name order."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(_header(digest, name, read(name)))
    return digest.hexdigest()


def _header(digest: hashlib._Hash, name: str, array: AnyArray) -> memoryview:
    """Add what describes the tensor, and return its bytes."""
    digest.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


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
