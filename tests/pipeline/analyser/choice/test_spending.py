"""Budgets of any cost: tables are kept exactly, measured costs by trial, however wrong the estimate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growpipe.analyser.choice.spending import ATTEMPTS, Spending, spend
from growpipe.budgets.budget import GrowthBudget
from growpipe.graph_ops.cost.cost_table import CostTable, CurveTerm, RateTerm
from growpipe.graph_ops.errors import NothingToSplit, UsageError
from tests.helpers.two_layers import COST, candidates, limits

OWN = {"a": 4, "b": 6, "frozen": 5}


@dataclass
class Measured:
    """A cost that is known where it was tried, and an estimate of it."""

    estimate: Callable[[Mapping[str, int]], float]
    truth: Callable[[Mapping[str, int]], float]
    unit: str = "ms"
    resolution: float = 0.02
    trials: list[dict[str, int]] = field(default_factory=list)

    def of(self, widths: Mapping[str, int]) -> float:
        return self.estimate(widths)

    def tried(self, widths: Mapping[str, int]) -> float:
        self.trials.append(dict(widths))
        return self.truth(widths)


def spent_on(budget: GrowthBudget, **options) -> Spending:
    bounds = limits(growth=None, budget=budget, max_factor=8.0, **options)
    return spend(candidates(), COST, bounds, 10, OWN)


def widths_of(spending: Spending) -> dict[str, int]:
    return {**OWN, **spending.selection.widths}


@settings(max_examples=50, deadline=None)
@given(
    rates=st.tuples(*[st.floats(0.001, 10)] * 3),
    room=st.floats(1.02, 6),
    balance=st.floats(0, 1),
)
def test_a_table_is_kept_and_used_up(rates: tuple[float, ...], room: float, balance: float) -> None:
    terms = [RateTerm(("a",), rates[0]), RateTerm(("b",), rates[1]), RateTerm(("a", "b"), rates[2])]
    table = CostTable(terms, base=1.0)
    limit = room * table.of(OWN)
    spending = spent_on(GrowthBudget(cost=table, limit=limit), balance=balance)
    widths = widths_of(spending)
    assert spending.cost == table.of(widths) <= limit
    fits = [table.of({**widths, g: widths[g] + 1}) <= limit for g in ("a", "b")]
    assert spending.spent == (not any(fits))


def test_the_table_says_where_growth_is_cheap() -> None:
    def grown(dear: str, cheap: str) -> dict[str, int]:
        table = CostTable([RateTerm((dear,), 50.0), RateTerm((cheap,), 1.0)])
        return widths_of(spent_on(GrowthBudget(cost=table, limit=2.0 * table.of(OWN))))

    assert grown("a", "b")["b"] > grown("b", "a")["b"]
    assert grown("b", "a")["a"] > grown("a", "b")["a"]


def test_a_table_may_know_of_groups_that_do_not_grow() -> None:
    table = CostTable([RateTerm(("a", "frozen"), 1.0), CurveTerm("b", (6, 12), (1.0, 2.0))])
    widths = widths_of(spent_on(GrowthBudget(cost=table, limit=40.0)))
    assert table.of(widths) <= 40.0
    assert widths["frozen"] == 5
    with pytest.raises(UsageError, match="'other'"):
        spent_on(GrowthBudget(cost=CostTable([RateTerm(("other",), 1.0)]), limit=1.0))


def test_what_costs_nothing_grows_as_far_as_it_may() -> None:
    free = CostTable([RateTerm(("a",), 0.0)])
    spending = spent_on(GrowthBudget(cost=free, limit=1.0))
    assert spending.selection.widths["a"] > 12
    assert spending.selection.widths["b"] > 18
    assert not spending.spent


def test_both_the_table_and_the_macs_hold() -> None:
    table = CostTable([RateTerm(("a",), 1.0), RateTerm(("b",), 1.0)])
    loose = widths_of(spent_on(GrowthBudget(cost=table, limit=30.0)))
    bounded = widths_of(spent_on(GrowthBudget(macs=1000, cost=table, limit=30.0)))
    assert COST.macs(bounded) <= 1000 < COST.macs(loose)


def line(widths: Mapping[str, int]) -> float:
    return 1.0 + 0.1 * widths["a"] + 0.05 * widths["b"]


@pytest.mark.parametrize("wrong", [0.2, 0.5, 1.0, 2.0, 5.0])
def test_a_measured_limit_is_kept_and_reached_however_wrong_the_estimate(wrong: float) -> None:
    start = line(OWN)
    cost = Measured(lambda w: start + wrong * (line(w) - start), line)
    spending = spent_on(GrowthBudget(cost=cost, limit=2.0))
    known = spent_on(GrowthBudget(cost=Measured(line, line, resolution=0.0), limit=2.0))
    assert spending.cost == line(widths_of(spending)) <= 2.0
    assert spending.cost > 0.97 * line(widths_of(known))
    assert spending.spent
    assert len(cost.trials) <= ATTEMPTS + 1


def test_steps_of_the_machine_are_respected() -> None:
    def steps(widths: Mapping[str, int]) -> float:
        return 1.0 + sum(math.ceil(widths[g] / 8) for g in ("a", "b"))

    cost = Measured(line, steps)
    spending = spent_on(GrowthBudget(cost=cost, limit=4.5))
    assert steps(widths_of(spending)) == 4.0
    assert spending.spent


def test_what_bounds_growth_otherwise_leaves_a_measured_budget_unspent() -> None:
    cost = Measured(line, line)
    bounds = limits(growth=0.2, budget=GrowthBudget(cost=cost, limit=100.0))
    spending = spend(candidates(), COST, bounds, 10, OWN)
    assert sum(spending.selection.widths.values()) - 10 <= 2
    assert not spending.spent
    assert len(cost.trials) == 2


def test_other_bounds_of_a_measured_budget_can_be_spent_too() -> None:
    spending = spent_on(GrowthBudget(macs=749, cost=Measured(line, line), limit=100.0))
    macs = COST.macs(spending.selection.widths)
    assert macs <= 749 < macs + COST.macs({"b": 7}) - COST.macs({})
    assert spending.spent


def test_where_there_is_no_candidate_only_the_network_itself_is_measured() -> None:
    nothing = [replace(one, exact_values=np.full_like(one.exact_values, 1.0)) for one in candidates()]
    cost = Measured(line, line)
    spending = spend(nothing, COST, limits(growth=None, budget=GrowthBudget(cost=cost, limit=9.0)), 10, OWN)
    assert not spending.selection.widths
    assert not spending.spent
    assert cost.trials == [OWN]


def test_a_network_beyond_a_measured_budget_is_said_to_be() -> None:
    with pytest.raises(NothingToSplit, match=r"takes 1\.7 ms of 1\.5 already"):
        spent_on(GrowthBudget(cost=Measured(line, line), limit=1.5))
    cliff = Measured(line, lambda w: line(w) if dict(w) == OWN else 9.0)
    with pytest.raises(NothingToSplit, match="all growth that was tried takes more than 2 ms"):
        spent_on(GrowthBudget(cost=cliff, limit=2.0))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"limit": 1.0}, "go together"),
        ({"cost": CostTable([RateTerm(("a",), 1.0)])}, "go together"),
        ({"cost": CostTable([RateTerm(("a",), 1.0)]), "limit": 0.0}, "leaves no network"),
    ],
)
def test_half_a_budget_is_refused(arguments: dict, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        GrowthBudget(**arguments)
