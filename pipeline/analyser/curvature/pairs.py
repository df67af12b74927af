"""S of queries and keys in closed form: one matrix per head, the same for all its channels.

Let the scores of head h be ``q_h k_hᵀ`` with ``q_h = x W_hᵀ`` and ``k_h = y V_hᵀ``, and s̄_h the gradient of
the loss by them. What bends is the product alone, and with ``M_h = Σ_samples xᵀ s̄_h y``

    q(v) = ½ vᵀ S v = Σ_h ⟨Ẇ_h M_h, V̇_h⟩,   so   S v = (V̇_h M_hᵀ, Ẇ_h M_h)

for every channel of the head. M takes about as long as one product by the bends of the path, and products
with it a small share of that: they do not depend on the number of samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from growpipe.analyser.program.captured import Captured
from growpipe.analyser.program.pairs import Pairs
from growpipe.analyser.program.program import Program

__all__ = ["Heads", "PairForm"]


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
