"""Which exported programs are traced once more before they are analysed, and that it changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm, cross_entropy

from growpipe.analyser import preparation
from growpipe.analyser.curvature.operator import SplittingProducts
from growpipe.analyser.options import GrowthOptions
from growpipe.analyser.preparation import functional, prepare
from growpipe.analyser.spectra.drive import random_start
from growpipe.torch_module.export import export_growth_form

pytestmark = pytest.mark.slow


class OwnStatistics(nn.Module):
    """Normalised by the batch itself, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(batch_norm(self.first(x), None, None, training=True))


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 3, groups=4),
        nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 6), nn.BatchNorm1d(6), nn.SiLU(), nn.Linear(6, 2),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "shape", "known"),
    [
        (convolutions(), (2, 3, 7, 7), True),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), (2, 3), False),
        (OwnStatistics(), (2, 3), False),
        (nn.Sequential(nn.Linear(3, 4), nn.GLU(), nn.Linear(2, 2)), (2, 3), False),
    ],
    ids=["convolutions", "in place", "own statistics", "unknown operator"],
)
def test_only_programs_of_known_operators_are_left_as_they_are(model, shape, known):
    program = export_growth_form(model.eval(), (torch.randn(*shape),)).program
    found = functional(program)
    assert (found is program) == known
    for node in found.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            assert not node.target._schema.is_mutable


@pytest.mark.parametrize("limit", [0, None])
def test_a_program_as_it_is_gives_the_products_of_one_that_is_traced_again(limit, monkeypatch):
    torch.manual_seed(0)
    model = convolutions().double().eval()
    for norm in model:
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    x, y = torch.randn(6, 3, 7, 7, dtype=torch.float64), torch.randint(0, 2, (6,))
    found = []
    for known in (preparation._FUNCTIONAL, set()):
        monkeypatch.setattr(preparation, "_FUNCTIONAL", known)
        prepared = prepare(model, (x[:2],), GrowthOptions(), torch.device("cpu"))
        operator = SplittingProducts(prepared.program, limit)
        operator.add((x,), y, cross_entropy)
        assert operator.captured(0).loss == pytest.approx(
            float(cross_entropy(model(x), y).detach()), rel=1e-12
        )
        found.append(operator.apply(random_start(operator.zeros(), 0)))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-15)
