"""A selection that spends a budget, whatever the budget is of.

Parameters, MACs and tables are known for any widths. What is measured is known for the widths that were
measured; the estimate for others tells which channels are cheap, and no more is asked of it: how far growth
goes is found by trying, as the largest selection that keeps within the limit itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from growpipe.analyser.candidates import Candidates
from growpipe.analyser.choice.growth_limits import GrowthLimits
from growpipe.analyser.choice.selection import Selection, select
from growpipe.budgets.budget import Expenses, NetworkCost
from growpipe.graph_ops.cost.cost import CostModel
from growpipe.graph_ops.errors import NothingToSplit

__all__ = ["Spending", "spend"]

ATTEMPTS = 8
"""The most networks that are tried for one selection."""


@dataclass(frozen=True, eq=False)
class Spending:
    """A selection and what it does to the budget.

    Attributes:
        selection: which channels split.
        spent: whether the budget leaves room for no more.
        cost: of the grown network in the unit of the budget's own cost; None if it has none.
    """

    selection: Selection
    spent: bool
    cost: float | None


def spend(
    candidates: Sequence[Candidates],
    model: CostModel,
    limits: GrowthLimits,
    total_channels: int,
    own: Mapping[str, int],
) -> Spending:
    """As `select`, under any budget.

    Args:
        candidates: of every group that may split.
        model: parameters and MACs of the whole network.
        limits: what bounds the growth.
        total_channels: the number of channels of which the growth share is taken.
        own: the widths of all groups of the network.

    Raises:
        NothingToSplit, UsageError: as `select`; nothing that was tried keeps within the budget.
    """
    budget = limits.budget
    steps = limits.next_steps([offered.group for offered in candidates])
    if budget is None or budget.cost is None or budget.limit is None or not budget.cost.resolution:
        selection = select(candidates, model, limits, total_channels, own)
        cost = None if budget is None or budget.cost is None else budget.cost.of({**own, **selection.widths})
        return Spending(selection, Expenses(model, own, budget).spent(selection.widths, steps), cost)

    def estimated(most: float) -> Selection:
        bounded = replace(limits, budget=replace(budget, limit=most))
        return select(candidates, model, bounded, total_channels, own)

    found = _by_trial(budget.cost, budget.limit, estimated, own)
    exact = Expenses(model, own, replace(budget, cost=None, limit=None))
    return replace(found, spent=found.spent or exact.spent(found.selection.widths, steps))


def _by_trial(
    cost: NetworkCost,
    limit: float,
    estimated: Callable[[float], Selection],
    own: Mapping[str, int],
) -> Spending:
    """The largest selection that was found to keep within ``limit``, by regula falsi on the estimate.

    Args:
        cost: a measured one.
        limit: of it.
        estimated: the selection whose estimated cost is at most so much.
        own: see `spend`.
    """
    # Estimates of what keeps within the limit and of what does not, and what these were found to cost.
    low, found_low = cost.of(own), cost.tried(own)
    high, found_high = math.inf, math.inf
    if found_low > limit:
        raise NothingToSplit(
            f"the budget is spent: the network takes {found_low:.3g} {cost.unit} of {limit:.3g} already"
        )
    best: Selection | None = None
    most, selection = math.inf, estimated(math.inf)
    if not selection.widths:
        return Spending(selection, False, found_low)
    for _ in range(ATTEMPTS):
        if not selection.widths or (best is not None and selection.widths == best.widths):
            low = most
        elif (found := cost.tried({**own, **selection.widths})) <= limit:
            best, low, found_low = selection, most, found
            if math.isinf(high) or found > (1 - cost.resolution) * limit:
                break
        else:
            high, found_high = cost.of({**own, **selection.widths}), found
        if not high - low > cost.resolution / 2 * high:
            break
        # Never so close to an end that a wrong estimate there would stop the search.
        share = (limit - found_low) / (found_high - found_low)
        most = low + min(max(share, 0.1), 0.9) * (high - low)
        selection = estimated(most)
    if best is None:
        raise NothingToSplit(
            f"the budget is spent: all growth that was tried takes more than {limit:.3g} {cost.unit}"
        )
    spent = math.isfinite(high) or found_low > (1 - cost.resolution) * limit
    return Spending(best, spent, found_low)
