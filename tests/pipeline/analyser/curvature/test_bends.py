"""The second-order rule of every operator, and S·v of attention by its bends, against autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from growpipe.analyser.curvature.bends import Bend, MatrixProduct, Product, Smooth, Softmax, pointwise
from growpipe.analyser.curvature.operator import SplittingProducts
from growpipe.analyser.options import GrowthOptions
from growpipe.analyser.preparation import prepare
from growpipe.analyser.spectra.drive import random_start

WIDE = {"dtype": torch.float64}


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, **WIDE)


def _pow(y: Tensor) -> Tensor:
    return y.square().add(1).pow(-0.5)


def _square_norm(y: Tensor) -> Tensor:
    return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-2)


def _product(a: Tensor, b: Tensor, e: Tensor) -> Bend:
    return Product(a, b, e)


def _matrices(a: Tensor, b: Tensor, e: Tensor) -> Bend:
    return MatrixProduct(a, b, e)


def _summed(y: Tensor) -> Tensor:
    return y.cumsum(1)


# By name the function, the shapes of what moves, and its rule.
RULES = {
    "pointwise": (_pow, [(3, 4)], lambda y, e: pointwise(_pow, y, e, True)),
    "a product": (torch.mul, [(2, 3, 4), (2, 3, 4)], _product),
    "a product that is broadcast": (torch.mul, [(2, 3, 4), (2, 1, 1)], _product),
    "matrices": (torch.matmul, [(2, 3, 4, 5), (2, 3, 5, 4)], _matrices),
    "matrices that are broadcast": (torch.matmul, [(2, 3, 4, 5), (5, 6)], _matrices),
    "softmax": (lambda s: s.softmax(1), [(2, 5, 3)], lambda s, e: Softmax.of(s.softmax(1), e, 1)),
    "a norm": (_square_norm, [(3, 4)], lambda y, e: Smooth.of(_square_norm, [y], e)),
    "a quotient": (torch.div, [(3, 4), (3, 1)], lambda a, b, e: Smooth.of(torch.div, [a, b.exp()], e)),
    "something linear": (_summed, [(3, 4)], lambda y, e: Smooth.of(_summed, [y], e)),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_the_first_and_the_second_derivative(name: str) -> None:
    torch.manual_seed(0)
    function, shapes, rule = RULES[name]
    at = tuple(normal(*shape) for shape in shapes)
    tangents = tuple(normal(*shape) for shape in shapes)
    gradient = torch.randn_like(function(*at))
    bend = rule(*at, gradient)
    if name == "a quotient":
        at = (at[0], at[1].exp())

    _, expected = torch.autograd.functional.jvp(function, at, tangents)
    leaves = [t.requires_grad_() for t in tangents]
    made = bend.tangent(*leaves)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-13)
    # The tangent is differentiated by its arguments: that is the adjoint.
    back = torch.randn_like(made)
    _, adjoint = torch.autograd.functional.vjp(function, at, back)
    torch.testing.assert_close(torch.autograd.grad(made, leaves, back), adjoint, rtol=1e-12, atol=1e-13)

    moved = [t.detach() for t in tangents]
    _, bent = torch.autograd.functional.hvp(lambda *y: (gradient * function(*y)).sum(), at, tuple(moved))
    for given in (None, made.detach()):
        torch.testing.assert_close(tuple(bend.curvature(given, *moved)), bent, rtol=1e-11, atol=1e-12)


class Attending(nn.Module):
    """Self-attention of tokens [N, 5, 4], in the way that ``kind`` says.

    Args:
        kind: how the scores are made.
        heads: how many heads there are, of any width; None for any number of heads, of two channels each.
    """

    def __init__(self, kind: str, heads: int | None) -> None:
        super().__init__()
        self.kind, self.heads = kind, heads
        few = 4 if kind == "gqa" else 8
        self.q, self.k, self.v = nn.Linear(4, 8), nn.Linear(4, few), nn.Linear(4, few)
        self.o = nn.Linear(8, 3)
        self.register_buffer("allowed", torch.rand(5, 5) < 0.5)
        self.register_buffer("shift", torch.randn(5, 5))
        self.register_buffer("turn", torch.randn(5, 1))
        self.allowed.fill_diagonal_(True)
        if kind == "norm":
            self.q_norm, self.k_norm = nn.LayerNorm(2), nn.LayerNorm(2)

    def of_heads(self, y: Tensor, share: int = 1) -> Tensor:
        """[N, 5, channels] to [N, heads, 5, channels of a head]."""
        split = (-1, 2) if self.heads is None else (self.heads // share, -1)
        return y.reshape(y.shape[0], y.shape[1], *split).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        share = 2 if self.kind == "gqa" else 1
        q, k, v = self.of_heads(self.q(x)), self.of_heads(self.k(x), share), self.of_heads(self.v(x), share)
        scaled = {"scale": 0.7}
        if self.kind == "norm":
            q, k = self.q_norm(q), self.k_norm(k)
        elif self.kind == "rms":
            q, k = (t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-3) for t in (q, k))
        elif self.kind == "turned":
            q, k = q * self.turn, k / self.turn
        if self.kind == "explicit":
            scores = (q @ k.mT / 1.3).masked_fill(~self.allowed, -torch.inf)
            y = scores.softmax(-1) @ v
        elif self.kind == "penalised":
            scores = (q @ k.mT / 1.3).masked_fill(~self.allowed, -2.0) + self.shift
            y = scores.softmax(-1) @ v
        elif self.kind in {"masked", "shifted"}:
            mask = self.allowed if self.kind == "masked" else self.shift
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, **scaled)
        elif self.kind == "gqa":
            y = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, **scaled)
        else:
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.kind == "causal", **scaled)
        return self.o(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)).mean(1)


CASES = [
    *[(kind, None, ("weights",)) for kind in ("masked", "shifted", "causal", "norm", "rms")],
    ("explicit", None, ("weights", "biases")),
    ("penalised", None, ("weights",)),
    ("gqa", None, ("weights",)),
    # Of so many heads, queries and keys split: in closed form, and by bends where that does not fit.
    ("explicit", 4, ("weights",)),
    ("causal", 2, ("weights", "biases")),
    ("gqa", 4, ("weights",)),
    ("turned", 4, ("weights",)),
]


@pytest.mark.parametrize(("kind", "heads", "displace"), CASES)
def test_attention_equals_double_backward(kind: str, heads: int | None, displace: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = Attending(kind, heads).double().eval()
    x, y = normal(6, 5, 4), torch.randint(0, 3, (6,))
    prepared = prepare(model, (x[:2],), GrowthOptions(displace=displace), torch.device("cpu"))
    found, general = (SplittingProducts(prepared.program, closed_forms=closed) for closed in (True, False))
    for operator in (found, general):
        for part in (slice(0, 4), slice(4, 6)):
            operator.add((x[part],), y[part], functional.cross_entropy)
    assert {group.group.of_pairs for group in found.groups} >= {heads is not None}
    start = random_start(found.zeros(), 0)
    expected = general.apply(start)
    assert max(float(product.abs().max()) for product in expected) > 1e-6
    for _ in range(2):
        for product, reference in zip(found.apply(start), expected, strict=True):
            scale = float(reference.abs().max())
            torch.testing.assert_close(product, reference, rtol=1e-10, atol=1e-10 * scale + 1e-16)
    assert not [
        group.name for i, group in enumerate(found.groups) if found._visits.bends.get(i, group) is None
    ]


def test_nothing_is_kept_or_computed_for_channels_that_are_linear() -> None:
    torch.manual_seed(0)
    model = Attending("explicit", 4).double().eval()
    x, y = normal(6, 5, 4), torch.randint(0, 3, (6,))
    prepared = prepare(model, (x[:2],), GrowthOptions(), torch.device("cpu"))
    operator = SplittingProducts(prepared.program, memory_limit=0)
    operator.add((x,), y, functional.cross_entropy)
    (values,) = (i for i, group in enumerate(operator.groups) if group.name == "v.weight")
    # Values are averaged by probabilities, which the analysis of other groups makes on its own.
    recorded = operator._visits.recording(range(len(operator.groups)))
    assert "softmax" in {str(node) for node in operator.groups[0].path}
    assert "softmax" not in {str(node) for node in recorded.constants}
    whole, difference = operator.apply_halves({values: random_start(operator.zeros(), 0)[values][None]})
    assert not whole[values].any()
    assert not difference[values].any()
    assert whole[values].shape == (1, *operator.zeros()[values].shape)
