"""Groups that grow by a factor beside those that an analysis splits."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from growpipe.analyser import GrowthBudget, GrowthOptions, analyse
from growpipe.graph_ops.errors import NothingToSplit, UsageError
from growpipe.graph_ops.plan.data_free import random_plan
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.grow_module import grow, plan_for_module

pytestmark = pytest.mark.slow


class Stream(nn.Module):
    """A stream of four channels, normalised, with a hidden layer of six beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(5, 4), nn.LayerNorm(4)
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = self.stem(x)
        return self.head(h + self.down(torch.tanh(self.up(self.norm(h)))))


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    model = Stream().eval()
    x = torch.randn(64, 5)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0).long()
    return model, [(x[i : i + 32], y[i : i + 32]) for i in (0, 32)], export_growth_form(model, (x[:2],))


def test_a_factor_is_taken_as_it_is_asked_and_the_rest_competes(problem):
    model, batches, export = problem
    plan = analyse(model, cross_entropy, batches, export, growth=0.5, factors=2, hold_out=False)
    assert plan.widths["stem.weight"] == 8
    assert plan.widths["up.weight"] > 6
    assert plan.notes["analysis"]["factors"] == {"stem.weight": 2}
    assert plan.notes["analysis"]["added"].keys() == {"stem.weight", "up.weight"}
    (stem,) = (split for split in plan.groups if split.group == "stem.weight")
    assert (stem.evenly, stem.displacements, stem.predicted_change) == (True, {}, None)
    assert sorted(stem.coefficient[[0, 4]]) == pytest.approx([1 / 3, 2 / 3])
    x = batches[0][0]
    wide = grow(model, plan.with_epsilon(0.0))
    assert wide.norm.normalized_shape == (8,)
    torch.testing.assert_close(wide(x), model(x))
    # Exact copies change nothing: the step was searched, and its change measured, as without them.
    with torch.no_grad():
        moved = sum(
            float(cross_entropy(grow(model, plan)(x), y) - cross_entropy(model(x), y)) for x, y in batches
        )
    assert moved / 2 == pytest.approx(plan.realised_change, abs=1e-6)


def test_a_budget_counts_the_factor(problem):
    model, batches, export = problem
    cost = export.groups().cost
    budget = GrowthBudget(macs=int(cost.macs({"stem.weight": 8, "up.weight": 7})))
    options = GrowthOptions(factors={"stem.weight": 2}, balance=0.0)
    plan = analyse(model, cross_entropy, batches, export, growth=options, budget=budget, hold_out=False)
    assert plan.widths == {"stem.weight": 8, "up.weight": 7}


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"nobody": 2}, "no channel group is called 'nobody'"),
        ({"head.weight": 2}, "'head.weight' cannot split: Output"),
        (1, "factors"),
    ],
)
def test_wrong_factors(problem, factors, message):
    model, batches, export = problem
    with pytest.raises(UsageError, match=message):
        analyse(model, cross_entropy, batches, export, factors=factors)


def test_groups_that_grow_by_factors_alone_are_named_with_the_way_to_ask():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).eval()
    x, y = torch.randn(64, 3), torch.randint(0, 2, (64,))
    with pytest.raises(NothingToSplit, match=r"'0\.weight' can grow by whole factors alone.*--factor 2"):
        analyse(model, cross_entropy, [(x, y)], (x[:2],))
    export = export_growth_form(model, (x[:2],))
    plan = plan_for_module(random_plan(export.groups(), export.graph, growth=0.0, factors=2), model)
    wide = grow(model, plan.with_epsilon(0.0))
    assert wide[0].out_features == 8
    torch.testing.assert_close(wide(x), model(x))


def test_a_plan_of_factors_alone_needs_nothing_else_to_split(problem):
    _, batches, _ = problem
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)).eval(), batches[0][0]
    plan = analyse(model, cross_entropy, batches, (x[:2],), factors=2)
    assert plan.widths == {"0.weight": 8}
    assert (plan.epsilon, plan.predicted_change, plan.realised_change) == (0.0, None, None)
    assert plan.notes["analysis"]["factors"] == {"0.weight": 2}
    torch.testing.assert_close(grow(model, plan)(x), model(x))
    with pytest.raises(NothingToSplit, match="no room for the factors"):
        analyse(model, cross_entropy, batches, (x[:2],), factors=2, budget=GrowthBudget(parameters=50))
