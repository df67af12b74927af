"""The line search: few steps to the least loss, on losses whose least is known."""

from __future__ import annotations

import math

import pytest

from growpipe.analyser.choice.line_search import (
    FARTHEST,
    NEAR,
    PER_OCTAVE,
    LineSearch,
    following,
    line_search,
    on_grid,
)
from growpipe.graph_ops.errors import UsageError


def quartic(best: float, gain: float = 1.0):
    """The loss −2 gain (ε/best)² + gain (ε/best)⁴, least at ``best``, by how often it was asked."""

    def change(epsilon: float) -> float:
        square = (epsilon / best) ** 2
        return gain * (square**2 - 2 * square)

    return change


def powers_from(found: LineSearch, best: float) -> float:
    return abs(PER_OCTAVE * math.log2(found.best.epsilon / best))


@pytest.mark.parametrize("best", [0.2, 0.31, 0.4, 0.47, 0.56])
def test_the_least_of_a_quartic_is_found_in_four_steps(best: float) -> None:
    found = line_search(quartic(best), start=0.4)
    assert found.lowered
    assert len(found.trials) <= 4
    # The steps are whole powers apart, and those next to one that was tried are not.
    assert powers_from(found, best) <= NEAR - 0.5
    assert found.best.change < -0.98


@pytest.mark.parametrize("best", [0.003, 0.07, 0.5, 1.5, 20.0])
@pytest.mark.parametrize("start", [0.02, 0.4, 6.4])
def test_a_bad_start_takes_some_more_steps(best: float, start: float) -> None:
    found = line_search(quartic(best), start=start)
    octaves = abs(math.log2(best / start))
    assert powers_from(found, best) <= NEAR - 0.5 or len(found.trials) == 8
    assert len(found.trials) <= 4 + octaves / 2


def test_a_good_start_takes_two_steps() -> None:
    found = line_search(quartic(0.5), start=0.5)
    assert [trial.epsilon for trial in found.trials] == [0.5, on_grid(-PER_OCTAVE - PER_OCTAVE // 2)]
    assert found.best.epsilon == 0.5


def test_steps_are_whole_powers_apart_wherever_the_search_begins() -> None:
    for start in (0.37, 0.371, 0.3711):
        found = line_search(quartic(0.47, 0.03), start=start)
        for trial in found.trials:
            power = PER_OCTAVE * math.log2(trial.epsilon)
            assert power == pytest.approx(round(power), abs=1e-9)
    exact = line_search(quartic(0.47), start=0.37)
    rounded = line_search(lambda e: quartic(0.47)(e) * (1 + 1e-6 * math.sin(1e6 * e)), start=0.37)
    assert [t.epsilon for t in rounded.trials] == [t.epsilon for t in exact.trials]


@pytest.mark.parametrize("wall", [0.02, 0.13, 0.3])
@pytest.mark.parametrize("beyond", [math.inf, math.nan, 1e6])
def test_the_search_comes_down_from_an_explosion(wall: float, beyond: float) -> None:
    found = line_search(lambda e: -e if e < wall else beyond, start=3.2)
    assert found.lowered
    assert max(trial.epsilon for trial in found.trials) == pytest.approx(3.2, rel=0.03)
    assert wall / 2 < found.best.epsilon < wall
    assert len(found.trials) <= 12


def test_the_search_gets_over_a_smaller_step_that_explodes() -> None:
    start = on_grid(-16)
    second = on_grid(-24)
    found = line_search(lambda e: math.nan if e == second else quartic(0.6)(e), start=start)
    assert math.isfinite(found.best.change)
    assert found.best.change < -0.9


def test_without_a_way_down_the_smallest_step_is_kept() -> None:
    found = line_search(lambda e: e**2 if e < 0.3 else math.nan, start=0.8)
    assert not found.lowered
    assert found.best.epsilon == min(trial.epsilon for trial in found.trials)
    assert 1e-4 <= found.best.epsilon < 1e-2
    assert len(found.trials) <= 6
    flat = line_search(lambda e: 0.0)
    assert not flat.lowered


def test_a_loss_that_only_falls_is_followed_as_far_as_there_are_steps() -> None:
    found = line_search(lambda e: -(e**3), start=0.4, most=5)
    assert len(found.trials) == 5
    # Two steps, and three that go as far beyond the largest one as is allowed without a vertex.
    assert found.best.epsilon == pytest.approx(0.4 * on_grid(3 * FARTHEST), rel=0.03)


@pytest.mark.parametrize("start", [0.1, 0.12, 0.22])
def test_a_loss_that_flattens_before_it_rises_takes_few_steps(start: float) -> None:
    # Vertices are below the least, -1.032 at 0.38: what is left there is a seventh at most.
    found = line_search(lambda e: -1 + math.exp(-((e / 0.15) ** 2)) - 0.1 * e + (e / 0.6) ** 12, start=start)
    assert found.best.change < -1.032 * 6 / 7
    assert len(found.trials) <= 4


def test_the_prediction_is_not_asked_so_that_it_may_be_wrong() -> None:
    # A sixth power stands for all that a parabola in ε² leaves out.
    found = line_search(lambda e: -(e**2) + (e / 0.3) ** 6 / 30, start=0.4)
    least = (0.3**6 * 10) ** 0.25
    assert found.best.epsilon == pytest.approx(least, rel=0.1)
    assert len(found.trials) <= 4


def test_a_loss_that_is_not_finite_counts_as_infinitely_bad() -> None:
    found = line_search(lambda e: -e if e < 0.3 else math.nan, start=0.4)
    assert found.trials[0].change == math.inf
    assert found.lowered
    assert found.best.epsilon < 0.3


def test_what_was_tried_is_not_tried_again() -> None:
    # The vertex is at the power 0, where the loss exploded.
    square = quartic(1.0)
    tried = {-8: square(on_grid(-8)), 0: math.inf, 8: square(on_grid(8)) - 0.5}
    assert following(tried) not in tried


def test_a_search_begins_at_a_positive_step() -> None:
    with pytest.raises(UsageError, match="positive"):
        line_search(quartic(1.0), start=0.0)
