"""Calibration: groups compete by their shares in what all their splits realise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from growpipe.analyser import analyse
from growpipe.analyser.candidates import Candidates
from growpipe.analyser.choice.calibration import Calibration, calibrate
from growpipe.analyser.choice.shared_trials import NODES, REACH, START, SharedTrials
from growpipe.analyser.samples import MicroBatch
from growpipe.graph_ops.errors import UsageError
from growpipe.torch_module.grow_module import grow


def offered(group: str, values: list[float]) -> Candidates:
    return Candidates(group, np.array([values]), np.where(np.array([values]) < 0, 0, -1))


def batches(count: int, samples: int = 4) -> list[MicroBatch]:
    """Micro-batches whose only input is their number."""
    return [
        MicroBatch((torch.full((samples, 1), float(n)),), None, samples, n, n * samples, count)
        for n in range(count)
    ]


FEW = [batches(1)] * 5
"""The samples of every round."""


class Surface:
    """A loss as a function of every group's ε², the same on every sample unless ``noise`` says otherwise."""

    def __init__(self, gains: list[float], curvature: list[list[float]], noise: float = 0.0) -> None:
        self.gains, self.curvature, self.noise = np.array(gains), np.array(curvature), noise
        self.asked = 0

    def loss(self, steps: np.ndarray) -> float:
        u = steps**2
        return float(-self.gains @ u + u @ self.curvature @ u)

    def slopes(self, batch: MicroBatch, steps: np.ndarray) -> np.ndarray:
        """By ε."""
        self.asked += batch.samples
        sign = 1.0 if batch.number % 4 in (0, 3) else -1.0
        by_square = -self.gains * (1 + self.noise * sign) + 2 * self.curvature @ steps**2
        return by_square * 2 * steps

    def trials(self) -> SharedTrials:
        names = [f"group {n}" for n in range(len(self.gains))]
        return SharedTrials(names, self.gains, self.slopes, lambda values: values)


def test_every_group_is_measured_at_its_own_best_step() -> None:
    # Two groups whose loss has a quartic term: ½ Q ε² + K ε⁴ is least at ε² = −Q / 4K.
    surface = Surface([0.5, 4.0], [[0.1, 0.0], [0.0, 100.0]])
    candidates = [offered("group 0", [-0.75, -0.25]), offered("group 1", [-6.0, -2.0])]
    calibration = calibrate(candidates, surface.trials(), FEW, [batches(2)])
    assert calibration.step == pytest.approx({"group 0": math.sqrt(2.5), "group 1": math.sqrt(0.02)})
    robust, fragile = calibration.measured(candidates)
    # Without interactions a worth is what the group gains by itself: Q² / 16K.
    assert robust.worth == pytest.approx(1 / 1.6)
    assert fragile.worth == pytest.approx(64 / 1600)
    assert robust.worth > fragile.worth  # the prediction alone says the opposite
    assert calibration.lengths() == pytest.approx({"group 0": 1.0, "group 1": math.sqrt(0.02 / 2.5)})
    without = calibrate(candidates, surface.trials(), FEW, None)
    assert (without.step, without.decrease) == (calibration.step, {})


def test_worths_add_up_to_what_is_gained_together_and_halve_interactions() -> None:
    gains, curvature = [1.0, 2.0, 0.5], [[1.0, 0.3, 0.0], [0.3, 1.5, 0.4], [0.0, 0.4, 0.8]]
    surface = Surface(gains, curvature)
    steps = np.array([0.5, 0.7, 0.3])
    worth, error = surface.trials().worth([batches(2), batches(3)], steps)
    assert worth.sum() == pytest.approx(-surface.loss(steps), rel=1e-12)
    assert error == pytest.approx(0.0, abs=1e-9)
    alone = [-surface.loss(np.where(np.arange(3) == g, steps, 0.0)) for g in range(3)]
    shared = np.array(curvature) - np.diag(np.diag(curvature))
    u = steps**2
    # Half of the interaction 2 B_gh u_g u_h of every pair.
    assert worth == pytest.approx(np.array(alone) - u * (shared @ u), rel=1e-12)


def test_every_round_sees_its_own_samples() -> None:
    surface = Surface([0.5, 4.0], [[0.1, 0.0], [0.0, 100.0]])
    few = surface.trials().steps([batches(1), batches(2), batches(4)])
    assert surface.asked == 4 + 8 + 16
    assert few == pytest.approx(surface.trials().steps([batches(4)] * 3))  # all samples are alike


