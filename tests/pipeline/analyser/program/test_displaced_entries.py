"""A matrix that makes queries, keys and values at once: what a group does not displace does not move."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from growpipe.analyser.curvature.operator import SplittingProducts
from growpipe.analyser.options import GrowthOptions
from growpipe.analyser.preparation import prepare
from growpipe.analyser.spectra.drive import random_start


class Fused(nn.Module):
    """Self-attention of two heads, whose queries, keys and values one layer makes; tokens [N, 5, 4]."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.qkv = nn.Conv1d(4, 12, 1) if kind == "convolution" else nn.Linear(4, 12)
        self.o = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "convolution":
            made = self.qkv(x.mT).chunk(3, 1)
            q, k, v = (y.reshape(x.shape[0], 2, -1, x.shape[1]).mT for y in made)
        else:
            made = self.qkv(x).chunk(3, -1)
            q, k, v = (y.reshape(x.shape[0], x.shape[1], 2, -1).transpose(1, 2) for y in made)
        y = scaled_dot_product_attention(q, k, v, scale=0.7)
        return x + torch.tanh(self.o(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)))


@pytest.mark.parametrize("kind", ["matrix", "convolution"])
def test_values_of_a_common_matrix_do_not_move_with_queries_and_keys(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Fused(kind), Fused(kind), nn.Flatten(), nn.Linear(20, 3)).double().eval()
    x, y = torch.randn(6, 5, 4, dtype=torch.float64), torch.randint(0, 3, (6,))
    program = prepare(model, (x[:2],), GrowthOptions(), torch.device("cpu")).program
    pairs = [group for group in program.groups if group.group.of_pairs]
    assert len(pairs) == 2
    for group in pairs:
        # Through the values they would reach the scores of the layer behind.
        assert len(group.sums) == 1
        assert {source for _, source in group.edges} == group.sums
    found, general = (SplittingProducts(program, closed_forms=closed) for closed in (True, False))
    for operator in (found, general):
        operator.add((x,), y, cross_entropy)
    start = random_start(found.zeros(), 0)
    for product, reference in zip(found.apply(start), general.apply(start), strict=True):
        torch.testing.assert_close(product, reference, rtol=1e-10, atol=1e-16)
