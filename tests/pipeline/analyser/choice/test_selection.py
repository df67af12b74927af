"""The selection: gain per coupled cost, within budgets, alignment, caps and least widths."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from growpipe.analyser.candidates import Candidates
from growpipe.analyser.choice.selection import select
from growpipe.analyser.schemes import ROWS, best_rows, scheme_of
from growpipe.budgets.budget import GrowthBudget
from growpipe.graph_ops.errors import NothingToSplit, UsageError
from growpipe.graph_ops.plan.joined_groups import JoinedGroups
from tests.helpers.two_layers import COST, candidates, limits


def value(selection, offered: list[Candidates]) -> float:
    """Σ w δᵀSδ over all channels."""
    return sum(
        one.exact_values[ROWS[row].copies - 2, channel]
        for one in offered
        for channel, row in enumerate(selection.rows[one.group])
        if row >= 0
    )


def added(selection) -> int:
    return sum(ROWS[row].copies - 1 for rows in selection.rows.values() for row in rows if row >= 0)


def test_growth_share():
    selection = select(candidates(), COST, limits(growth=0.5))
    widths = {"a": 4, "b": 6, **selection.widths}
    assert added(selection) == sum(widths.values()) - 10 <= 5


@pytest.mark.parametrize(("scheme", "c"), [("s2d", 1.0), ("m2", 3.0), ("m4", 3.0), ("m4", 1.0)])
def test_candidates_with_at_most_so_many_copies_are_the_table(scheme, c):
    rng = np.random.default_rng(0)
    low, high = np.sort(rng.normal(size=(2, 50)), axis=0)
    one = Candidates.of("a", low, high, scheme_of(scheme, c))
    for copies, values, rows in zip(itertools.count(2), one.values, one.rows, strict=False):
        best, best_row = best_rows(low, high, c, copies)
        np.testing.assert_array_equal(values, best)
        np.testing.assert_array_equal(rows, best_row)


def test_groups_compete_by_what_they_were_measured_to_be_worth():
    """The quadratic values say a; the measurement says b, and only orders channels within a group."""
    a, b = candidates("s2d")
    a = replace(a, exact_values=100.0 * a.exact_values)
    free = {"cost_exponent": 0.0, "max_factor": 2.0}
    assert select([a, b], COST, limits(growth=0.4, **free)).widths == {"a": 8}
    measured = [replace(a, worth=0.01), replace(b, worth=1.0)]
    selection = select(measured, COST, limits(growth=0.4, **free))
    assert selection.widths == {"b": 10}
    best = np.argsort(b.values[0])[:4]
    assert set(np.flatnonzero(selection.rows["b"] >= 0)) == set(best)


def test_balance_gives_every_group_its_share_before_they_compete():
    a, b = candidates("s2d")
    measured = [replace(a, worth=1e-9), replace(b, worth=1.0)]
    free = {"growth": None, "cost_exponent": 0.0, "max_factor": 2.0}
    budget = GrowthBudget(parameters=COST.parameters({"a": 8, "b": 12}))

    def widths(balance: float, offered: list[Candidates] = measured) -> dict[str, int]:
        return dict(select(offered, COST, limits(budget=budget, balance=balance, **free)).widths)

    tight = GrowthBudget(parameters=COST.parameters({"a": 5, "b": 9}))
    assert "a" not in select(measured, COST, limits(budget=tight, **free)).widths
    # One factor for both, 1.37, spends what is there; its root makes 4 channels 5 and 6 channels 7.
    balanced = select(measured, COST, limits(budget=tight, balance=0.5, **free)).widths
    assert balanced["a"] == 5
    assert balanced["b"] > 7
    assert COST.parameters(balanced) <= 78
    assert widths(1.0) == {"a": 8, "b": 12}
    # A group without a split that lowers the loss stays.
    useless = replace(a, exact_values=np.abs(a.exact_values))
    assert "a" not in widths(0.5, [useless, b])
    with pytest.raises(UsageError, match=r"wrong at 'balance': .*less than or equal to 1, got 1\.5"):
        limits(balance=1.5)


def test_balance_shares_a_growth_share_too():
    a, b = candidates("s2d")
    measured = [replace(a, worth=1e-9), replace(b, worth=1.0)]
    bounds = limits(growth=0.4, cost_exponent=0.0, balance=1.0)
    assert select(measured, COST, bounds).widths == {"a": 6, "b": 8}
    assert select(measured, COST, limits(growth=0.4, cost_exponent=0.0, balance=0.0)).widths == {"b": 10}


def test_the_first_channels_of_a_narrow_group_are_worth_most():
    """Doubling is worth the same to both: a, 4 wide, gets its first channel before b, 6 wide, and then b."""
    measured = [replace(one, worth=1.0) for one in candidates("s2d")]
    orders = [
        select(measured, COST, limits(growth=share, cost_exponent=0.0)).widths for share in (0.1, 0.2, 0.4)
    ]
    assert orders == [{"a": 5}, {"a": 6}, {"a": 7, "b": 7}]


@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_the_best_by_gain_per_cost(seed):
    """With one option per channel and free costs the greedy choice is the best of all choices."""
    offered = candidates("s2d", seed=seed)
    selection = select(offered, COST, limits(growth=0.3, cost_exponent=0.0))
    gains = np.sort(np.concatenate([-c.values[0] for c in offered]))[::-1]
    assert -value(selection, offered) == pytest.approx(gains[:3].sum())


@pytest.mark.parametrize(
    "budget", [GrowthBudget(macs=900), GrowthBudget(parameters=70), GrowthBudget(parameters=80, macs=1000)]
)
def test_budgets_hold_and_are_used(budget):
    selection = select(candidates(), COST, limits(growth=None, budget=budget))
    spent = {"macs": COST.macs(selection.widths), "parameters": COST.parameters(selection.widths)}
    assert selection.widths
    for name, limit in (("macs", budget.macs), ("parameters", budget.parameters)):
        assert limit is None or spent[name] <= limit
    assert selection.notes == "the budget is spent"
    larger = GrowthBudget(*(None if x is None else 2 * x for x in (budget.parameters, budget.macs)))
    more = select(candidates(), COST, limits(growth=None, budget=larger))
    assert value(more, candidates()) < value(selection, candidates())


def test_costs_are_coupled():
    """A channel of b is dear when a is wide: doubling a doubles what b costs."""
    offered = candidates("s2d")
    wide = select(offered, COST, limits(growth=0.3, widths={"a": (8, None)}, cost_exponent=1.0))
    assert wide.widths["a"] == 8
    narrow = select(offered, COST, limits(growth=0.3, widths={"a": (None, 4)}, cost_exponent=1.0))
    assert "a" not in narrow.widths


@pytest.mark.parametrize("align", [2, 4, 8])
def test_alignment_fills_with_the_next_best(align):
    selection = select(candidates(), COST, limits(growth=1.0, align=align, max_factor=3.0))
    assert selection.widths
    assert all(width % align == 0 for width in selection.widths.values())
    assert added(selection) == sum(selection.widths.values()) - sum(
        {"a": 4, "b": 6}[g] for g in selection.widths
    )


def test_aligned_fill_is_the_best_fill():
    """Exactly two channels into one group: against all ways to do it."""
    (one, _) = candidates(seed=3)
    selection = select([one], COST, limits(growth=0.5, align=2, widths={"a": (6, 6)}))
    options = [
        -sum(one.values[k - 1, channel] for channel, k in enumerate(copies) if k)
        for copies in itertools.product(range(4), repeat=4)
        if sum(copies) == 2
        and all(k == 0 or ROWS[one.rows[k - 1, c]].copies == k + 1 for c, k in enumerate(copies))
    ]
    assert -value(selection, [one]) == pytest.approx(max(options))


def stable(low: list[float], scheme: str = "s2d", c: float = 1.0) -> Candidates:
    """Channels of which no positive split lowers the loss; λ+ = λ− + 1."""
    return Candidates.of("a", np.array(low), np.array(low) + 1.0, scheme_of(scheme, c))


def test_a_least_width_is_filled_with_what_raises_the_loss_least():
    mixed = stable([0.3, -0.5, 0.1, 0.2])
    free = select([mixed], COST, limits(growth=1.0))
    assert (free.widths, free.notes) == ({"a": 5}, "no candidate lowers the loss any further")
    filled = select([mixed], COST, limits(growth=1.0, widths={"a": (7, None)}))
    assert filled.widths == {"a": 7}
    assert [ROWS[row].name if row >= 0 else None for row in filled.rows["a"]] == [
        None, "positive pair", "positive pair", "positive pair",
    ]  # fmt: skip
    assert value(filled, [mixed]) == pytest.approx(-0.5 + 0.1 + 0.2)
    assert filled.notes.endswith("2 channels of 'a' promise nothing: its least width asked for them")


@pytest.mark.parametrize("align", [1, 2, 14])
def test_filling_with_further_copies_is_the_best_filling(align):
    """Triplets gain and quadruplets do not; two of the four must be: against all ways to do it."""
    one = stable([0.3, 0.5, 0.1, 0.2], "m4", 3.0)
    selection = select([one], COST, limits(growth=1.0, align=align, widths={"a": (14, 14)}))
    assert selection.widths == {"a": 14}
    options = [
        sum(one.exact_values[k - 1, channel] for channel, k in enumerate(copies) if k)
        for copies in itertools.product(range(4), repeat=4)
        if sum(copies) == 10
    ]
    assert value(selection, [one]) == pytest.approx(min(options))
    assert "2 channels of 'a' promise nothing" in selection.notes or align == 14


def test_filling_ends_where_copies_and_budget_end():
    one = stable([0.3, 0.5, 0.1, 0.2])
    with pytest.raises(UsageError, match="cannot reach its least width 9: 8 is the most"):
        select([one], COST, limits(widths={"a": (9, None)}))
    with pytest.raises(UsageError, match="cannot reach its least width 8: 5 is the most"):
        select(
            [one],
            COST,
            limits(growth=None, budget=GrowthBudget(macs=5 * (150 + 6) + 12), widths={"a": (8, 8)}),
        )
    several = stable([0.3, 0.5, 0.1, 0.2], "m4", 3.0)
    assert select([several], COST, limits(widths={"a": (16, None)})).widths == {"a": 16}


def test_factor_and_refusals():
    assert select(candidates(), COST, limits(growth=5.0, max_factor=1.5)).widths == {"a": 6, "b": 9}
    with pytest.raises(NothingToSplit, match="the budget is spent"):
        select(candidates(), COST, limits(budget=GrowthBudget(macs=1)))
    with pytest.raises(UsageError, match="cannot reach its least width 99"):
        select(candidates(), COST, limits(widths={"a": (99, None)}))
    assert limits(growth=None, budget=GrowthBudget()).share == limits(growth=None).share == 0.3
    assert limits(growth=None, budget=GrowthBudget(macs=1)).share is None
    with pytest.raises(UsageError, match="leaves no network"):
        GrowthBudget(macs=0)


def test_joined_groups_take_their_steps_together() -> None:
    offered = candidates()
    joined = JoinedGroups(("a", "b"), before=(4, 6), step=(1, 1))
    for share in (0.2, 0.4, 0.6, 1.0):
        for align in (1, 2):
            bounds = replace(limits(growth=share, align=align), joined=(joined,))
            selection = select(offered, COST, bounds)
            assert joined.are_equal(selection.widths)
            assert all(width % align == 0 for width in selection.widths.values())
            assert {name: len(rows) for name, rows in selection.rows.items()} == {"a": 4, "b": 6}
    least = replace(limits(growth=0.2, widths={"a": (7, None)}), joined=(joined,))
    assert select(offered, COST, least).widths == {"a": 7, "b": 9}
    most = replace(limits(growth=1.0, widths={"b": (None, 8)}), joined=(joined,))
    assert select(offered, COST, most).widths == {"a": 6, "b": 8}
    never = JoinedGroups(("a", "b"), before=(4, 6), step=(1, 2))
    assert select(offered, COST, replace(limits(growth=0.5, align=4), joined=(never,))).widths == {}
    alone = JoinedGroups(("a", "elsewhere"), before=(4, 6), step=(1, 1))
    assert "a" not in select(offered, COST, replace(limits(growth=0.5), joined=(alone,))).widths


def test_joined_groups_keep_within_a_budget() -> None:
    joined = JoinedGroups(("a", "b"), before=(4, 6), step=(2, 3))
    for factor in (1.2, 1.6, 2.2):
        budget = GrowthBudget(macs=int(factor * COST.macs()))
        bounds = replace(limits(growth=None, budget=budget), joined=(joined,))
        widths = select(candidates(), COST, bounds).widths
        assert joined.are_equal(widths)
        assert COST.macs(widths) <= budget.macs
    assert bounds.next_steps({"a": 4, "b": 6}) == [{"a": 2, "b": 3}]
