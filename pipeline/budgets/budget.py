"""What the grown network may cost, and what one more channel costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from growpipe.graph_ops.cost.cost import CostKind, CostModel
from growpipe.graph_ops.errors import UsageError

__all__ = ["Expenses", "GrowthBudget", "NetworkCost"]


class NetworkCost(Protocol):
    """What a network costs besides parameters and MACs, in a unit of its own: a table, or a measurement."""

    @property
    def unit(self) -> str:
        """E.g. ``ms``."""

    @property
    def resolution(self) -> float:
        """The share of a cost below which differences mean nothing; 0 where ``of`` is exact."""

    def of(self, widths: Mapping[str, int]) -> float:
        """The cost by the widths of all channel groups; an estimate where there is a resolution."""

    def tried(self, widths: Mapping[str, int]) -> float:
        """The cost of the network of these widths itself."""


@dataclass(frozen=True, slots=True)
class GrowthBudget:
    """What the grown network may cost in all, per sample; None leaves a quantity free.

    Attributes:
        parameters: the number of trainable entries.
        macs: multiply-accumulates of one forward pass.
        cost: any other cost, e.g. a `CostTable` or a `MeasuredLatency`.
        limit: the most of ``cost``, in its unit.
    """

    parameters: int | None = None
    macs: int | None = None
    cost: NetworkCost | None = None
    limit: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("parameters", self.parameters), ("macs", self.macs), ("(limit)", self.limit)):
            if value is not None and not value > 0:
                raise UsageError(f"a budget of {value} {name} leaves no network; give a positive number")
        if (self.cost is None) != (self.limit is None):
            raise UsageError("a budget's cost and its limit go together; give both or neither")

    @property
    def unlimited(self) -> bool:
        return self.parameters is None and self.macs is None and self.cost is None


@dataclass(frozen=True, eq=False)
class Expenses:
    """What one network costs at any widths, against what it may cost.

    Attributes:
        model: parameters and MACs.
        own: the widths of all its groups.
        budget: None if it may cost anything.

    Raises:
        UsageError: the budget bounds MACs, and the network has operators whose MACs are not counted.
    """

    model: CostModel
    own: Mapping[str, int]
    budget: GrowthBudget | None

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget.macs is not None and self.model.uncounted:
            raise UsageError(
                f"a budget of MACs cannot be kept: those of {self.model.uncounted[0]} are not counted; "
                "give a budget of parameters or of a measured cost"
            )

    def affordable(self, grown: Mapping[str, int]) -> bool:
        """Whether the network is within the budget when the groups in ``grown`` have those widths."""
        budget = self.budget
        if budget is None:
            return True
        widths = {**self.own, **grown}
        if budget.parameters is not None and self.model.parameters(widths) > budget.parameters:
            return False
        if budget.macs is not None and self.model.macs(widths) > budget.macs:
            return False
        if budget.cost is None or budget.limit is None:
            return True
        return budget.cost.of(widths) <= budget.limit

    def spent(self, grown: Mapping[str, int], steps: Iterable[Mapping[str, int]]) -> bool:
        """Whether none of these steps, each the channels to add by group, can be taken."""
        widths = {**self.own, **grown}
        wider = ({name: widths[name] + count for name, count in step.items()} for step in steps)
        return not any(self.affordable({**grown, **more}) for more in wider)

    def measure(self, grown: Mapping[str, int]) -> float:
        """The cost that candidates compete by.

        The budget's own cost if it has one, else MACs, but parameters where they alone are bounded.
        """
        widths = {**self.own, **grown}
        if self.budget is not None and self.budget.cost is not None:
            return self.budget.cost.of(widths)
        return self.model.parameters(widths) if self._counts == "parameters" else self.model.macs(widths)

    @property
    def _counts(self) -> CostKind:
        """What candidates compete by if the budget has no cost of its own."""
        budget = self.budget
        alone = budget is not None and budget.macs is None and budget.parameters is not None
        return "parameters" if alone else "macs"

    def prices(self, widths: Mapping[str, int], exponent: float) -> dict[str, float]:
        """What one more channel of each group costs when they have these widths, to a power."""
        base = self.measure(widths)
        added: Mapping[str, float]
        if self.budget is not None and self.budget.cost is not None:
            added = {g: self.measure({**widths, g: width + 1}) - base for g, width in widths.items()}
        else:
            added = self.model.one_more(self._counts, {**self.own, **widths})
        # What is free in this measure is still no better than very cheap; where all is free, all is alike.
        least = base / 1e9 or 1.0
        return {group: max(least, added[group]) ** exponent for group in widths}