def test_no_round_raises_the_loss_where_groups_get_in_each_others_way() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        factor = np.abs(random.normal(size=(6, 6)))
        surface = Surface(list(np.abs(random.normal(size=6)) + 0.1), (factor @ factor.T).tolist())
        losses = [surface.loss(surface.trials().steps([batches(1)] * rounds)) for rounds in range(8)]
        assert (np.diff(losses) <= 1e-12).all()


def test_an_exploding_loss_takes_every_step_back() -> None:
    surface = Surface([1.0, 1.0], [[0.0, 0.0], [0.0, 0.0]])

    def slopes(batch: MicroBatch, steps: np.ndarray) -> np.ndarray:
        return np.full(2, math.nan) if steps.max() > 0.15 else surface.slopes(batch, steps)

    trials = SharedTrials(["a", "b"], surface.gains, slopes, lambda values: values)
    assert trials.steps(FEW[:1]) == pytest.approx(START / math.sqrt(REACH))
    worth, error = trials.worth([batches(2)], np.array([1.0, 1.0]))
    assert worth == pytest.approx(0.0)
    assert error == pytest.approx(0.0)


def test_trials_stop_once_groups_differ_by_more_than_noise() -> None:
    candidates = [offered(f"group {n}", [-1.0]) for n in range(2)]
    asked = {}
    for noise in (0.01, 0.6, 3.0):
        surface = Surface([1.0, 3.0], [[1.0, 0.0], [0.0, 1.0]], noise)
        calibration = calibrate(candidates, surface.trials(), [], [batches(8), batches(8)])
        asked[noise] = surface.asked
        assert all(error > 0 for error in calibration.error.values())
    # Two micro-batches of each set at least, and then one after the other.
    assert asked == {0.01: 16, 0.6: 24, 3.0: 64}


def test_a_group_that_lowers_nothing_comes_last() -> None:
    candidates = [offered(name, [-1.0, -2.0]) for name in ("group 0", "group 1")]
    candidates.append(offered("empty", [0.0, 0.0]))
    surface = Surface([0.1, 0.0], [[0.0, 0.0], [0.0, 0.2]])
    calibration = calibrate(candidates, surface.trials(), [], [batches(2)])
    assert calibration.step == {"group 0": START, "group 1": START, "empty": 0.0}
    worth = {c.group: c.worth for c in calibration.measured(candidates)}
    assert worth["group 0"] == pytest.approx(0.1 * START**2)
    # Still on offer, for a budget that nothing else can use.
    assert 0.0 < worth["group 1"] == worth["empty"] < 1e-6
    assert calibration.lengths()["empty"] == 1.0
    nothing = calibrate(candidates[2:], None, [], [batches(2)])
    assert nothing.lengths() == {}
    assert {c.worth for c in nothing.measured(candidates[2:])} == {1.0}


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
            step = calibration[split.group]["step"]
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
        line_search_samples=32, step_samples=32, ranking_samples=96, stability=1.0,
    )  # fmt: skip
    notes = plan.notes["analysis"]
    # What comes after the analysis set is held out, so that none of it is lost.
    assert (notes["samples"], notes["held_out"]) == (96, 48)
    measured = notes["calibration"]["0.weight"]

    def changes(step: float) -> torch.Tensor:
        with torch.no_grad():
            grown = grow(model, replace(plan, epsilon=step))
            return (grown(x) - target).square().sum(1) - (model(x) - target).square().sum(1)

    # The integral over ε² at Gauss's nodes: each half of a micro-batch is at one of them.
    parts = []
    for node in NODES:
        step, h = measured["step"] * math.sqrt(node), 1e-5
        parts.append(-measured["step"] * (changes(step + h) - changes(step - h)) / (4 * h * math.sqrt(node)))
    strata = []
    for begin, end, size in ((0, 48, 16), (96, 144, 8)):
        pieces = torch.stack([part[begin:end] for part in parts]).reshape(2, -1, size)
        strata += [pieces[0, :, : size // 2].mean(1), pieces[1, :, size // 2 :].mean(1)]
    decrease = sum(float(s.mean()) for s in strata) / 4
    assert measured["decrease"] == pytest.approx(decrease, rel=1e-6)
    sizes = (8, 8, 4, 4)
    squares = sum(n * float((s - s.mean()).square().sum()) for s, n in zip(strata, sizes, strict=True))
    variance = squares / sum(len(s) - 1 for s in strata)
    error = math.sqrt(variance * sum(1 / (n * len(s)) for s, n in zip(strata, sizes, strict=True))) / 4
    assert measured["standard_error"] == pytest.approx(error, rel=1e-5)
    # The nodes do the integral's work: the decrease is what the step itself realises.
    whole = changes(measured["step"])
    assert measured["decrease"] == pytest.approx(
        -float(whole[:48].mean() + whole[96:144].mean()) / 2, rel=0.25
    )
