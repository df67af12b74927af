"""Walks over a model as protobuf: every graph, subgraph and node, those of functions included."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

__all__ = ["all_graphs", "all_nodes", "placed_nodes", "subgraphs"]


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """The graphs among a node's attributes."""
    found = [a.g for a in node.attribute if a.type == AttributeProto.GRAPH]
    return found + [g for a in node.attribute if a.type == AttributeProto.GRAPHS for g in a.graphs]


def all_graphs(model: ModelProto) -> Iterator[GraphProto]:
    """The main graph first, then all subgraphs."""
    waiting = [model.graph, *(g for f in model.functions for node in f.node for g in subgraphs(node))]
    while waiting:
        graph = waiting.pop(0)
        yield graph
        for node in graph.node:
            waiting += subgraphs(node)


def placed_nodes(model: ModelProto) -> Iterator[tuple[GraphProto, NodeProto]]:
    """Every node with the graph that it stands in, those of functions included.

    A node of a function stands in a graph of its constants alone.
    """
    for graph in all_graphs(model):
        yield from ((graph, node) for node in graph.node)
    for function in model.functions:
        constants = GraphProto()
        constants.node.extend(node for node in function.node if node.op_type == "Constant")
        yield from ((constants, node) for node in function.node)


def all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """The nodes of all graphs and of all functions."""
    return (node for _, node in placed_nodes(model))
