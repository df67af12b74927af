"""Which entries of a grown module belong to copies that a split added, and how much they learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from growpipe.graph_ops.axes.dims import axis_map
from growpipe.graph_ops.plan.split_plan import SplitPlan

__all__ = ["added_entries", "gradient_ratio"]


def added_entries(grown: nn.Module, plan: SplitPlan) -> Mapping[nn.Parameter, torch.Tensor]:
    """By parameter of ``grown`` that the plan touches, which entries belong to an added copy, on any axis.

    A channel's first copy keeps its place and counts as old; see `GroupSplit`.
    """
    widths = {split.group: split.width for split in plan.groups}
    found = {}
    for name, parameter in grown.named_parameters():
        if name not in plan.layouts:
            continue
        added = torch.zeros(parameter.shape, dtype=torch.bool)
        for position, axis in enumerate(plan.layouts[name].axes):
            shape = [-1 if other == position else 1 for other in range(parameter.ndim)]
            for group, channels in axis_map(axis.dim, plan.offspring).channel.items():
                if group in widths:
                    added |= torch.from_numpy(channels >= widths[group]).reshape(shape)
        found[parameter] = added
    return found


def gradient_ratio(
    grown: nn.Module, plan: SplitPlan, loss: Callable[[nn.Module], torch.Tensor]
) -> float | None:
    """The gradient of weights of added copies over that of the others, each in root mean square.

    New copies whose gradient is small beside that of the old ones learn slowly: a copy with the coefficient w
    has w times the gradient of its source. Vectors (biases, norms) are left out.

    Args:
        grown: its gradients are removed.
        plan: the split that made it.
        loss: of ``grown`` on some batch.

    Returns:
        None if there is no gradient, or no added entry.
    """
    grown.zero_grad()
    loss(grown).backward()
    squares, counts = {True: 0.0, False: 0.0}, {True: 0, False: 0}
    for parameter, added in added_entries(grown, plan).items():
        if parameter.grad is None or parameter.ndim < 2:
            continue
        for new in (True, False):
            chosen = parameter.grad[added == new]
            squares[new] += float(chosen.double().square().sum())
            counts[new] += chosen.numel()
    grown.zero_grad()
    if not all(counts.values()) or squares[False] == 0.0:
        return None
    return math.sqrt(squares[True] / counts[True]) / math.sqrt(squares[False] / counts[False])
