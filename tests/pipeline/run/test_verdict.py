"""Who won, in words: by the test score beyond its standard error, in the direction of the metric."""

from __future__ import annotations

import math

import pytest

from growpipe.quality import METRICS, Score
from growpipe.run.verdict import verdict_words


def accuracy(value: float, samples: int = 500) -> Score:
    error = math.sqrt(value * (1 - value) / samples)
    return Score(value, value - error, value + error, error, samples, METRICS["accuracy"])


def error_of(value: float, standard_error: float | None, metric: str = "rmse") -> Score:
    return Score(value, None, None, standard_error, 100, METRICS[metric])


@pytest.mark.parametrize(
    ("grown", "rival", "words"),
    [
        (0.956, 0.980, "plain training wins here"),
        (0.980, 0.956, "growth wins here"),
        (0.970, 0.966, "no difference beyond the standard error of 1.1 points"),
        (0.970, 0.970, "no difference beyond the standard error of 1.1 points"),
    ],
)
def test_a_difference_counts_beyond_its_standard_error(grown: float, rival: float, words: str) -> None:
    assert verdict_words(accuracy(grown), accuracy(rival)) == words


def test_more_samples_tell_smaller_differences_apart() -> None:
    assert verdict_words(accuracy(0.970, 50_000), accuracy(0.966, 50_000)) == "growth wins here"


@pytest.mark.parametrize(
    ("grown", "rival", "words"),
    [
        (error_of(0.2, 0.01), error_of(0.3, 0.01), "growth wins here"),
        (error_of(0.3, 0.01), error_of(0.2, 0.01), "plain training wins here"),
        (error_of(0.30, 0.03), error_of(0.32, 0.04), "no difference beyond the standard error of 0.05"),
        (error_of(0.30, None), error_of(0.31, None), "growth wins here"),
        (error_of(0.30, None), error_of(0.30, None), "no difference"),
        (error_of(0.30, None, "r2"), error_of(0.31, None, "r2"), "plain training wins here"),
    ],
)
def test_an_error_is_better_if_it_is_lower(grown: Score, rival: Score, words: str) -> None:
    assert verdict_words(grown, rival) == words
