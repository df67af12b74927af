"""Queries and keys: two matrix products whose results meet in the scores, and in nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from growpipe.analyser.program.aten import MATRIX_PRODUCTS, REINDEXING, aten, operator_name
from growpipe.analyser.program.binding import BoundGroup
from growpipe.analyser.program.captured import Captured
from growpipe.analyser.program.program import Program

__all__ = ["Pairs", "Side", "find_pairs"]


@dataclass(frozen=True, eq=False)
class Side:
    """One factor of the scores.

    Attributes:
        producer: the matrix product that makes it.
        path: what moves its entries to where they are, from the producer on.
        tensor: the name of the producer's matrix.
        transposed: whether that has the channels on its last axis.
    """

    producer: Node
    path: tuple[Node, ...]
    tensor: str
    transposed: bool

    def rows(self, matrix: Tensor) -> Tensor:
        """The matrix, or its transpose, with the channels on axis 0."""
        return matrix.mT if self.transposed else matrix

    @property
    def source(self) -> Node:
        """The node of what the producer takes."""
        source = self.producer.args[MATRIX_PRODUCTS[self.producer.target][0]]
        assert isinstance(source, Node)
        return source

    def inputs(self, program: Program, captured: Captured) -> Tensor:
        """What the producer takes, [..., d]."""
        x: Tensor = program.value(self.source, captured)
        return x

    def channels(self, program: Program, captured: Captured, key: bool) -> Tensor | None:
        """Which channels every head has, int64 [heads, channels of a head].

        None unless entry (b, h, t, c) of the factor is channel (h, c) of position t of sample b.
        """
        x = self.inputs(program, captured)
        width = len(self.rows(program.tensor(self.tensor)))
        position = torch.arange(x.shape[:-1].numel(), device=x.device).reshape(*x.shape[:-1], 1)
        places = self._moved(program, captured, position.expand(*x.shape[:-1], width))
        channel = torch.arange(width, device=x.device)
        channels = self._moved(program, captured, channel.expand(*x.shape[:-1], width))
        if channels.ndim != 4:
            return None
        if key:
            places, channels = places.mT, channels.mT
        samples, _, length, _ = channels.shape
        ordered = torch.arange(samples * length, device=x.device).reshape(samples, 1, length, 1)
        table = channels[0, :, 0]
        if bool((places == ordered).all()) and bool((channels == table[None, :, None]).all()):
            return table.clone()  # the table alone, without what it is a part of
        return None

    def _moved(self, program: Program, captured: Captured, entries: Tensor) -> Tensor:
        """Entries of the producer where they are in the factor."""
        values: dict[Node, Any] = {self.producer: entries.contiguous()}

        def read(source: Node) -> Any:
            return values[source] if source in values else program.value(source, captured)

        for node in self.path:
            values[node] = program.call(node, read)
        moved: Tensor = values[self.path[-1] if self.path else self.producer]
        return moved


@dataclass(frozen=True, eq=False)
class Pairs:
    """A group of queries and keys.

    Attributes:
        group: the group.
        scores: the product of both.
        query: its first factor.
        key: its second one.
    """

    group: BoundGroup
    scores: Node
    query: Side
    key: Side

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All from the producers to the scores."""
        sides = [node for side in (self.query, self.key) for node in (side.producer, *side.path)]
        return tuple(dict.fromkeys([*sides, self.scores]))


def find_pairs(program: Program, group: BoundGroup) -> Pairs | None:
    """The group as queries and keys, or None if it is something else."""
    ends = {source for _, source in group.edges}
    if len(ends) != 1:
        return None
    (scores,) = ends
    sources = [source for source in scores.args if isinstance(source, Node) and group.varies(source, scores)]
    if operator_name(scores) not in {"bmm", "matmul"} or list(scores.args) != sources:
        return None
    query, key = (_side(program, group, source) for source in sources)
    return None if query is None or key is None else Pairs(group, scores, query, key)


def _side(program: Program, group: BoundGroup, node: Node) -> Side | None:
    path: list[Node] = []
    while node not in group.cut:
        varying = [source for source in node.all_input_nodes if group.varies(source, node)]
        if operator_name(node) not in REINDEXING or varying != [node.args[0]]:
            return None
        path.append(node)
        (node,) = varying
    if node.target not in MATRIX_PRODUCTS or node.kwargs:
        return None
    weight = node.args[MATRIX_PRODUCTS[node.target][1]]
    moving = [source for source in node.all_input_nodes if group.varies(source, node)]
    if not isinstance(weight, Node) or moving != [weight] or weight not in program.names:
        return None
    transposed = node.target is not aten.linear.default
    return Side(node, tuple(reversed(path)), program.names[weight], transposed)
