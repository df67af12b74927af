"""What may let new copies learn after a split, each behind one name, to be measured against none of it.

A split leaves copies that are nearly equal, and each has the gradient of its source times its coefficient.
These are the remedies that papers and arithmetic offer; `warm_start.py` measures them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from growpipe.graph_ops.axes.dims import axis_map
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.torch_module.added_copies import added_entries
from growpipe.torch_module.widen import reinitialise

__all__ = ["REMEDIES", "WARM", "rates_of"]

WARM, WARM_STEPS = 1.3, 100
KEPT, NOISE = 0.6, 0.1


def rates_of(grown: nn.Module, plan: SplitPlan) -> dict[nn.Parameter, torch.Tensor]:
    """By parameter of ``grown`` the factors that undo what the split did to effective steps under SGD.

    They are 1/Σw² for what makes a channel, and 1/m for the slices that read one of its m copies.
    """
    found = {}
    for name, parameter in grown.named_parameters():
        if name not in plan.layouts:
            continue
        rate = torch.ones(parameter.shape)
        for position, axis in enumerate(plan.layouts[name].axes):
            channels = axis_map(axis.dim, plan.offspring).channel
            shape = [-1 if other == position else 1 for other in range(parameter.ndim)]
            for split in plan.groups:
                if split.group not in channels:
                    continue
                own = channels[split.group]
                copies = np.bincount(split.source, minlength=split.width)
                squares = np.bincount(split.source, split.coefficient**2, split.width)
                inside = own >= 0
                factor = np.ones(len(own))
                source = split.source[own[inside]]
                factor[inside] = 1 / (copies if axis.role == "mixed" else squares)[source]
                rate *= torch.from_numpy(factor).float().reshape(shape)
        found[parameter] = rate
    return found


class _Rates:
    """Multiplies the steps of an optimizer entry by entry, for so many steps; None is for ever."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        factors: Mapping[nn.Parameter, torch.Tensor],
        steps: int | None,
    ) -> None:
        self.factors, self.left = factors, steps
        self.before: dict[nn.Parameter, torch.Tensor] = {}
        optimizer.register_step_pre_hook(self._remember)
        optimizer.register_step_post_hook(self._scale)

    def _remember(self, *_: Any) -> None:
        if self.left != 0:
            self.before = {parameter: parameter.detach().clone() for parameter in self.factors}

    @torch.no_grad()
    def _scale(self, *_: Any) -> None:
        if self.left == 0:
            return
        for parameter, factor in self.factors.items():
            before = self.before[parameter]
            parameter.copy_(before + factor * (parameter - before))
        self.left = None if self.left is None else self.left - 1


def _reset(grown: nn.Module, optimizer: torch.optim.Optimizer, plan: SplitPlan) -> None:
    """The optimizer's state of added copies begins anew; their sources keep theirs."""
    for parameter, added in added_entries(grown, plan).items():
        for value in optimizer.state[parameter].values():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                value[added] = 0.0


def _warm(grown: nn.Module, optimizer: torch.optim.Optimizer, plan: SplitPlan) -> None:
    """Added copies take steps of 1.3 times the size, for 100 steps (arXiv 2602.02472)."""
    factors = {p: 1.0 + (WARM - 1.0) * added for p, added in added_entries(grown, plan).items()}
    _Rates(optimizer, factors, WARM_STEPS)


def _rates(grown: nn.Module, optimizer: torch.optim.Optimizer, plan: SplitPlan) -> None:
    """Rates per tensor that undo what the split did to effective steps under SGD."""
    _Rates(optimizer, rates_of(grown, plan), None)


@torch.no_grad()
def _shrink(grown: nn.Module, optimizer: torch.optim.Optimizer, plan: SplitPlan) -> None:
    """Shrink and perturb (Ash and Adams, arXiv 1910.08475): 0.6 of the weights, 0.1 of a fresh network's."""
    fresh = reinitialise(copy.deepcopy(grown))
    for parameter, other in zip(grown.parameters(), fresh.parameters(), strict=True):
        if parameter.ndim > 1:
            parameter.mul_(KEPT).add_(other, alpha=NOISE)


Remedy = Callable[[nn.Module, torch.optim.Optimizer, SplitPlan], None]

REMEDIES: dict[str, Remedy] = {"reset": _reset, "warm": _warm, "rates": _rates, "shrink": _shrink}
"""By name what is done to grown network and optimizer right after the split."""
