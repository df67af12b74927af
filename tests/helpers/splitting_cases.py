"""Tiny networks in float64, one per kind of channel group, each with its data."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from growpipe.analyser.choice.plan_splits import Rows
from growpipe.analyser.curvature.operator import SplittingProducts
from growpipe.analyser.options import GrowthOptions
from growpipe.analyser.preparation import Prepared, prepare
from growpipe.analyser.schemes import ROWS
from growpipe.torch_module.export import GrowthExport, export_growth_form, named_tensors

Loss = Callable[[Tensor, Tensor], Tensor]


class Chain(nn.Module):
    """conv–BN–SiLU, conv with bias–tanh, flatten, hidden Linear–GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.b = nn.Conv2d(3, 4, 3, stride=2)
        self.hidden = nn.Linear(16, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = torch.tanh(self.b(functional.silu(self.norm(self.a(x)))))
        return self.head(functional.gelu(self.hidden(x.flatten(1))))


class Depthwise(nn.Module):
    """Pointwise, depthwise, pointwise, as in MobileNets, with average pooling at the end."""

    def __init__(self, activation: Callable[[], nn.Module] = nn.SiLU) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3), activation(),
            nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False), nn.BatchNorm2d(3), activation(),
            nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), activation(),
            nn.Conv2d(4, 8, 3, groups=4), activation(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)


