"""The selection: gain per coupled cost, within budgets, alignment, caps and least widths."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from growpipe.analyser.schemes import ROWS, scheme_of
from growpipe.analyser.selection import Budget, Candidates, Limits, select
from growpipe.graph_ops.cost import CostModel, CostTerm
from growpipe.graph_ops.dims import Atom
from growpipe.graph_ops.errors import NothingToSplit, UsageError

A, B = Atom("a", 4), Atom("b", 6)
# Two layers: 3 -> a -> b -> 2, the first on 50 positions.
COST = CostModel(
    (
        CostTerm("macs", "first", 3 * 50, (A,)),
        CostTerm("macs", "second", 1, (A, B)),
        CostTerm("macs", "third", 2, (B,)),
        CostTerm("parameters", "first", 3, (A,)),
        CostTerm("parameters", "second", 1, (A, B)),
        CostTerm("parameters", "third", 2, (B,)),
    )
)


def candidates(scheme: str = "m4", c: float = 3.0, seed: int = 0) -> list[Candidates]:
    rng = np.random.default_rng(seed)
    return [
        Candidates.of(
            atom.name, -rng.uniform(0, 1, atom.size), rng.uniform(0, 1, atom.size), scheme_of(scheme, c)
        )
        for atom in (A, B)
    ]


def added(selection) -> int:
    return sum(ROWS[row].copies - 1 for rows in selection.rows.values() for row in rows if row >= 0)


def test_growth_share_and_value():
    selection = select(candidates(), COST, Limits(growth=0.5))
    widths = {"a": 4, "b": 6, **selection.widths}
    assert added(selection) == sum(widths.values()) - 10 <= 5
    for one in candidates():
        total = sum(
            one.values[ROWS[row].copies - 2, channel]
            for channel, row in enumerate(selection.rows[one.group])
            if row >= 0
        )
        assert selection.value[one.group] == pytest.approx(total)


def test_groups_compete_by_what_they_were_measured_to_be_worth():
    """The quadratic values say a; the measurement says b, and only orders channels within a group."""
    a, b = candidates("s2d")
    a = replace(a, values=100.0 * a.values)
    free = {"cost_exponent": 0.0, "max_factor": 2.0}
    assert select([a, b], COST, Limits(growth=0.4, **free)).widths == {"a": 8}
    measured = [replace(a, worth=0.01), replace(b, worth=1.0)]
    selection = select(measured, COST, Limits(growth=0.4, **free))
    assert selection.widths == {"b": 10}
    best = np.argsort(b.values[0])[:4]
    assert set(np.flatnonzero(selection.rows["b"] >= 0)) == set(best)


def test_the_first_channels_of_a_narrow_group_are_worth_most():
    """Doubling is worth the same to both: a, 4 wide, gets its first channel before b, 6 wide, and then b."""
    measured = [replace(one, worth=1.0) for one in candidates("s2d")]
    orders = [
        select(measured, COST, Limits(growth=share, cost_exponent=0.0)).widths for share in (0.1, 0.2, 0.4)
    ]
    assert orders == [{"a": 5}, {"a": 6}, {"a": 7, "b": 7}]


@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_the_best_by_gain_per_cost(seed):
    """With one option per channel and free costs the greedy choice is the best of all choices."""
    offered = candidates("s2d", seed=seed)
    selection = select(offered, COST, Limits(growth=0.3, cost_exponent=0.0))
    gains = np.sort(np.concatenate([-c.values[0] for c in offered]))[::-1]
    assert -sum(selection.value.values()) == pytest.approx(gains[:3].sum())


@pytest.mark.parametrize(
    "budget", [Budget(macs=900), Budget(parameters=70), Budget(parameters=80, macs=1000)]
)
def test_budgets_hold_and_are_used(budget):
    selection = select(candidates(), COST, Limits(growth=None, budget=budget))
    spent = {"macs": COST.macs(selection.widths), "parameters": COST.parameters(selection.widths)}
    assert selection.widths
    for name, limit in (("macs", budget.macs), ("parameters", budget.parameters)):
        assert limit is None or spent[name] <= limit
    assert selection.notes == "the budget is spent"
    larger = Budget(*(None if x is None else 2 * x for x in (budget.parameters, budget.macs)))
    more = select(candidates(), COST, Limits(growth=None, budget=larger))
    assert sum(more.value.values()) < sum(selection.value.values())


def test_costs_are_coupled():
    """A channel of b is dear when a is wide: doubling a doubles what b costs."""
    offered = candidates("s2d")
    wide = select(offered, COST, Limits(growth=0.3, widths={"a": (8, None)}, cost_exponent=1.0))
    assert wide.widths["a"] == 8
    narrow = select(offered, COST, Limits(growth=0.3, widths={"a": (None, 4)}, cost_exponent=1.0))
    assert "a" not in narrow.widths


@pytest.mark.parametrize("align", [2, 4, 8])
def test_alignment_fills_with_the_next_best(align):
    selection = select(candidates(), COST, Limits(growth=1.0, align=align, max_factor=3.0))
    assert selection.widths
    assert all(width % align == 0 for width in selection.widths.values())
    assert added(selection) == sum(selection.widths.values()) - sum(
        {"a": 4, "b": 6}[g] for g in selection.widths
    )


def test_aligned_fill_is_the_best_fill():
    """Exactly two channels into one group: against all ways to do it."""
    (one, _) = candidates(seed=3)
    selection = select([one], COST, Limits(growth=0.5, align=2, widths={"a": (6, 6)}))
    options = [
        -sum(one.values[k - 1, channel] for channel, k in enumerate(copies) if k)
        for copies in itertools.product(range(4), repeat=4)
        if sum(copies) == 2
        and all(k == 0 or ROWS[one.rows[k - 1, c]].copies == k + 1 for c, k in enumerate(copies))
    ]
    assert -selection.value["a"] == pytest.approx(max(options))


def test_factor_and_refusals():
    assert select(candidates(), COST, Limits(growth=5.0, max_factor=1.5)).widths == {"a": 6, "b": 9}
    with pytest.raises(NothingToSplit, match="the budget is spent"):
        select(candidates(), COST, Limits(budget=Budget(macs=1)))
    with pytest.raises(UsageError, match="cannot reach its least width 99"):
        select(candidates(), COST, Limits(widths={"a": (99, None)}))
    with pytest.raises(UsageError, match="a growth share or a budget"):
        Limits(growth=None, budget=Budget())
    with pytest.raises(UsageError, match="leaves no network"):
        Budget(macs=0)
