"""When growth is due: at steps, after epochs, on a plateau, up to a number of times."""

from __future__ import annotations

import math
from typing import Any

import pytest

from growpipe.callbacks import Plateau, When
from growpipe.callbacks.schedule import Cues
from growpipe.graph_ops.errors import UsageError


def due_at(cues: Cues, values: list[float]) -> list[int]:
    """The places of the values after which growth is due; the network grows at once."""
    places = []
    for place, value in enumerate(values):
        cues.value(value)
        if cues.due:
            places.append(place)
            cues.grown()
    return places


def test_a_plateau_is_patience_values_that_do_not_improve() -> None:
    falling = [5.0, 4.0, 4.0, 3.95, 3.0, 3.5, math.nan, 3.0, 3.0, 3.0]
    assert due_at(Cues(When(plateau=Plateau("loss", 2, 0.1))), falling) == [3, 6, 9]
    assert due_at(Cues(When(plateau=Plateau("loss", 2, 0.1), most=1)), falling) == [3]
    rising = [-value for value in falling]
    assert due_at(Cues(When(plateau=Plateau("loss", 2, 0.1, "max"))), rising) == [3, 6, 9]
    assert due_at(Cues(When(plateau=Plateau("loss", 1))), [3.0, 2.0, 1.0]) == []


def test_steps_and_epochs_are_due_once_and_the_state_can_be_taken_along() -> None:
    cues = Cues(When(steps=(20, 10), epochs=range(2, 4)))
    assert cues.when == When(steps=(10, 20), epochs=(2, 3))
    assert [cues.step(n) or cues.due for n in (1, 9, 10)] == [False, False, True]
    other = Cues(cues.when)
    other.restore(cues.state())
    assert other.due
    other.grown()
    assert not other.due
    other.epoch(2)
    assert other.due
    other.end()
    other.epoch(3)
    assert not other.due


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing says when to grow; give steps, epochs or a plateau"),
        ({"steps": (0,)}, r"steps are positive integers, e\.g\. steps=\(2, 4\), not \(0,\)"),
        ({"epochs": 3}, r"epochs are positive integers, e\.g\. epochs=\(2, 4\), not 3"),
        ({"steps": (1,), "most": 0}, "the largest number of growths is 0; give a positive number"),
    ],
)
def test_what_makes_no_sense_is_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        When(**given)


def test_a_plateau_that_makes_no_sense_is_one_line() -> None:
    with pytest.raises(UsageError, match="a plateau of 'loss' needs patience >= 1 and min_delta >= 0, not 0"):
        Plateau("loss", patience=0)
    with pytest.raises(UsageError, match="the mode of a plateau is 'min' or 'max', not 'least'"):
        Plateau("loss", mode="least")  # type: ignore[arg-type]
