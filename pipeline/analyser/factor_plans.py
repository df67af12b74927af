"""The part of a plan that no analysis is needed for: groups that grow by a factor, in exact copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from growpipe.analyser.options import AnalysisOptions
from growpipe.analyser.preparation import Subject
from growpipe.analyser.report import AddedCost, Analysis, AnalysisReport
from growpipe.budgets.budget import Expenses, GrowthBudget
from growpipe.graph_ops.cost.cost import CostModel
from growpipe.graph_ops.errors import NothingToSplit
from growpipe.graph_ops.plan.split_plan import SplitPlan, hash_parameters
from growpipe.graph_ops.plan.whole_factors import factor_splits
from growpipe.torch_module.export import named_tensors
from growpipe.torch_module.outputs import to_numpy

__all__ = ["added_cost", "factors_alone", "with_factors"]


def with_factors(plan: SplitPlan, subject: Subject, seed: int) -> SplitPlan:
    """The plan with the groups that grow by a factor: exact copies, which change nothing of the rest."""
    prepared = subject.prepared
    if not prepared.factors:
        return plan
    splits = (*plan.groups, *factor_splits(prepared.groups, prepared.factors, seed))
    names = [split.group for split in splits]
    own = named_tensors(subject.model)
    layouts = {name: at for name, at in prepared.groups.restricted(names).items() if name in own}
    return replace(plan, groups=splits, layouts=layouts, module_sizes=prepared.fit.sizes_of(names))


def factors_alone(subject: Subject, budget: GrowthBudget | None, options: AnalysisOptions) -> Analysis:
    """The plan of the factors that were asked for, if nothing else splits: it needs no data.

    Raises:
        NothingToSplit: the budget has no room for them.
    """
    prepared, seed = subject.prepared, options.spectra.seed
    groups, own = prepared.groups, {group.name: group.width for group in prepared.groups.groups}
    empty = SplitPlan((), {}, 0.0, groups.graph_hash, "", "factors")
    plan = with_factors(empty, subject, seed)
    expenses = Expenses(groups.cost, own, budget)
    if not expenses.affordable(plan.widths):
        raise NothingToSplit("the budget has no room for the factors; give a larger one")
    tensors = named_tensors(subject.model)
    found = hash_parameters(plan.layouts, lambda name: to_numpy(tensors[name]))
    report = AnalysisReport(
        stages=(),
        ranking_stable=True,
        groups={},
        samples=0,
        held_out=0,
        displaced=options.growth.displace,
        damping=None,
        rounded_products=False,
        sketched=(),
        selection="no split lowers the loss; the channels are copied as the factors say",
        budget_spent=expenses.spent(plan.widths, [{name: 1} for name in plan.widths]),
        cost=None if budget is None or budget.cost is None else budget.cost.of({**own, **plan.widths}),
        added=added_cost(groups.cost, plan.widths),
        calibration=None,
        rigid=prepared.fit.rigid,
        joined=prepared.fit.joined_names,
        factors=prepared.factors,
        base_loss=None,
        epsilon=options.growth.epsilon,
        line_search=None,
        seed=seed,
    )
    subject.peers.agree("the plan", plan.content_hash)
    return Analysis(replace(plan, parameters_hash=found, notes={"analysis": report.notes()}), report)


def added_cost(cost: CostModel, widths: Mapping[str, int]) -> dict[str, AddedCost]:
    """What the growth of each group costs if no other group grows."""
    parameters, macs = cost.parameters(), cost.macs()
    return {
        name: AddedCost(
            int(cost.parameters({name: width}) - parameters), int(cost.macs({name: width}) - macs)
        )
        for name, width in widths.items()
    }
