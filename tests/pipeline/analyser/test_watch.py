"""What an analysis says it will take, and the bar that shows how far it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from growpipe.analyser import analyse, watch
from growpipe.analyser.analysis import analysis_of
from growpipe.analyser.options import AnalysisOptions
from growpipe.analyser.watch import Estimate, Pace, Watch


class Seen(Watch):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.done = self.expected = 0.0

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def advance(self, work: float) -> None:
        self.done += work

    def expect(self, work: float) -> None:
        self.expected = work


def problem(samples: int) -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    return model, [(torch.randn(samples, 6), torch.randint(0, 3, (samples,)))]


def test_an_analysis_tells_its_phases_and_about_how_much_it_does() -> None:
    model, batches = problem(512)
    seen = Seen()
    options = AnalysisOptions.of(None, None, None, {"max_samples": 256, "stability": 1.0, "micro_batch": 16})
    analysis = analysis_of(model, cross_entropy, batches, (batches[0][0][:2],), options, None, seen)
    assert seen.phases == ["export", "spectra", "trials", "line search", "plan"]
    assert analysis.report.samples == 256
    assert 0.3 < seen.done / seen.expected < 3.0


def test_a_long_analysis_says_what_it_will_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = AnalysisOptions.of(None, None, None, {})
    estimate = Estimate.of(2048, 512, options, rounds=4, seconds=0.05)
    half = Estimate.of(1024, 512, options, rounds=4, seconds=0.05)
    steps = round(estimate.work / 128)
    assert estimate.sentence(2048) == (
        f"the analysis takes up to about {steps:,} training steps of 128 samples, "
        f"{0.05 * estimate.work / 60:.0f} min; max_samples=1024 saves about "
        f"{1 - half.work / estimate.work:.0%}"
    )
    assert half.work < 0.85 * estimate.work
    predicted = AnalysisOptions.of(None, None, None, {"ranking": "predicted", "epsilon": 0.1})
    assert Estimate.of(2048, 0, predicted, rounds=4, seconds=0.05).work == estimate.spectra
    model, batches = problem(64)
    analyse(model, cross_entropy, batches, (batches[0][0][:2],))
    assert "training steps" not in capsys.readouterr().err
    monkeypatch.setattr(watch, "LONG", 0.0)
    analyse(model, cross_entropy, batches, (batches[0][0][:2],))
    assert "the analysis takes up to about" in capsys.readouterr().err


def test_the_pace_of_an_analysis_is_that_of_its_second_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 5.0, 7.0])
    monkeypatch.setattr(watch.time, "perf_counter", lambda: next(times))
    found: list[tuple[float, float]] = []
    pace = Pace(0.01, lambda product, metric: found.append((product, metric)))
    for samples in (100, 0, 100, 50, 0, 50):  # groups with S = 0 cost nothing and are no measure
        pace.done(samples)
    # Two seconds for a hundred samples of 0.01 s; three of the first five seconds went before the products.
    assert found == [(pytest.approx(2.0), pytest.approx(300.0))]


def test_dear_products_and_a_dear_metric_make_a_dear_analysis() -> None:
    options = AnalysisOptions.of(None, None, None, {})
    cheap = Estimate.of(2048, 256, options, rounds=10, seconds=0.05, product=0.5, metric=10.0)
    dear = Estimate.of(2048, 256, options, rounds=10, seconds=0.05, product=1.0, metric=20.0)
    assert (dear.spectra, dear.trials) == pytest.approx((2 * cheap.spectra, 2 * cheap.trials))
    assert dear.line_search == cheap.line_search
