"""A network of two channel groups, as a selection sees it: what it costs and what it may split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from growpipe.analyser.candidates import Candidates
from growpipe.analyser.choice.growth_limits import GrowthLimits
from growpipe.analyser.options import GrowthOptions
from growpipe.analyser.schemes import scheme_of
from growpipe.budgets.budget import GrowthBudget
from growpipe.graph_ops.axes.dims import Atom
from growpipe.graph_ops.cost.cost import CostModel, CostTerm

__all__ = ["COST", "candidates", "limits"]

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


def limits(
    growth: float | None = 0.3,
    budget: GrowthBudget | None = None,
    widths: Mapping[str, tuple[int | None, int | None]] | None = None,
    balance: float = 0.0,
    **options: Any,
) -> GrowthLimits:
    """Limits with a share of 0.3, in which groups compete for all; ``widths`` are least and greatest ones."""
    least, most = ({g: pair[k] for g, pair in (widths or {}).items() if pair[k] is not None} for k in (0, 1))
    chosen = GrowthOptions(share=growth, balance=balance, min_widths=least, max_widths=most, **options)
    return GrowthLimits(chosen, budget)
