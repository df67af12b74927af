"""Small networks with a normalised stream: the shapes of LLaMA, Gemma, GPT-2, BERT and ConvNeXt V2."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WORDS, WIDTH, HEADS, HEAD, HIDDEN, LENGTH = 23, 8, 2, 4, 12, 7


class RootMeanSquare(nn.Module):
    """The norm of LLaMA, spelled out."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class CentredScale(RootMeanSquare):
    """The norm of Gemma, whose scale is 1 + w."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + self.weight)


def layer_norm(width: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(width)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    return norm


class Attention(nn.Module):
    """Queries, keys and values of a width of their own; with ``rotary``, turned by their position."""

    def __init__(self, causal: bool, rotary: bool, bias: bool):
        super().__init__()
        self.causal = causal
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * HEAD, bias=bias)
        self.out = nn.Linear(HEADS * HEAD, WIDTH, bias=bias)
        angles = torch.arange(LENGTH)[:, None] * torch.tensor([1.0, 0.1])
        self.register_buffer("turns", torch.cat([angles, angles], -1) if rotary else None)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.turns is not None:
            q, k = self._turned(q), self._turned(k)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))

    def _turned(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        turns = self.turns[: x.shape[2]]
        return x * turns.cos() + torch.cat([-right, left], -1) * turns.sin()


class Gated(nn.Module):
    """The MLP of LLaMA."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.up = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class PreNorm(nn.Module):
    def __init__(self, norm, attention: nn.Module, mlp: nn.Module):
        super().__init__()
        self.first, self.attention, self.second, self.mlp = norm(WIDTH), attention, norm(WIDTH), mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))


class Llama(nn.Module):
    def __init__(self, norm: type[RootMeanSquare] = RootMeanSquare) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        attentions = [Attention(causal=True, rotary=True, bias=False) for _ in range(2)]
        self.blocks = nn.Sequential(*(PreNorm(norm, a, Gated()) for a in attentions))
        self.norm = norm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.words(x))))


class Gpt2(nn.Module):
    """Learned positions, layer norms, and a head that is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        mlps = [
            nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU("tanh"), nn.Linear(HIDDEN, WIDTH))
            for _ in range(2)
        ]
        attentions = [Attention(causal=True, rotary=False, bias=True) for _ in range(2)]
        self.blocks = nn.Sequential(
            *(PreNorm(layer_norm, *both) for both in zip(attentions, mlps, strict=True))
        )
        self.norm = layer_norm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x) + self.positions(torch.arange(x.shape[1]))
        return self.head(self.norm(self.blocks(h)))


class Bert(nn.Module):
    """Norms after the sums, two embeddings, and a head behind a transform, tied to the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.positions = nn.Parameter(torch.randn(1, LENGTH, WIDTH))
        self.embedded = layer_norm(WIDTH)
        self.attention = Attention(causal=False, rotary=False, bias=True)
        self.first = layer_norm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))
        self.second = layer_norm(WIDTH)
        self.transform = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), layer_norm(WIDTH))
        self.head = nn.Linear(WIDTH, WORDS)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedded(self.words(x) + self.positions[:, : x.shape[1]])
        h = self.first(h + self.attention(h))
        h = self.second(h + self.mlp(h))
        return self.head(self.transform(h))


class ResponseNorm(nn.Module):
    """The global response normalisation of ConvNeXt V2, channels last."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(1, 1, 1, channels))
        self.bias = nn.Parameter(torch.randn(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, ord=2, dim=(1, 2), keepdim=True)
        return x + self.bias + self.weight * (x * (norm / (norm.mean(-1, keepdim=True) + 1e-6)))


class ConvNextBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.norm = layer_norm(WIDTH)
        self.wide, self.response = nn.Linear(WIDTH, HIDDEN), ResponseNorm(HIDDEN)
        self.narrow = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = self.narrow(self.response(functional.gelu(self.wide(h))))
        return x + h.permute(0, 3, 1, 2)


class ConvNextV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 2, stride=2)
        self.blocks = nn.Sequential(ConvNextBlock(), ConvNextBlock())
        self.norm, self.head = layer_norm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x)).mean([-2, -1])))


STREAMS = {
    "LLaMA, tied": (Llama, None),
    "Gemma, tied": (lambda: Llama(CentredScale), None),
    "GPT-2": (Gpt2, None),
    "BERT": (Bert, None),
    "ConvNeXt V2": (ConvNextV2, (3, 8, 8)),
}
"""By name how to build the network, and the shape of an input; None for words."""


def stream_network(name: str) -> tuple[nn.Module, Tensor]:
    """The network of a name in evaluation mode, and three inputs of it."""
    build, shape = STREAMS[name]
    torch.manual_seed(0)
    model = build().eval()
    inputs = torch.randint(0, WORDS, (3, LENGTH)) if shape is None else torch.randn(3, *shape)
    return model, inputs
