"""What an analysis says it will take, and the bar that shows how far it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from growpipe.analyser import analyse, watch
from growpipe.analyser.analysis import analysis_of
from growpipe.analyser.options import AnalysisOptions
from growpipe.analyser.watch import Estimate, Watch


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
