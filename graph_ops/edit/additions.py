"""What an edit adds to a graph: constants and nodes, under names that nothing else in the graph has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from growpipe.graph_ops.arrays import AnyArray

__all__ = ["Additions", "constant_tensor"]


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer that no caller can replace; None for every other value.

    An initializer that is an input of the graph is a default: whoever runs the model may feed another value.
    """
    if value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value


class Additions:
    """Adds initializers and nodes to one graph.

    Names of subgraphs count as taken: a value of an outer graph must not hide behind one of theirs.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._taken: set[str | None] = set()
        for each in (graph, *graph.subgraphs()):
            self._taken.update(value.name for value in each.inputs)
            self._taken.update(each.initializers)
            self._taken.update(value.name for node in each for value in node.outputs)

    def constant(self, name: str, array: AnyArray, dtype: ir.DataType | None = None) -> ir.Value:
        """A new initializer of the shape and values of ``array``.

        Args:
            name: the wanted name; a number is appended if it is taken.
            array: the values. A scalar stays a scalar.
            dtype: the element type; None for the array's own.
        """
        # Not np.ascontiguousarray, which makes a vector of a scalar.
        tensor = ir.Tensor(np.asarray(array, order="C"), dtype=dtype)
        return self._register(self._fresh(name), tensor)

    def take_over(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        """A new initializer that has the name of ``value`` and all its uses, those in subgraphs included."""
        name = value.name or ""
        value.name = self._fresh(f"{name}.computed")
        constant = self._register(name, tensor)
        value.replace_all_uses_with(constant)
        return constant

    def _register(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        type_, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        value = ir.Value(name=name, type=type_, shape=shape, const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def node_before(
        self, node: ir.Node, operator: str, inputs: Sequence[ir.Value], name: str, like: AnyArray
    ) -> ir.Value:
        """The output of a new node that stands before ``node``; it has the type and shape of ``like``."""
        new = ir.node(operator, inputs)
        (output,) = new.outputs
        output.name = self._fresh(name)
        output.dtype = ir.DataType.from_numpy(like.dtype)
        output.shape = ir.Shape(like.shape)
        node.prepend(new)
        return output

    def _fresh(self, base: str) -> str:
        number, name = 0, base
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        return name
