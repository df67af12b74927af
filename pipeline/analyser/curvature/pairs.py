"""S of queries and keys in closed form: one matrix per head, the same for all its channels.

Let the scores of head h be ``q_h k_hᵀ`` with ``q_h = x W_hᵀ`` and ``k_h = y V_hᵀ``, and s̄_h the gradient of
the loss by them. What bends is the product alone, and with ``M_h = Σ_samples xᵀ s̄_h y``

    q(v) = ½ vᵀ S v = Σ_h ⟨Ẇ_h M_h, V̇_h⟩,   so   S v = (V̇_h M_hᵀ, Ẇ_h M_h)

for every channel of the head. M takes about as long as one product by the bends of the path, and products
with it a small share of that: they do not depend on the number of samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from growpipe.analyser.program.aten import MATRIX_PRODUCTS, REINDEXING, aten, operator_name
from growpipe.analyser.program.binding import BoundGroup
from growpipe.analyser.program.captured import Captured
from growpipe.analyser.program.program import Program

__all__ = ["Heads", "PairForm", "Pairs", "find_pairs"]


@dataclass(frozen=True, eq=False)
class _Side:
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

    def inputs(self, program: Program, captured: Captured) -> Tensor:
        """What the producer takes, [..., d]."""
        source = self.producer.args[MATRIX_PRODUCTS[self.producer.target][0]]
        assert isinstance(source, Node)
        x: Tensor = program.value(source, captured)
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
    query: _Side
    key: _Side


def find_pairs(program: Program, group: BoundGroup, bends: Mapping[Node, Sequence[Node]]) -> Pairs | None:
    """The group as queries and keys, or None if it is something else.

    Args:
        program: the program.
        group: the group.
        bends: by node that bends its path what moves among its arguments.
    """
    if len(bends) != 1:
        return None
    ((scores, sources),) = bends.items()
    if operator_name(scores) not in {"bmm", "matmul"} or tuple(scores.args) != tuple(sources):
        return None
    if any(source is not scores for _, source in group.edges):
        return None
    query, key = (_side(program, group, source) for source in sources)
    return None if query is None or key is None else Pairs(group, scores, query, key)


def _side(program: Program, group: BoundGroup, node: Node) -> _Side | None:
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
    return _Side(node, tuple(reversed(path)), program.names[weight], transposed)


@dataclass(frozen=True, eq=False)
class Heads:
    """Which channels of queries and keys every head has; the same for all batches of one shape.

    Attributes:
        query: the channels of the queries, int64 [heads, channels of a head].
        key: those of the keys.
    """

    query: Tensor
    key: Tensor

    @staticmethod
    def of(program: Program, captured: Captured, pairs: Pairs) -> Heads | None:
        """From what a batch leaves constant; None if heads mix, or the bends of the path take less."""
        scores = _scores_gradient(captured, pairs)
        if scores.ndim != 4:
            return None
        x, y = (side.inputs(program, captured) for side in (pairs.query, pairs.key))
        if scores.shape[1] * x.shape[-1] * y.shape[-1] > scores.numel() + x.numel() + y.numel():
            return None
        with torch.no_grad():
            query = pairs.query.channels(program, captured, key=False)
            key = pairs.key.channels(program, captured, key=True)
        return None if query is None or key is None else Heads(query, key)


def _scores_gradient(captured: Captured, pairs: Pairs) -> Tensor:
    """s̄, the gradient of the loss by the scores."""
    first, *others = (captured.gradients[edge] for edge in pairs.group.edges)
    return sum(others, first)


@dataclass(frozen=True, eq=False)
class PairForm:
    """What S·v of queries and keys needs from one batch.

    Attributes:
        pairs: the group.
        moments: M, [heads, d, d'].
        heads: the channels of every head.
    """

    pairs: Pairs
    moments: Tensor
    heads: Heads

    @staticmethod
    def of(program: Program, captured: Captured, pairs: Pairs, heads: Heads) -> PairForm:
        """From what a batch leaves constant."""
        gradient = _scores_gradient(captured, pairs)
        x, y = (side.inputs(program, captured) for side in (pairs.query, pairs.key))
        samples, count, length, other = gradient.shape
        with torch.no_grad():
            x, y = x.reshape(samples * length, -1), y.reshape(samples, other, -1)
            moments = torch.stack([x.mT @ (gradient[:, h] @ y).flatten(0, 1) for h in range(count)])
        return PairForm(pairs, moments, heads)

    def cast(self, dtype: torch.dtype) -> PairForm:
        """This form: it is small, and stays in its type."""
        return self

    @property
    def nbytes(self) -> int:
        """The memory of the moments; the heads are the same for all batches."""
        return self.moments.nbytes

    def product(self, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """S·v by name, of the tensors' shapes, from v by name."""
        query, key, heads = self.pairs.query, self.pairs.key, self.heads
        with torch.no_grad():
            result = {name: torch.zeros_like(v) for name, v in direction.items()}
            w = query.rows(direction[query.tensor])[heads.query]
            v = key.rows(direction[key.tensor])[heads.key]
            sides = (query, heads.query, v @ self.moments.mT), (key, heads.key, w @ self.moments)
            for side, rows, made in sides:
                side.rows(result[side.tensor]).index_add_(0, rows.flatten(), made.flatten(0, 1))
        return result
