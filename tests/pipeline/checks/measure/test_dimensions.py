"""Sizes of symbolic dimensions whose names are computations."""

from __future__ import annotations

import pytest

from growpipe.checks.measure.dimensions import computed_from, size_of

SIZES = {"a": 7, "b": 3, "past_sequence_length": 5, "sequence_length": 2, "s0": 9}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("a + b", 10),
        ("a - b", 4),
        ("b - a", 0),
        ("2*a", 14),
        ("floor(a/2)", 3),
        ("ceil(a/2)", 4),
        ("a//2 + 1", 4),
        ("max(a, b)", 7),
        ("floor(s0/2 - 1/2) + 1", 5),
        ("total_sequence_length", 7),
        ("a/(b - 3)", 0),
    ],
)
def test_a_name_that_is_a_computation(name: str, size: int) -> None:
    assert computed_from(name, SIZES)
    assert size_of(name, SIZES) == size


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "batch-size",
        "input.0",
        "x[0]",
        "a.b",
        "a + c",
        "f(a)",
        "a ** b",
        "__import__('os')",
        "3",
        "a +",
        "1 + 2",
        "a if b else a",
        "(" * 500 + "a" + ")" * 500,
        "lambda: a",
    ],
)
def test_every_other_name_has_a_size_of_its_own(name: str) -> None:
    assert computed_from(name, SIZES) == frozenset()
