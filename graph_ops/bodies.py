"""Bodies: the graphs that a node holds as attributes, such as the branches of an If or the body of a Loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from growpipe.graph_ops.operators import attribute_of, is_onnx, node_name

__all__ = ["BodyInput", "bodies_of", "body_inputs", "captured", "tensor_names"]


def bodies_of(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """The graphs of a node, each with the name of its attribute; a number after it if there are several."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for position, graph in enumerate(attribute.as_graphs()):
                yield f"{name}[{position}]", graph


def captured(node: ir.Node) -> list[ir.Value]:
    """The values of outer graphs that the bodies of a node read or return, each once."""
    read: dict[ir.Value, None] = {}
    own: set[ir.Value] = set()
    for _, graph in bodies_of(node):
        own.update(graph.inputs, graph.initializers.values())
        for inner in graph:
            own.update(inner.outputs)
            read.update((value, None) for value in (*inner.inputs, *captured(inner)) if value is not None)
        read.update(dict.fromkeys(graph.outputs))
    return [value for value in read if value not in own]


@dataclass(frozen=True, eq=False)
class BodyInput:
    """Where the input of a body comes from.

    Attributes:
        value: the input of the body.
        source: what the node reads and hands over; None for the number of a pass and the condition of a Loop.
        carried: the output of the body that the next pass of a Loop gets, whatever its lengths; None if all
            passes get a value of the same shape.
        scan_axis: the axis of ``source`` that every pass gets one entry of; None if a pass gets all of it.
    """

    value: ir.Value
    source: ir.Value | None = None
    carried: ir.Value | None = None
    scan_axis: int | None = None


_FIRST_SCAN = 9
"""Up to opset 8 the inputs of Scan have a batch axis that the body does not see."""


def body_inputs(node: ir.Node, opset: int) -> list[BodyInput] | None:
    """The inputs of all bodies of a node; None if it is not known how the node runs them.

    Args:
        node: any node.
        opset: the version of ONNX's own operators.
    """
    if is_onnx(node, "If"):
        return []
    graph = next((graph for name, graph in bodies_of(node) if name == "body"), None)
    if graph is None:
        return None
    if is_onnx(node, "Loop"):
        states = zip(graph.inputs[2:], node.inputs[2:], graph.outputs[1:], strict=False)
        return [*map(BodyInput, graph.inputs[:2]), *(BodyInput(*state) for state in states)]
    if is_onnx(node, "Scan") and opset >= _FIRST_SCAN:
        return _scan_inputs(node, graph)
    return None


def _scan_inputs(node: ir.Node, graph: ir.Graph) -> list[BodyInput] | None:
    scanned = attribute_of(node, "num_scan_inputs")
    if not isinstance(scanned, int) or len(node.inputs) != len(graph.inputs):
        return None  # it does not fit the operator
    count, axes = len(node.inputs) - scanned, attribute_of(node, "scan_input_axes", [0] * scanned)
    if count < 0 or not isinstance(axes, list) or len(axes) != scanned:
        return None
    states = zip(graph.inputs[:count], node.inputs[:count], strict=True)
    entries = zip(graph.inputs[count:], node.inputs[count:], axes, strict=True)
    return [
        *(BodyInput(*state) for state in states),
        *(BodyInput(value, source, scan_axis=axis) for value, source, axis in entries),
    ]


def tensor_names(graph: ir.Graph) -> dict[ir.Value, str]:
    """The name of every constant, initializer or Constant node, of a graph and of the bodies within it.

    No two constants have the same name. One of the graph itself keeps its own. One of a body has the path of
    the body before it, because two bodies may use a name for different things: ``If_0/then_branch/w`` is the
    constant ``w`` in the attribute ``then_branch`` of the node ``If_0``.
    """
    names = {value: value.name or "" for value in _constants(graph)}
    taken = set(names.values())
    for path, body in _paths(graph, ""):
        for value in _constants(body):
            name = base = f"{path}{value.name or ''}"
            number = 1
            while name in taken:
                number += 1
                name = f"{base}~{number}"
            taken.add(name)
            names[value] = name
    return names


def _paths(graph: ir.Graph, path: str) -> Iterator[tuple[str, ir.Graph]]:
    for node in graph:
        for name, body in bodies_of(node):
            inner = f"{path}{node_name(node)}/{name}/"
            yield inner, body
            yield from _paths(body, inner)


def _constants(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.initializers.values()
    for node in graph:
        if is_onnx(node, "Constant"):
            yield from node.outputs
