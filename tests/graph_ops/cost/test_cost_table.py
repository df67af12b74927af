"""Cost tables: what adds up, what is interpolated, what is refused."""

from __future__ import annotations

import pytest

from growpipe.graph_ops.cost.cost_table import CostTable, CurveTerm, RateTerm
from growpipe.graph_ops.errors import UsageError

TABLE = CostTable(
    (RateTerm(("a",), 0.5), RateTerm(("a", "b"), 0.01), CurveTerm("c", (4, 8, 16), (1.0, 3.0, 4.0))),
    base=2.0,
    unit="mJ",
)


def test_terms_add_up() -> None:
    assert TABLE.of({"a": 10, "b": 20, "c": 8}) == pytest.approx(2.0 + 5.0 + 2.0 + 3.0)
    assert TABLE.tried({"a": 10, "b": 20, "c": 8}) == TABLE.of({"a": 10, "b": 20, "c": 8})
    assert TABLE.groups == ("a", "b", "c")


def test_a_layer_between_two_groups_becomes_dearer_by_either() -> None:
    def step(a: int, b: int) -> float:
        return TABLE.of({"a": a + 1, "b": b, "c": 4}) - TABLE.of({"a": a, "b": b, "c": 4})

    assert step(4, 10) == pytest.approx(0.5 + 0.1)
    assert step(4, 100) == pytest.approx(0.5 + 1.0)


@pytest.mark.parametrize(
    ("width", "cost"), [(4, 1.0), (6, 2.0), (8, 3.0), (12, 3.5), (16, 4.0), (24, 5.0), (2, 0.0)]
)
def test_a_curve_is_straight_between_its_points_and_beyond_them(width: int, cost: float) -> None:
    assert CurveTerm("c", (4, 8, 16), (1.0, 3.0, 4.0)).of({"c": width}) == pytest.approx(cost)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: RateTerm((), 1.0), "names no group"),
        (lambda: RateTerm(("a",), -1.0), "must not be negative"),
        (lambda: RateTerm(("a",), float("nan")), "must not be negative"),
        (lambda: CurveTerm("a", (4, 8), (1.0,)), "2 widths and 1 costs"),
        (lambda: CurveTerm("a", (4,), (1.0,)), "at least two"),
        (lambda: CurveTerm("a", (8, 4), (1.0, 2.0)), "must ascend"),
        (lambda: CurveTerm("a", (4, 4), (1.0, 2.0)), "must ascend"),
        (lambda: CurveTerm("a", (4, 8), (1.0, -2.0)), "must not be negative"),
        (lambda: CostTable(()), "no terms"),
        (lambda: CostTable((RateTerm(("a",), 1.0),), base=-1.0), "base"),
        (lambda: TABLE.check_groups(["a", "b"]), "names a channel group 'c'"),
        (lambda: TABLE.of({"a": 1, "b": 1}), "names a channel group 'c'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(make, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        make()
