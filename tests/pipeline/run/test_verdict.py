"""Who won, in words: by test accuracy beyond its standard error, and by validation where there is none."""

from __future__ import annotations

import pytest

from growpipe.checks.measure.accuracy import Accuracy, wilson_interval
from growpipe.run.verdict import verdict_words


def accuracy(value: float, samples: int = 500) -> Accuracy:
    return Accuracy(value, *wilson_interval(value, samples), samples)


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
    assert verdict_words(accuracy(grown), accuracy(rival), "grown") == words


def test_more_samples_tell_smaller_differences_apart() -> None:
    words = verdict_words(accuracy(0.970, 50_000), accuracy(0.966, 50_000), "rival")
    assert words == "growth wins here"


def test_validation_decides_where_accuracy_is_not_measured() -> None:
    assert verdict_words(None, None, "rival") == "plain training wins here"
    assert verdict_words(None, None, "grown") == "growth wins here"
