"""Seeded mutations of ONNX files: of their bytes, and of the graph within."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError
from onnx import ModelProto

from benchmarks.graph.mutation_draws import Random, choice
from benchmarks.graph.mutations_of_bytes import BYTES
from benchmarks.graph.mutations_of_models import MODELS
from benchmarks.graph.mutations_of_nodes import NODES
from benchmarks.graph.mutations_of_values import VALUES

__all__ = ["mutate"]

_ORDER = (
    "attribute value, attribute type, attributes, operator, input, nodes, insert, shape, declare, "
    "initializer, precision, constant, default input, opset, name, output, branches, function, graft, "
    "metadata"
)
"""Another order would make other files of the same numbers."""

GRAPHS = {name: (NODES | VALUES | MODELS)[name] for name in _ORDER.split(", ")}


def mutate(content: bytes, others: Sequence[bytes], random: Random) -> tuple[bytes, str]:
    """One mutated file, and the kinds of mutation that made it.

    Args:
        content: a well-formed ONNX file.
        others: files from which parts may come.
        random: what decides.
    """
    if random.random() < 0.25:
        kind = choice(random, tuple(BYTES))
        return BYTES[kind](content, others, random), kind
    model = ModelProto()
    model.ParseFromString(content)
    kinds = []
    for _ in range(1 + min(int(random.geometric(0.5)), 6)):
        kind = choice(random, tuple(GRAPHS))
        try:
            GRAPHS[kind](model, others, random)
        except (ValueError, TypeError, DecodeError, IndexError):
            continue  # there is nothing of this kind in the model, or a value has no place in its field
        kinds.append(kind)
    return model.SerializeToString(), "+".join(sorted(set(kinds))) or "none"
