"""Rounded factors: when an analysis takes them, how little they change, and torch's settings afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from growpipe.analyser import analyse, resources
from growpipe.analyser.options import GrowthOptions
from growpipe.analyser.preparation import prepare
from growpipe.analyser.program.precision import rounded_factors, whole_factors
from growpipe.graph_ops.errors import UsageError

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def net() -> nn.Sequential:
    """Filters and matrices that are large enough to be rounded, in every way that convolutions take."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.SiLU(),
        nn.Conv2d(32, 64, 1), nn.SiLU(),
        nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.SiLU(),
        nn.Conv2d(128, 64, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(256, 64), nn.Tanh(),
        nn.Linear(64, 4),
    )  # fmt: skip


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    model, x = net(), torch.randn(512, 3, 8, 8)
    y = (x[:, 0].mean((1, 2)) > 0).long() + 2 * (x[:, 1].mean((1, 2)) > 0).long()
    batches = list(zip(x.split(64), y.split(64), strict=True))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for inputs, targets in batches:
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model, batches


def notes(problem, **options):
    model, batches = problem
    plan = analyse(model, cross_entropy, batches, (batches[0][0][:2],), **options)
    return plan.notes["analysis"]


def settings():
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    )


def test_spectra_hardly_change(problem):
    before = settings()
    whole, rounded = (notes(problem, rounded_products=rounds) for rounds in (False, True))
    assert not whole["rounded_products"]
    assert rounded["rounded_products"]
    assert settings() == before
    for group, exact in whole["groups"].items():
        found = rounded["groups"][group]
        for end in ("lowest", "highest"):
            assert found[end] == pytest.approx(exact[end], rel=0.02)


def test_only_what_gains_by_it_rounds_by_itself(problem, monkeypatch):
    options = {"ranking": "predicted", "epsilon": 0.1}
    assert not notes(problem, **options)["rounded_products"]  # too small
    monkeypatch.setattr(resources, "WORTH_ROUNDING", 2**10)
    monkeypatch.setattr(resources, "has_rounding_units", lambda device: True)
    assert notes(problem, **options)["rounded_products"]
    assert not notes(problem, **options, rounded_products=False)["rounded_products"]
    assert not notes(problem, **options, tolerance=1e-3)["rounded_products"]
    assert not notes(problem, **options, displace=("biases",))["rounded_products"]
    monkeypatch.setattr(resources, "has_rounding_units", lambda device: False)
    assert not notes(problem, **options)["rounded_products"]
    model, batches = problem
    wide = copy.deepcopy(model).double(), [(x.double(), y) for x, y in batches]
    assert not notes(wide, **options, rounded_products=True)["rounded_products"]


class Attention(nn.Module):
    """Queries and keys that another width would change, so that they are not analysed."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.hidden, self.out = nn.Linear(8, 24), nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x):
        q, k, v = self.project(x).view(-1, 5, 3, 1, 8).transpose(1, 3).unbind(2)
        x = scaled_dot_product_attention(q, k, v).squeeze(1)
        return self.out(torch.tanh(self.hidden(x))).mean(1)


def test_fused_attention_is_not_rounded(monkeypatch):
    monkeypatch.setattr(resources, "WORTH_ROUNDING", 0)
    monkeypatch.setattr(resources, "has_rounding_units", lambda device: True)

    def gains(model, x):
        program = prepare(model.eval(), (x,), GrowthOptions(), CPU).program
        return resources.gains_by_rounding(program, CPU)

    assert not gains(Attention(), torch.randn(2, 5, 8))
    assert gains(net(), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("precision", [whole_factors, rounded_factors])
@pytest.mark.parametrize("own", ["highest", "high", "medium"])
def test_settings_come_back(precision, own):
    torch.set_float32_matmul_precision(own)
    try:
        before = settings()
        with precision():
            inside = settings()
        assert settings() == before
        with pytest.raises(ZeroDivisionError), precision():
            raise ZeroDivisionError
        assert settings() == before
        assert inside[0] == ("highest" if precision is whole_factors else "medium")
    finally:
        torch.set_float32_matmul_precision("highest")


def test_settings_that_torch_itself_cannot_read_are_refused():
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        with pytest.raises(UsageError, match="set_float32_matmul_precision"), whole_factors():
            pass
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"
