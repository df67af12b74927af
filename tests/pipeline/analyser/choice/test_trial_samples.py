"""Which samples plans are tried on, and by how many each round of steps is found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from growpipe.analyser import analyse, analysis
from growpipe.analyser.choice.orientation import SHARE
from growpipe.analyser.choice.shared_trials import ROUNDS
from growpipe.torch_module.grow_module import grow


def mean_square(output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return (output - wanted).square().sum(1).mean()


@pytest.fixture
def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, torch.randn(160, 6, dtype=torch.float64), torch.randn(160, 2, dtype=torch.float64)


OPTIONS = {"growth": 0.5, "max_samples": 96, "micro_batch": 16, "step_samples": 32, "ranking_samples": 96,
           "stability": 1.0}  # fmt: skip


@pytest.mark.parametrize("searched", [24, 48, 64])
def test_a_step_is_tried_on_the_first_unseen_samples(problem, searched: int) -> None:
    model, x, target = problem
    plan = analyse(model, mean_square, [(x, target)], (x[:2],), line_search_samples=searched, **OPTIONS)
    notes = plan.notes["analysis"]
    held_out = max(48, searched)
    assert (notes["samples"], notes["held_out"]) == (96, held_out)

    def change(step: float, count: int) -> float:
        some = slice(96, 96 + count)
        with torch.no_grad():
            grown = grow(model, replace(plan, epsilon=step))
            return float(
                mean_square(grown(x[some]), target[some]) - mean_square(model(x[some]), target[some])
            )

    best = min(notes["line_search"]["trials"], key=lambda trial: trial[1])
    assert best[0] == plan.epsilon
    assert best[1] == pytest.approx(change(plan.epsilon, searched), rel=1e-9)
    # What the search did not see of the unseen samples judges the plan as well.
    assert plan.realised_change == pytest.approx(change(plan.epsilon, held_out), rel=1e-9)


def test_without_a_hold_out_a_step_is_tried_on_the_first_samples(problem) -> None:
    model, x, target = problem
    plan = analyse(
        model,
        mean_square,
        [(x[:96], target[:96])],
        (x[:2],),
        hold_out=False,
        line_search_samples=40,
        **OPTIONS,
    )
    least = min(plan.notes["analysis"]["line_search"]["trials"], key=lambda trial: trial[1])
    with torch.no_grad():
        grown = grow(model, plan)
        few, all_of_them = (
            float(mean_square(grown(x[:n]), target[:n]) - mean_square(model(x[:n]), target[:n]))
            for n in (40, 96)
        )
    assert least[1] == pytest.approx(few, rel=1e-9)
    assert plan.realised_change == pytest.approx(all_of_them, rel=1e-9)


def test_a_search_that_tried_all_that_judges_a_plan_is_not_repeated(problem, monkeypatch) -> None:
    model, x, target = problem
    passes: dict[int, int] = {}
    for searched in (24, 48):
        phases: list[str] = []
        asked: list[str] = []
        seen = analysis.Watch()
        monkeypatch.setattr(seen, "phase", phases.append)
        monkeypatch.setattr(
            seen, "advance", lambda work, asked=asked, phases=phases: asked.append(phases[-1])
        )
        options = analysis.AnalysisOptions.of(
            None,
            None,
            None,
            {"line_search_samples": searched, **{k: v for k, v in OPTIONS.items() if k != "growth"}},
        )
        analysis.analysis_of(model, mean_square, [(x, target)], (x[:2],), options, None, seen)
        passes[searched] = asked.count("plan")
    assert passes[48] == 0 < passes[24]


def test_rounds_see_growing_shares_of_the_samples_and_signs_fewer_still(problem, monkeypatch) -> None:
    model, x, target = problem
    kept = {}
    original = analysis.calibrate

    def calibrate(candidates, trials, rounds, sets):
        kept["rounds"] = rounds
        return original(candidates, trials, rounds, sets)

    def proposals(*arguments):
        kept["proposals"] = made(*arguments)
        return kept["proposals"]

    made = analysis._proposals
    monkeypatch.setattr(analysis, "calibrate", calibrate)
    monkeypatch.setattr(analysis, "_proposals", proposals)
    analyse(model, mean_square, [(x, target)], (x[:2],), line_search_samples=48, **OPTIONS)
    counts = [sum(batch.samples for batch in batches) for batches in kept["rounds"]]
    assert counts == [round(32 * share) for share in ROUNDS]
    assert counts == sorted(counts)
    signs = kept["proposals"].sign_data
    assert sum(batch.samples for batch in signs) == 32 * SHARE
    # Half of them unseen, and the smaller sets a part of the larger.
    for batches in (*kept["rounds"], signs):
        inputs = torch.cat([batch.inputs[0] for batch in batches])
        half = len(inputs) // 2
        torch.testing.assert_close(inputs, torch.cat([x[96 : 96 + half], x[:half]]), rtol=0, atol=0)
