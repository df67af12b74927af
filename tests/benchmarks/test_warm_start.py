"""The arithmetic of the warm-start table."""

from __future__ import annotations

import math

import pytest

from benchmarks.growth.warm_start_report import Outcome, against_others, macs_to_reach, relative_cost, table


def outcome(entry: str, seed: int, epochs: int, accuracy: float, parent: float = 0.0) -> Outcome:
    return Outcome(entry, seed, epochs, accuracy, 100, 10.0 * epochs, parent, 1.0)


def test_the_cost_of_an_accuracy_lies_between_the_lengths_that_were_trained() -> None:
    curve = [(10.0, 0.5), (20.0, 0.6), (40.0, 0.8)]
    assert macs_to_reach(curve, 0.4) == 10.0
    assert macs_to_reach(curve, 0.6) == pytest.approx(20.0)
    assert macs_to_reach(curve, 0.7) == pytest.approx(math.sqrt(20.0 * 40.0))
    assert macs_to_reach(curve, 0.9) == math.inf


def test_a_warm_start_is_charged_without_and_with_its_parent() -> None:
    scratch = {epochs: [outcome("scratch", s, epochs, epochs / 100) for s in (0, 1)] for epochs in (10, 40)}
    grown = {10: [outcome("g", s, 10, 0.40, parent=60.0) for s in (0, 1)]}
    assert relative_cost(grown, scratch, parent=False) == (pytest.approx(0.25), pytest.approx(0.0))
    assert relative_cost(grown, scratch, parent=True)[0] == pytest.approx((100 + 60) / 400)
    short = {10: [outcome("h", 0, 10, 0.39)]}
    assert relative_cost(short, scratch, parent=False)[0] == math.inf
    lines = table({"scratch": scratch, "g": grown, "h": short})
    assert lines[2].startswith("| scratch | 2 | 10.00 ± 0.00 | 40.00 ± 0.00 | 100 ± 0 % | 100 ± 0 % | - |")
    assert lines[3].startswith("| g | 2 | 40.00 ± 0.00 | - | 25 ± 0 % | 40 ± 0 % |")
    assert "not reached" in lines[4]


def test_all_are_compared_with_one_entry_by_seed_at_the_longest_length() -> None:
    own = {40: [outcome("own", s, 40, 0.8 + 0.01 * s, parent=100.0) for s in (0, 1)], 10: []}
    other = {40: [outcome("other", s, 40, 0.7 + 0.02 * s) for s in (0, 1)]}
    short = {10: [outcome("short", 0, 10, 0.9)]}
    lines = against_others({"own": own, "other": other, "short": short}, "own")
    assert lines[2:] == [
        "| own | 80.50 ± 0.50 | - | 500 |",
        "| other | 71.00 ± 1.00 | +9.50 ± 0.50 | 400 |",
    ]
