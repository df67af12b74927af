"""Telling models apart: by their parameters, at the speed of memory, and by the structure of their graph."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import numpy as np
import onnx_ir as ir

from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.bodies import bodies_of, tensor_names

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
    structure = _Structure(model)
    structure.add("opsets", sorted(model.graph.opset_imports.items()))
    structure.add_inputs(model.graph)
    structure.add_graph(model.graph, "")
    return structure.digest.hexdigest()


class _Structure:
    """The hash of a structure while a model is being read.

    Attributes:
        digest: of what was added so far.
    """

    def __init__(self, model: ir.Model) -> None:
        self.digest = hashlib.sha256()
        self._names = tensor_names(model.graph)
        self._references: dict[ir.Value, str] = {}
        self._nodes = count()

    def add(self, *facts: Any) -> None:
        self.digest.update(json.dumps(facts, default=str).encode())
        self.digest.update(b"\n")

    def add_inputs(self, graph: ir.Graph) -> None:
        """Add the inputs of the main graph; those of a body are what its node says."""
        for position, value in enumerate(graph.inputs):
            self._references[value] = f"input {position}"
            self.add(self._references[value], None if value.shape is None else _sizes(value.shape))

    def add_graph(self, graph: ir.Graph, place: str) -> None:
        """Add the initializers, the nodes with their bodies, and the outputs of a graph.

        Args:
            graph: the graph.
            place: where it stands; empty for the main graph.
        """
        for _, value in sorted(graph.initializers.items()):
            self._references[value] = f"initializer {self._names[value]}"
            tensor = value.const_value
            shape = tensor.shape if tensor is not None else value.shape
            self.add(self._references[value], str(value.dtype), None if shape is None else _sizes(shape))
        for node in graph:
            name = f"node {next(self._nodes)}"
            self._references.update({value: f"{name} {i}" for i, value in enumerate(node.outputs)})
            self.add(
                node.domain,
                node.op_type,
                self._referred(node.inputs),
                [_attribute_facts(attribute) for _, attribute in sorted(node.attributes.items())],
            )
            for attribute, body in bodies_of(node):
                inner = f"{name} {attribute}"
                self._references.update({v: f"{inner} input {i}" for i, v in enumerate(body.inputs)})
                self.add_graph(body, inner)
        self.add(f"{place} outputs".lstrip(), self._referred(graph.outputs))

    def _referred(self, values: Iterable[ir.Value | None]) -> list[str | None]:
        return [None if v is None else self._references.get(v, v.name) for v in values]


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
