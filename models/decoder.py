"""A small decoder: the transformer that predicts the next byte of a text."""

from __future__ import annotations

import torch
from torch import nn

from growpipe.graph_ops.errors import UsageError

__all__ = ["Decoder", "build"]


class Block(nn.Module):
    """Causal attention and a two-layer network, each behind a layer norm and added to the residual stream.

    Args:
        width: of the residual stream.
        heads: of attention; they divide ``width``.
        hidden: of the two-layer network.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.project = nn.Linear(width, width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(x)
        # No width is spelled out, so that the values may grow.
        query, key, value = (
            layer(normed).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        hidden = nn.functional.gelu(self.expand(self.norm2(x)))
        contracted: torch.Tensor = self.contract(hidden)
        return x + contracted


class Decoder(nn.Module):
    """Text int64 [N, length] to scores of the next symbol [N, symbols, length].

    Layer norms come first in every block (GPT-2), positions are learned, and no two tensors are tied. The
    hidden layers of the blocks, the heads of attention and their values can grow; the residual stream grows
    by whole factors.

    Args:
        width: of the residual stream.
        heads: of attention; they divide ``width``.
        hidden: of the two-layer network of every block, which is how many blocks there are.
        length: of the texts.
        symbols: to tell apart.

    Raises:
        UsageError: the heads do not divide the width.
    """

    def __init__(self, width: int, heads: int, hidden: tuple[int, ...], length: int, symbols: int) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(f"{heads} heads do not divide a width of {width}")
        self.symbols, self.positions = nn.Embedding(symbols, width), nn.Embedding(length, width)
        self.register_buffer("order", torch.arange(length), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, each) for each in hidden)
        self.norm, self.scores = nn.LayerNorm(width), nn.Linear(width, symbols)
        for embedding in (self.symbols, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        x = self.symbols(text) + self.positions(self.order)
        for block in self.blocks:
            x = block(x)
        scores: torch.Tensor = self.scores(self.norm(x)).transpose(1, 2)
        return scores


def build(
    width: int = 64,
    heads: int = 4,
    hidden: tuple[int, ...] | list[int] = (32, 32, 32),
    length: int = 64,
    symbols: int = 256,
) -> Decoder:
    """A seed network of these sizes, initialised from torch's generator."""
    return Decoder(width, heads, tuple(hidden), length, symbols)
