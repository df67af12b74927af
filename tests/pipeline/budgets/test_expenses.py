"""What a network costs against its budget."""

from __future__ import annotations

from dataclasses import replace

import pytest

from growpipe.budgets.budget import Expenses, GrowthBudget
from growpipe.graph_ops.errors import UsageError
from tests.helpers.two_layers import COST

OWN = {"a": 4, "b": 6}


def test_a_budget_of_macs_needs_all_macs() -> None:
    partial = replace(COST, uncounted=("com.acme::Secret node",))
    with pytest.raises(UsageError, match=r"those of com\.acme::Secret node are not counted"):
        Expenses(partial, OWN, GrowthBudget(macs=1000))
    assert Expenses(partial, OWN, GrowthBudget(parameters=1000)).affordable({})
    assert Expenses(partial, OWN, None).affordable({})


def test_a_network_is_affordable_up_to_its_budget() -> None:
    macs = COST.macs(OWN)
    assert Expenses(COST, OWN, GrowthBudget(macs=macs)).affordable(OWN)
    assert not Expenses(COST, OWN, GrowthBudget(macs=macs - 1)).affordable(OWN)


@pytest.mark.parametrize("budget", [None, GrowthBudget(parameters=1000), GrowthBudget(macs=1000)])
def test_a_price_is_what_one_more_channel_adds(budget: GrowthBudget | None) -> None:
    expenses = Expenses(COST, OWN, budget)
    widths = {"a": 5, "b": 9}
    base = expenses.measure(widths)
    assert expenses.prices(widths, 1.0) == {
        "a": expenses.measure({"a": 6, "b": 9}) - base,
        "b": expenses.measure({"a": 5, "b": 10}) - base,
    }
