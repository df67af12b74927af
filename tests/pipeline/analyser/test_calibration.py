"""Calibration: groups compete by what their splits realise by themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from growpipe.analyser import analyse
from growpipe.analyser.calibration import calibrate
from growpipe.analyser.selection import Candidates
from growpipe.graph_ops.errors import UsageError
from growpipe.mirror import grow


def offered(group: str, values: list[float]) -> Candidates:
    return Candidates(group, np.array([values]), np.where(np.array([values]) < 0, 0, -1))


def test_every_group_is_measured_at_its_own_best_step() -> None:
    # Two groups whose loss has a quartic term: ½ Q ε² + K ε⁴ is least at ε² = −Q / 4K.
    quartic = {"robust": 0.1, "fragile": 100.0}
    quadratic = {"robust": -1.0, "fragile": -8.0}
    tried: list[tuple[str, float]] = []

    def change(group: str, rows: np.ndarray, step: float) -> float:
        tried.append((group, step))
        return 0.5 * quadratic[group] * step**2 + quartic[group] * step**4

    candidates = [offered("robust", [-0.75, -0.25]), offered("fragile", [-6.0, -2.0])]
    calibration = calibrate(candidates, change, steps=(0.1, 0.2, 0.4, 0.8, 1.6))
    assert calibration.step == {"robust": 1.6, "fragile": 0.1}
    # From the middle to the lower side: no step beyond the first that is worse.
    assert [step for group, step in tried if group == "fragile"] == [0.4, 0.8, 0.2, 0.1]
    assert [step for group, step in tried if group == "robust"] == [0.4, 0.8, 1.6]
    robust, fragile = calibration.measured(candidates)
    assert robust.worth == pytest.approx(0.5 * 1.6**2 - 0.1 * 1.6**4)
    assert fragile.worth == pytest.approx(0.5 * 8.0 * 0.1**2 - 100.0 * 0.1**4)
    assert robust.worth > fragile.worth  # the prediction alone says the opposite
    assert calibration.lengths() == {"robust": 1.0, "fragile": pytest.approx(0.0625)}


def test_a_group_that_lowers_nothing_comes_last_and_explosions_count_as_worse() -> None:
    slope = {"good": -0.1, "harmful": 0.2, "exploding": math.nan}
    candidates = [offered(name, [-1.0, -2.0]) for name in slope] + [offered("empty", [0.0, 0.0])]
    calibration = calibrate(candidates, lambda group, rows, step: slope[group] * step, steps=(0.5, 1.0))
    assert calibration.step == {"good": 1.0, "harmful": 0.0, "exploding": 0.0, "empty": 0.0}
    worth = {c.group: c.worth for c in calibration.measured(candidates)}
    assert worth["good"] == pytest.approx(0.1)
    # Still on offer, for a budget that nothing else can use.
    assert 0.0 < worth["harmful"] == worth["exploding"] < 1e-5
    fragile = calibrate(candidates[:1], lambda group, rows, step: -step if step < 0.5 else math.inf)
    assert fragile.step == {"good": 0.4}
    nothing = calibrate(candidates, lambda group, rows, step: 1.0, steps=(0.5,))
    assert nothing.lengths() == {}
    assert {c.worth for c in nothing.measured(candidates)} == {1.0}


class Amplified(nn.Module):
    """A first layer whose small displacements are large for what comes behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.second = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(6.0 * self.first(x))
        return self.head(torch.tanh(self.second(hidden)))


def test_analyse_ranks_by_what_is_realised_and_steps_each_group_by_its_own() -> None:
    torch.manual_seed(3)
    model = Amplified().double()
    x = torch.randn(128, 6, dtype=torch.float64)
    target = torch.randn(128, 2, dtype=torch.float64)
    batches = [(x, target)]

    def loss(output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return (output - wanted).square().sum(1).mean()

    arguments = (model, loss, batches, (x[:2],))
    plan = analyse(*arguments, growth=0.5, hold_out=False)
    calibration = plan.notes["analysis"]["calibration"]
    assert set(calibration) == {"first.weight", "second.weight"}
    with torch.no_grad():
        change = float(loss(grow(model, plan)(x), target) - loss(model(x), target))
    assert plan.realised_change == pytest.approx(change, rel=1e-9)
    longest = max(entry["step"] for entry in calibration.values())
    for split in plan.groups:
        for name, displacement in split.displacements.items():
            rows = displacement.values.reshape(len(displacement.channels), -1)
            inputs = x if name == "first.weight" else torch.tanh(6.0 * model.first(x))
            covariance = (inputs.T @ inputs / len(x)).detach().numpy()
            lengths = np.sqrt(np.einsum("ci,ij,cj->c", rows, covariance, rows))
            step = calibration[split.group]["step"] or 0.1
            assert lengths.max() <= step / longest * 1.001
    held_out = analyse(*arguments, growth=0.5)
    assert (held_out.notes["analysis"]["samples"], held_out.notes["analysis"]["held_out"]) == (96, 32)
    with torch.no_grad():
        unseen = float(loss(grow(model, held_out)(x[96:]), target[96:]) - loss(model(x[96:]), target[96:]))
    assert held_out.realised_change == pytest.approx(unseen, rel=1e-9)
    few = analyse(model, loss, [(x[:20], target[:20])], (x[:2],), growth=0.5)
    assert (few.notes["analysis"]["samples"], few.notes["analysis"]["held_out"]) == (16, 4)
    predicted = analyse(*arguments, growth=0.5, ranking="predicted")
    assert predicted.notes["analysis"]["calibration"] is None
    with pytest.raises(UsageError, match="ranking"):
        analyse(*arguments, ranking="guessed")
