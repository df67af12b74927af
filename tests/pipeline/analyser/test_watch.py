"""What an analysis says it will take, and the bar that shows how far it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from growpipe.analyser import analyse, estimate, watch
from growpipe.analyser.analysis import analysis_of
from growpipe.analyser.estimate import Estimate
from growpipe.analyser.options import AnalysisOptions
from growpipe.analyser.spectra.spectra import AnalysisStage
from growpipe.analyser.watch import Pace, Prices, Watch


class Seen(Watch):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.done = 0.0
        self.expected: list[tuple[float, float]] = []
        self.corrected: list[float] = []

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def advance(self, work: float) -> None:
        self.done += work

    def expect(self, least: float, most: float, seconds: float) -> None:
        assert seconds > 0
        self.expected.append((least, most))

    def correct(self, most: float) -> None:
        self.corrected.append(most)


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
    least, most = seen.expected[-1]
    assert 0.5 * least < seen.done < 2.0 * most


def test_the_pace_of_a_coarse_set_is_not_that_of_the_analysis() -> None:
    model, batches = problem(2048)
    expected = []
    for micro_batch in (64, 128):  # batches of 128 samples have a coarse set
        seen = Seen()
        options = AnalysisOptions.of(
            None,
            None,
            None,
            {"max_samples": 1024, "stability": 1.0, "micro_batch": micro_batch, "solver": "lanczos"},
        )
        analysis = analysis_of(model, cross_entropy, batches, (batches[0][0][:2],), options, None, seen)
        expected.append(len(seen.expected))
        assert (analysis.report.stages[0].samples == 128) == (micro_batch == 128)
        # Once for every judged set that was not enough.
        assert len(seen.corrected) == len(analysis.report.stages) - 1 - (micro_batch == 128) > 0
        assert 0.3 * seen.corrected[-1] < seen.done < 2.0 * seen.corrected[-1]
    # A guess, then what was measured; and measured again behind the coarse set.
    assert expected == [2, 3]


def test_a_long_analysis_says_what_it_will_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = AnalysisOptions.of(None, None, None, {})
    told = Estimate.of(2048, 512, 128, options, rounds=4, seconds=0.05)
    half = Estimate.of(1024, 512, 128, options, rounds=4, seconds=0.05)
    steps = [round(work / 128) for work in (told.least, told.most)]
    minutes = [0.05 * work / 60 for work in (told.least, told.most)]
    assert told.sentence(2048) == (
        f"the analysis takes about {steps[0]:,} to {steps[1]:,} training steps of 128 samples, "
        f"{minutes[0]:.0f} to {minutes[1]:.0f} min, fewer the sooner the ranking of splits is stable; "
        f"max_samples=1024 saves up to about {1 - half.most / told.most:.0%}"
    )
    assert told.least < 0.6 * told.most
    assert half.most < 0.85 * told.most
    predicted = AnalysisOptions.of(None, None, None, {"ranking": "predicted", "epsilon": 0.1})
    spectra = Estimate.of(2048, 0, 128, predicted, rounds=4, seconds=0.05)
    assert (spectra.least, spectra.most) == (told.first, told.spectra)
    # A loader of small batches: the first set is an eighth.
    small = Estimate.of(2048, 0, 32, predicted, rounds=4, seconds=0.05)
    assert small.least < 0.6 * small.most
    # All samples are in the first set.
    few = Estimate.of(16, 0, 16, predicted, rounds=4, seconds=0.01)
    assert few.least == few.most
    assert f"about {round(few.most / 16)} training steps of 16 samples, " in few.sentence(16)
    model, batches = problem(64)
    analyse(model, cross_entropy, batches, (batches[0][0][:2],))
    assert "training steps" not in capsys.readouterr().err
    monkeypatch.setattr(estimate, "LONG", 0.0)
    analyse(model, cross_entropy, batches, (batches[0][0][:2],))
    assert "the analysis takes about" in capsys.readouterr().err


def test_a_further_set_takes_as_many_products_as_the_one_before(capsys: pytest.CaptureFixture[str]) -> None:
    told = Estimate.of(2048, 512, 32, AnalysisOptions.of(None, None, None, {}), rounds=4, seconds=0.01)
    prices = Prices(product=0.5, visit=1.0, again=0.25)

    def stage(passes: int, vectors: float) -> AnalysisStage:
        return AnalysisStage(256, 0, passes, vectors, 0.1, 0.0, 0.0)

    # Of 2,048 samples 192 are kept, as of 256.
    again = 1 - 192 / 2048
    assert told.further(stage(17, 12.0), 2048, prices) == 2048 * (6 * 0.5 + (1 + 16 * again) * 1.0)
    assert told.further(stage(2, 4.0), 2048, prices) == 2048 * (3 * 0.5 + (1 + 2 * again) * 1.0)
    told.announce_further(stage(17, 12.0), 2048, 5999.0)
    assert not capsys.readouterr().err
    told.announce_further(stage(17, 12.0), 2048, 32_000.0)
    assert capsys.readouterr().err == (
        "the ranking of splits is not stable on 256 samples; 2,048 take up to about 1,000 training steps of "
        "32 samples, 5 min\n"
    )


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(watch.time, "perf_counter", lambda: self.now)

    def passes(
        self, pace: Pace, prices: Prices, visited: list[list[bool]], share: float, advance: float
    ) -> None:
        """Passes over micro-batches of 100 samples at these prices; one sample of a training step is 0.01 s.

        Args:
            pace: is told.
            prices: of product and visit.
            visited: by pass and micro-batch whether it is visited.
            share: of the products.
            advance: the seconds between two passes.
        """
        for number, batches in enumerate(visited, 1):
            for one in batches:
                self.now += 0.01 * prices.of(100, share, one)
                pace.done(number, 100, share, one)
                pace.done(number, 100, 0.0, False)  # groups with S = 0 cost nothing and are no measure
            self.now += advance


@pytest.mark.parametrize("share", [1.0, 0.2])
@pytest.mark.parametrize(
    ("second", "again"), [([False] * 4, 0.0), ([False, False, True, True], 0.5), ([False, True] * 2, 0.5)]
)
def test_the_pace_tells_products_from_visits(
    monkeypatch: pytest.MonkeyPatch, share: float, second: list[bool], again: float
) -> None:
    clock, found = Clock(monkeypatch), []
    pace = Pace(0.01, lambda prices, metric: found.append((prices, metric)))
    clock.now += 3.0
    true = Prices(0.5, 0.9)
    # The interval of a pass is one micro-batch late, which must not matter much.
    clock.passes(pace, true, [[True] * 4, second, second, second], share, 0.0)
    ((prices, metric),) = found
    assert prices.again == again
    spent = sum(true.of(100, share, one) for one in [True] * 4 + second)
    told = sum(prices.of(100, share, one) for one in [True] * 4 + second)
    assert told == pytest.approx(spent, rel=0.25)
    assert metric == pytest.approx(300.0, abs=0.3 * true.of(100, share, True) + 1e-6)


def test_the_pace_of_passes_that_visit_alike_splits_by_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, found = Clock(monkeypatch), []
    pace = Pace(0.01, lambda prices, metric: found.append((prices, metric)))
    guess = Prices()
    true = Prices(2 * guess.product, 2 * guess.visit)
    clock.passes(pace, true, [[True] * 3] * 4, 1.0, 0.0)
    ((prices, metric),) = found
    assert (prices.product, prices.visit, prices.again) == pytest.approx((true.product, true.visit, 1.0))
    assert metric == pytest.approx(0.0, abs=1e-6)


def test_what_goes_on_between_passes_is_part_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, found = Clock(monkeypatch), []
    pace = Pace(0.01, lambda prices, metric: found.append((prices, metric)))
    clock.passes(pace, Prices(0.5, 0.0), [[False] * 4] * 3, 1.0, 2.0)
    ((prices, _),) = found
    # 400 samples took 2 s and then 2 s more.
    assert prices.product == pytest.approx(1.0)


def test_a_restarted_pace_forgets_what_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, found = Clock(monkeypatch), []
    pace = Pace(0.01, lambda prices, metric: found.append((prices, metric)))
    clock.passes(pace, Prices(7.0, 0.0), [[False] * 2] * 4, 1.0, 0.0)
    clock.now += 5.0  # the metric of the next set
    pace.restart()
    clock.passes(pace, Prices(0.5, 0.0), [[False] * 4] * 3, 1.0, 0.0)
    dear, (prices, metric) = found
    assert dear[0].product == pytest.approx(7.0)
    assert prices.product == pytest.approx(0.5)
    assert metric == pytest.approx(500.0)


def test_dear_products_and_a_dear_metric_make_a_dear_analysis() -> None:
    options = AnalysisOptions.of(None, None, None, {})
    cheap = Estimate.of(
        2048, 256, 128, options, rounds=10, seconds=0.05, prices=Prices(0.5, 0.4), metric=10.0
    )
    dear = Estimate.of(2048, 256, 128, options, 10, 0.05, Prices(1.0, 0.8), metric=20.0)
    assert (dear.first, dear.spectra, dear.trials) == pytest.approx(
        (2 * cheap.first, 2 * cheap.spectra, 2 * cheap.trials)
    )
    assert dear.line_search == cheap.line_search
    forgetful = Estimate.of(2048, 256, 128, options, 10, 0.05, Prices(0.5, 0.4, again=1.0), 10.0)
    assert forgetful.spectra > cheap.spectra
