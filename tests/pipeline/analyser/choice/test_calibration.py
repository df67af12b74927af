"""Calibration: groups compete by what their splits realise by themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from growpipe.analyser import analyse
from growpipe.analyser.candidates import Candidates
from growpipe.analyser.choice.calibration import Calibration, Measured, calibrate
from growpipe.graph_ops.errors import UsageError
from growpipe.torch_module.grow_module import grow

Change = Callable[[str, np.ndarray, float], float]


def offered(group: str, values: list[float]) -> Candidates:
    return Candidates(group, np.array([values]), np.where(np.array([values]) < 0, 0, -1))


def exactly(change: Change) -> Callable[[str, np.ndarray, float], Measured]:
    return lambda group, rows, step: Measured(change(group, rows, step), 0.0)


def test_every_group_is_measured_at_its_own_best_step() -> None:
    # Two groups whose loss has a quartic term: ½ Q ε² + K ε⁴ is least at ε² = −Q / 4K.
    quartic = {"robust": 0.1, "fragile": 100.0}
    quadratic = {"robust": -1.0, "fragile": -8.0}
    tried: list[tuple[str, float]] = []

    def change(group: str, rows: np.ndarray, step: float) -> float:
        tried.append((group, step))
        return 0.5 * quadratic[group] * step**2 + quartic[group] * step**4

    candidates = [offered("robust", [-0.75, -0.25]), offered("fragile", [-6.0, -2.0])]
    calibration = calibrate(candidates, change, exactly(change), steps=(0.1, 0.2, 0.4, 0.8, 1.6))
    assert calibration.step == {"robust": 1.6, "fragile": 0.1}
    # From the middle to the lower side: none beyond the first that is worse; the best is measured anew.
    assert [step for group, step in tried if group == "fragile"] == [0.4, 0.8, 0.2, 0.1, 0.1]
    assert [step for group, step in tried if group == "robust"] == [0.4, 0.8, 1.6, 1.6]
    robust, fragile = calibration.measured(candidates)
    assert robust.worth == pytest.approx(0.5 * 1.6**2 - 0.1 * 1.6**4)
    assert fragile.worth == pytest.approx(0.5 * 8.0 * 0.1**2 - 100.0 * 0.1**4)
    assert robust.worth > fragile.worth  # the prediction alone says the opposite
    assert calibration.lengths() == {"robust": 1.0, "fragile": pytest.approx(0.0625)}


def test_a_group_that_lowers_nothing_comes_last_and_explosions_count_as_worse() -> None:
    slope = {"good": -0.1, "harmful": 0.2, "exploding": math.nan}
    candidates = [offered(name, [-1.0, -2.0]) for name in slope] + [offered("empty", [0.0, 0.0])]

    def change(group: str, rows: np.ndarray, step: float) -> float:
        return slope[group] * step

    calibration = calibrate(candidates, change, exactly(change), steps=(0.5, 1.0))
    assert calibration.step == {"good": 1.0, "harmful": 0.0, "exploding": 0.0, "empty": 0.0}
    worth = {c.group: c.worth for c in calibration.measured(candidates)}
    assert worth["good"] == pytest.approx(0.1)
    # Still on offer, for a budget that nothing else can use.
    assert 0.0 < worth["harmful"] == worth["exploding"] < 1e-5

    def bounded(group: str, rows: np.ndarray, step: float) -> float:
        return -step if step < 0.5 else math.inf

    fragile = calibrate(candidates[:1], bounded, exactly(bounded))
    assert fragile.step == {"good": 0.4}
    nothing = calibrate(candidates, lambda *_: 1.0, lambda *_: Measured(1.0, 0.1), steps=(0.5,))
    assert nothing.lengths() == {}
    assert {c.worth for c in nothing.measured(candidates)} == {1.0}


def test_decreases_are_drawn_to_their_mean_as_far_as_they_are_noise() -> None:
    steps = dict.fromkeys("abcd", 1.0)
    decrease = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    certain = Calibration(steps, decrease, dict.fromkeys("abcd", 0.0))
    assert certain.worth == pytest.approx(decrease)
    noise = Calibration(steps, decrease, dict.fromkeys("abcd", 0.5))
    assert noise.worth == pytest.approx(dict.fromkeys("abcd", 0.25))
    # The variance of the decreases is 1/60: with s² = 1/120 half of each difference is kept.
    half = Calibration(steps, decrease, dict.fromkeys("abcd", 120**-0.5))
    assert half.worth == pytest.approx({"a": 0.175, "b": 0.225, "c": 0.275, "d": 0.325})
    # Each by its own error.
    mixed = Calibration(steps, decrease, {"a": 0.0, "b": 0.0, "c": 0.0, "d": 0.2}).worth
    assert (mixed["a"], mixed["b"], mixed["c"]) == pytest.approx((0.1, 0.2, 0.3))
    assert 0.25 < mixed["d"] < 0.4


def test_shrunken_decreases_err_less() -> None:
    """Over many draws of four groups and noise as large as their differences."""
    random = np.random.default_rng(0)
    raw = shrunken = 0.0
    for _ in range(500):
        truth = random.normal(0.05, 0.02, 4)
        seen = dict(zip("abcd", truth + random.normal(0.0, 0.03, 4), strict=True))
        worth = Calibration(dict.fromkeys("abcd", 1.0), seen, dict.fromkeys("abcd", 0.03)).worth
        raw += float(np.square(np.array(list(seen.values())) - truth).sum())
        shrunken += float(np.square(np.array(list(worth.values())) - truth).sum())
    assert shrunken < 0.7 * raw


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


@pytest.mark.slow
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


def test_a_group_is_measured_on_seen_and_unseen_samples_with_equal_weight() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(160, 6, dtype=torch.float64)
    target = torch.randn(160, 2, dtype=torch.float64)

    def loss(output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return (output - wanted).square().sum(1).mean()

    plan = analyse(
        model, loss, [(x, target)], (x[:2],), scheme="s2d", growth=1.0, max_samples=96, micro_batch=16,
        line_search_samples=32, ranking_samples=96, stability=1.0,
    )  # fmt: skip
    notes = plan.notes["analysis"]
    # What comes after the analysis set is held out, so that none of it is lost.
    assert (notes["samples"], notes["held_out"]) == (96, 48)
    measured = notes["calibration"]["0.weight"]
    grown = grow(model, replace(plan, epsilon=measured["step"]))
    with torch.no_grad():
        change = (grown(x) - target).square().sum(1) - (model(x) - target).square().sum(1)
    seen, unseen = change[:48], change[96:144]
    assert measured["decrease"] == pytest.approx(-float(seen.mean() + unseen.mean()) / 2, rel=1e-9)
    # The spread is that between micro-batches, of which the unseen samples make at least four.
    batches = [(part.reshape(-1, size).mean(1), size) for part, size in ((seen, 16), (unseen, 8))]
    squares = sum(float(size * (means - means.mean()).square().sum()) for means, size in batches)
    variance = squares / sum(len(means) - 1 for means, _ in batches)
    assert measured["standard_error"] == pytest.approx(math.sqrt(variance * (2 / 48)) / 2, rel=1e-9)
    # And it is of the size of what the samples themselves say.
    direct = math.sqrt(float(seen.var() / 48 + unseen.var() / 48)) / 2
    assert 0.3 < measured["standard_error"] / direct < 3.0
