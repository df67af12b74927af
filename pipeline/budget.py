"""The budget of a recipe as the analyser takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from growpipe.analyser import Budget
from growpipe.distributed import broadcast
from growpipe.graph_ops.cost_table import CostTable, CurveTerm, RateTerm
from growpipe.graph_ops.groups import ChannelGroups, find_channel_groups
from growpipe.measured_latency import MeasuredLatency
from growpipe.progress import log
from growpipe.recipe import Recipe, Table
from growpipe.task import Task

__all__ = ["alignment", "budget_for", "cost_table"]


def budget_for(task: Task, graph: ir.Model) -> Budget:
    """What the network of this growth form may grow to.

    Under a budget of milliseconds networks are measured here, by the first process; all get its figures.

    Raises:
        UsageError: the recipe's table names no group of the graph.
    """
    asked = task.run.recipe.budget
    if asked.milliseconds is not None:
        return Budget(
            asked.parameters, asked.macs, _latency(task, graph, asked.threads), limit=asked.milliseconds
        )
    if asked.table is not None:
        table = cost_table(asked.table, find_channel_groups(graph))
        return Budget(asked.parameters, asked.macs, table, limit=asked.table.limit)
    return Budget(asked.parameters, asked.macs)


def alignment(recipe: Recipe) -> int:
    """The multiple that widths grow to, where the recipe does not say.

    Kernels of onnxruntime work on blocks of 16 channels: a 17th takes as long as 16 more.
    """
    if recipe.growth.align is not None:
        return recipe.growth.align
    return 16 if recipe.budget.milliseconds is not None else 1


def _latency(task: Task, graph: ir.Model, threads: int) -> MeasuredLatency:
    names = [str(value.name) for value in graph.graph.inputs]
    feed, _ = task.gathered(task.loaders.validation, names, limit=1)
    peers = task.run.peers

    def share(measure: Callable[[], Any]) -> Any:
        return broadcast(peers, None if peers.rank else measure())

    sample = {name: np.ascontiguousarray(array[:1]) for name, array in feed.items()}
    return MeasuredLatency(graph, sample, threads=threads, told=log, share=share)


def cost_table(asked: Table, groups: ChannelGroups) -> CostTable:
    """The table of a recipe.

    Raises:
        UsageError: a term makes no sense, or names none of ``groups``.
    """
    terms = [
        RateTerm(term.groups, term.rate)
        if term.rate is not None
        else CurveTerm(term.groups[0], term.widths or (), term.costs or ())
        for term in asked.terms
    ]
    table = CostTable(terms, asked.base, asked.unit)
    table.check_groups(group.name for group in groups.groups)
    return table
