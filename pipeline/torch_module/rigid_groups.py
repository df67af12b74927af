"""Channel groups that the ONNX graph can grow and the module cannot: ``forward`` spells out a length.

``x.view(n, 16)`` follows no growth of 16 channels, and nothing in the module says so before it runs. So it is
tried: every group gets one more channel, and the wider module has to compute what the module computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from growpipe.graph_ops.groups.channel_groups import ChannelGroups
from growpipe.graph_ops.plan.data_free import net2net_plan
from growpipe.torch_module.grow_module import grow, plan_for_module
from growpipe.torch_module.outputs import output_tensors

__all__ = ["rigid_groups"]

_TOLERANCE = 1e-3  # of the output's scale: rounding is far below, a wrong reshape far above


def rigid_groups(
    model: nn.Module, graph: ir.Model, groups: ChannelGroups, example_inputs: tuple[Any, ...]
) -> dict[str, str]:
    """By name the splittable groups that ``model`` cannot follow, and what happens when it should.

    Args:
        model: in eval mode.
        graph: its growth form.
        groups: of ``graph``.
        example_inputs: positional inputs of ``model``, on its device.
    """
    names = [group.name for group in groups.groups if group.splittable]
    with torch.no_grad():
        expected = _floating(model(*example_inputs))
        if not names or _fault(model, graph, groups, names, example_inputs, expected) is None:
            return {}
        faults = {name: _fault(model, graph, groups, [name], example_inputs, expected) for name in names}
    return {name: fault for name, fault in faults.items() if fault is not None}


def _fault(
    model: nn.Module,
    graph: ir.Model,
    groups: ChannelGroups,
    names: Sequence[str],
    inputs: tuple[Any, ...],
    expected: Sequence[torch.Tensor],
) -> str | None:
    plan = plan_for_module(net2net_plan(groups, graph, growth=dict.fromkeys(names, 1)), model)
    try:
        found = _floating(grow(model, plan)(*inputs))
    except Exception as error:  # the user's forward may raise anything
        return " ".join(str(error).split())[:200] or type(error).__name__
    for value, reference in zip(found, expected, strict=True):
        if value.shape != reference.shape:
            return f"the output has shape {tuple(value.shape)}, not {tuple(reference.shape)}"
        scale = reference.abs().max() if reference.numel() else 0.0
        if not torch.all((value - reference).abs() <= _TOLERANCE * scale):
            return "the output changes"
    return None


def _floating(output: Any) -> list[torch.Tensor]:
    return [tensor.float() for tensor in output_tensors(output) if tensor.is_floating_point()]
