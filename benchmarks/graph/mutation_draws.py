"""What a mutation draws: numbers, names, graphs and nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["FLOATS", "INTEGERS", "NAMES", "TYPES", "Random", "choice", "graph_of", "names_of", "node_of"]

Random = np.random.Generator
T = TypeVar("T")

INTEGERS = (0, 1, -1, 2, 3, 7, 64, 255, 2**31 - 1, 2**31, -(2**31), 2**40, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, math.inf, -math.inf, math.nan)
NAMES = ("", "x", "a" * 300, "ü", "a\nb", "\x1b[31m", "../x", "a/b", "0", "::error::x")
TYPES = (1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 14, 15, 16, 17, 19, 21, 22, 0, 99)


def choice(random: Random, options: Sequence[T]) -> T:
    if not options:
        raise IndexError("nothing to choose from")
    return options[int(random.integers(len(options)))]


def graphs(model: ModelProto) -> list[GraphProto]:
    found = [model.graph]
    for graph in found:
        for node in graph.node:
            for attribute in node.attribute:
                found += [attribute.g] if attribute.HasField("g") else []
                found += attribute.graphs
    return found


def graph_of(model: ModelProto, random: Random) -> GraphProto:
    return choice(random, graphs(model)) if random.random() < 0.3 else model.graph


def node_of(model: ModelProto, random: Random) -> NodeProto:
    return choice(random, graph_of(model, random).node)


def names_of(graph: GraphProto) -> list[str]:
    produced = [name for node in graph.node for name in node.output]
    return [*produced, *(i.name for i in graph.input), *(i.name for i in graph.initializer), ""]