class Residual(nn.Module):
    """A stream with several producers and consumers; one producer reads the stream itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))
        self.straight = nn.Conv2d(3, 3, 3, padding=1)
        self.inner = nn.Conv2d(3, 4, 1)
        self.outer = nn.Conv2d(4, 3, 1)
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        x = functional.silu(self.stem(x))
        x = x + functional.silu(self.norms[0](self.straight(x)))
        x = x + self.outer(torch.tanh(self.inner(self.norms[1](x))))
        return self.head(functional.silu(x).mean((2, 3)))


class Gated(nn.Module):
    """Squeeze and excite: the channel is gated by what its own mean decides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.squeeze = nn.Conv2d(4, 2, 1)
        self.excite = nn.Conv2d(2, 4, 1)
        self.out = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        x = functional.silu(self.conv(x))
        gate = torch.sigmoid(self.excite(functional.silu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.out(x * gate).mean((2, 3))


class Dense(nn.Module):
    """Concatenated features, normalised and mixed together."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 3, 3, padding=1)
        self.b = nn.Conv2d(3, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.c = nn.Conv2d(5, 3, 1)
        self.head = nn.Linear(3 * 9, 3)

    def forward(self, x):
        a = functional.silu(self.a(x))
        x = torch.cat([a, torch.tanh(self.b(a))], 1)
        x = functional.avg_pool2d(functional.silu(self.c(functional.gelu(self.norm(x)))), 2)
        return self.head(x.flatten(1))


class SwiGLU(nn.Module):
    """A gated MLP behind a layer norm, with a residual; tokens [N, T, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.gate = nn.Linear(4, 5, bias=False)
        self.up = nn.Linear(4, 5, bias=False)
        self.down = nn.Linear(5, 4, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        y = self.norm(x)
        x = x + self.down(functional.silu(self.gate(y)) * self.up(y))
        return self.head(x.mean(1))


class FusedGLU(nn.Module):
    """Gate and up projection in one weight: two entries per channel on one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(4, 10)
        self.down = nn.Linear(5, 3)

    def forward(self, x):
        gate, up = self.both(x).chunk(2, -1)
        return self.down(functional.silu(gate) * up)


class PointNet(nn.Module):
    """Shared pointwise layers, a maximum over the points, and an MLP; points [N, 3, P]."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(3, 4, 1)
        self.norm = nn.BatchNorm1d(4)
        self.b = nn.Conv1d(4, 5, 1)
        self.hidden = nn.Linear(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = functional.silu(self.b(functional.silu(self.norm(self.a(x))))).amax(2)
        return self.head(torch.tanh(self.hidden(x)))


class Transposed(nn.Module):
    """An autoencoder: strided convolution down, transposed convolution up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1)
        self.out = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x):
        return self.out(functional.silu(self.up(functional.silu(self.down(x)))))


class Attention(nn.Module):
    """One transformer block: whole heads split, and the hidden layer of its MLP; values are linear."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
        self.o = nn.Linear(4, 4)
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        y = self.norm1(x)
        q, k = (p(y).reshape(y.shape[0], y.shape[1], -1, 2) for p in (self.q, self.k))
        # As many heads as queries have, of any width: both may grow.
        v = self.v(y).reshape(y.shape[0], y.shape[1], q.shape[2], -1)
        q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.o(y.reshape(y.shape[0], y.shape[1], -1))
        x = x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return self.head(x.mean(1))


class Shared(nn.Module):
    """One layer used twice: its weight has two producers and two consumers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.inner = nn.Linear(4, 5)
        self.back = nn.Linear(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        for _ in range(2):
            x = torch.tanh(self.back(functional.silu(self.inner(x))))
        return self.head(x)


class Shuffled(nn.Module):
    """Sub-pixel upsampling: each channel of the consumer is four channels of the producer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 12, 3, padding=1)
        self.b = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x):
        return self.b(functional.silu(functional.pixel_shuffle(self.a(x), 2))).mean(3)


class Kinked(nn.Module):
    """ReLU, ReLU6, hard-swish, leaky and parametric ReLU: surrogate curvature."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 3, groups=3), nn.ReLU6(),
            nn.Conv2d(3, 4, 1), nn.Hardswish(inplace=True), nn.Conv2d(4, 4, 1), nn.PReLU(4),
            nn.Flatten(), nn.Linear(4 * 16, 5), nn.LeakyReLU(0.1), nn.Linear(5, 3),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)


class Pairs(nn.Module):
    """An attention whose queries and keys split, dimension by dimension; values are linear."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        # Two heads of any width; the scale does not follow the width.
        q, k, v = (p(x).reshape(*x.shape[:2], 2, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = functional.scaled_dot_product_attention(q, k, v, scale=0.6).transpose(1, 2)
        return self.head(torch.tanh(y.reshape(*x.shape[:2], -1)).mean(1))


class Recurrent(nn.Module):
    """An LSTM whose hidden units feed each other and the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.body = nn.LSTM(4, 2, batch_first=True)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.body(torch.tanh(self.embed(x)))[0].mean(1))


@dataclass(frozen=True)
class Case:
    """How to build a network, and its data; ``linear`` names the groups whose channels are linear: S = 0."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    regression: bool = False
    smooth: bool = True
    linear: tuple[str, ...] = ()


IMAGE = (2, 6, 6)
CASES = {
    "chain": Case(Chain, IMAGE),
    "depthwise": Case(Depthwise, IMAGE),
    "residual": Case(Residual, IMAGE),
    "squeeze-excite": Case(Gated, IMAGE),
    "concat": Case(Dense, IMAGE),
    "swiglu": Case(SwiGLU, (5, 4)),
    "fused glu": Case(FusedGLU, (4,)),
    "pointnet": Case(PointNet, (3, 7)),
    "transposed": Case(Transposed, IMAGE, regression=True),
    "attention": Case(Attention, (5, 4), linear=("v.weight",)),
    "shared": Case(Shared, (4,)),
    "pixel shuffle": Case(Shuffled, IMAGE, regression=True),
    "kinked": Case(Kinked, IMAGE, smooth=False),
    "queries and keys": Case(Pairs, (5, 4)),
    "recurrent": Case(Recurrent, (2, 3)),
}


@dataclass(eq=False)
class Problem:
    """A case, prepared for analysis."""

    model: nn.Module
    loss_fn: Loss
    x: Tensor
    y: Tensor
    prepared: Prepared | None
    export: GrowthExport | None = None

    @functools.cached_property
    def operator(self) -> SplittingProducts:
        return self.operator_of()

    def operator_of(self, **options) -> SplittingProducts:
        """Another operator over the same two micro-batches."""
        operator = SplittingProducts(self.prepared.program, **options)
        for piece in (slice(0, 10), slice(10, 24)):
            operator.add((self.x[piece],), self.y[piece], self.loss_fn)
        return operator

    def loss(self, model: nn.Module) -> float:
        with torch.no_grad():
            return float(self.loss_fn(model(self.x), self.y))


def build(name: str, displace: tuple[str, ...] = ("weights", "filters")) -> Problem:
    """The case of a name, with batch-norm statistics and biases away from their defaults.

    The network is exported once; a test that changed it would be told by the next that builds it.
    """
    case, weights, random_state = _exported(name)
    for key, value in named_tensors(case.model).items():
        assert torch.equal(value, weights[key]), f"a test has changed {key!r} of the case {name!r}"
    torch.set_rng_state(random_state)
    prepared = prepare(case.model, case.export, GrowthOptions(displace=displace), torch.device("cpu"))
    return replace(case, prepared=prepared)


@functools.cache
def _exported(name: str) -> tuple[Problem, dict[str, Tensor], Tensor]:
    """The case of a name, not prepared yet; its parameters and buffers; torch's random state after them."""
    case = CASES[name]
    torch.manual_seed(sum(map(ord, name)))
    model = case.build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
    x = torch.randn(24, *case.shape, dtype=torch.float64)
    if case.regression:
        loss_fn: Loss = functional.mse_loss
        with torch.no_grad():
            y = torch.randn_like(model(x))
    else:
        loss_fn, y = functional.cross_entropy, torch.randint(0, 3, (24,))
    export = export_growth_form(model, (x[:2],))
    weights = {key: value.clone() for key, value in named_tensors(model).items()}
    return Problem(model, loss_fn, x, y, None, export), weights, torch.get_rng_state()


def is_asymmetric(rows: Rows) -> bool:
    """Whether any chosen split depends on the sign of v+."""
    return any(not ROWS[row].symmetric for chosen in rows.values() for row in np.unique(chosen) if row >= 0)
