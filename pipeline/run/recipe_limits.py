"""How far a recipe lets a network grow, as the analyser takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from growpipe.analyser import GrowthBudget
from growpipe.budgets.measured_latency import MeasuredLatency
from growpipe.graph_ops.cost.cost_table import CostTable, CurveTerm, RateTerm
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import ChannelGroups, find_channel_groups
from growpipe.progress import log
from growpipe.run.recipe import BudgetSection, Growth, Recipe, Table
from growpipe.run.task import Task
from growpipe.suggestions import did_you_mean

__all__ = ["alignment", "budget_for", "budget_of", "check_limits", "growth_of", "rounds_of"]

_FAMILY_BALANCE = 1.0


def rounds_of(recipe: Recipe) -> int:
    """The most rounds of growth."""
    family = recipe.family
    return recipe.growth.rounds if family is None or family.budgets is None else len(family.budgets)


def growth_of(recipe: Recipe) -> Growth:
    """How a round grows: in a family of named sizes without a bound on the share, and evenly by default.

    Groups that compete grow the last layers most, and such sizes lose to uniform widths: see docs/growth.md.
    """
    growth = recipe.growth
    if recipe.family is None or recipe.family.budgets is None:
        return growth
    balance = growth.balance if "balance" in growth.model_fields_set else _FAMILY_BALANCE
    return growth.model_copy(update={"share": None, "balance": balance})


def budget_of(recipe: Recipe, number: int) -> BudgetSection:
    """What the growth of round ``number``, the first being 0, is bounded by."""
    family = recipe.family
    if family is None or family.budgets is None:
        return recipe.budget
    return recipe.budget.model_copy(update={family.measure: int(family.budgets[number])})


def budget_for(task: Task, graph: ir.Model, asked: BudgetSection) -> GrowthBudget:
    """What the network of this growth form may grow to.

    Under a budget of milliseconds networks are measured here, by the first process; all get its figures.

    Raises:
        UsageError: the recipe's table names no group of the graph.
    """
    if asked.milliseconds is not None:
        return GrowthBudget(
            asked.parameters, asked.macs, _latency(task, graph, asked.threads), limit=asked.milliseconds
        )
    if asked.table is not None:
        table = _cost_table(asked.table, find_channel_groups(graph))
        return GrowthBudget(asked.parameters, asked.macs, table, limit=asked.table.limit)
    return GrowthBudget(asked.parameters, asked.macs)


def alignment(recipe: Recipe) -> int:
    """The multiple of channels at which a group that grows ends; see ``align`` of `GrowthOptions`."""
    if recipe.growth.align is not None:
        return recipe.growth.align
    return MeasuredLatency.alignment if recipe.budget.milliseconds is not None else 1


def _latency(task: Task, graph: ir.Model, threads: int) -> MeasuredLatency:
    peers = task.run.peers

    def share(measure: Callable[[], Any]) -> Any:
        return peers.broadcast(None if peers.rank else measure())

    return MeasuredLatency(graph, task.one_sample(graph), threads=threads, told=log, share=share)


def check_limits(recipe: Recipe, groups: ChannelGroups) -> None:
    """Refuse limits of a recipe that are not of this network, before anything is trained.

    Raises:
        UsageError: a width or a term of the cost table names no group, a least width is above the greatest or
            beyond the first round, a term of the table makes no sense, or the network is beyond the budget.
    """
    growth = recipe.growth
    own = {group.name: group.width for group in groups.groups if group.splittable}
    unknown = sorted((growth.min_widths.keys() | growth.max_widths.keys()) - own.keys())
    if unknown:
        hint = did_you_mean(unknown[0], own) or "; see growpipe inspect"
        raise UsageError(
            f"min_widths/max_widths name {unknown[0]!r}, but the network has no growable channel group of "
            f"that name{hint}"
        )
    for group, least in growth.min_widths.items():
        # Later there may be no budget left for it.
        most = min(int(growth.max_factor * own[group]), growth.max_widths.get(group, least))
        if least > max(most, own[group]):
            raise UsageError(
                f"the least width of {group!r} is {least}, and {most} is the most of the first round; begin "
                "with a wider seed network, or raise max_factor or max_widths"
            )
    budget = budget_of(recipe, 0)
    costs: list[tuple[float, float | None, str]] = [
        (groups.cost.parameters(), budget.parameters, "parameters"),
        (groups.cost.macs(), budget.macs, "MACs"),
    ]
    if budget.table is not None:
        table = _cost_table(budget.table, groups)
        widths = {group.name: group.width for group in groups.groups}
        costs.append((table.of(widths), budget.table.limit, table.unit or "by its table"))
    for cost, limit, unit in costs:
        if limit is not None and cost > limit:
            raise UsageError(
                f"the seed network costs {cost:,.7g} {unit}, more than the budget of {limit:,.7g}; give a "
                "larger budget, or begin with a smaller network"
            )


def _cost_table(asked: Table, groups: ChannelGroups) -> CostTable:
    """The table of a recipe; `UsageError` where a term makes no sense, or names none of ``groups``."""
    terms = [
        RateTerm(term.groups, term.rate)
        if term.rate is not None
        else CurveTerm(term.groups[0], term.widths or (), term.costs or ())
        for term in asked.terms
    ]
    table = CostTable(terms, asked.base, asked.unit)
    table.check_groups(group.name for group in groups.groups)
    return table
