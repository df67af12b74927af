"""Every method of growth as a maker of split plans, so that all of them run on one harness."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from growpipe import analyse
from growpipe.analyser import Budget
from growpipe.export import GrowthExport, named_tensors
from growpipe.graph_ops.groups import ChannelGroups
from growpipe.graph_ops.plan import GroupSplit, SplitPlan
from growpipe.graph_ops.random_plan import net2net_plan, random_plan
from growpipe.graph_ops.tensors import Displacement
from growpipe.mirror import grow, plan_for_module, to_numpy

RANDOM_STEP = 0.5  # of the norm of the filter that is copied
GRADMAX_STEPS = 30


@dataclass(frozen=True)
class Moment:
    """Everything a method may look at when the network is to grow."""

    model: nn.Module
    loss_fn: Callable[[Any, Any], torch.Tensor]
    batches: list[tuple[Any, Any]]
    example_inputs: tuple[Any, ...]
    export: GrowthExport
    groups: ChannelGroups
    seed: int


# A maker takes the moment and either the channels to add by group, or a budget in MACs to spend freely.
Maker = Callable[[Moment, Mapping[str, int] | int], SplitPlan]


def signed(scheme: str, c: float) -> Maker:
    """S3D and S2D by the analyser."""

    def make(moment: Moment, target: Mapping[str, int] | int) -> SplitPlan:
        if isinstance(target, int):
            limits: dict[str, Any] = {"budget": Budget(macs=target), "growth": None}
        else:
            own = {group.name: group.width for group in moment.groups.groups if group.splittable}
            exact = {name: (width + target.get(name, 0),) * 2 for name, width in own.items()}
            limits = {"widths": exact, "growth": 10.0, "max_factor": 10.0}
        return analyse(
            moment.model,
            moment.loss_fn,
            moment.batches,
            moment.example_inputs,
            scheme=scheme,
            c=c,
            line_search_samples=384,
            seed=moment.seed,
            **limits,
        )

    return make


def random(moment: Moment, target: Mapping[str, int] | int) -> SplitPlan:
    """Signed coefficients and random directions, ``ε = 0.5`` of each filter's norm."""
    assert isinstance(target, Mapping)
    plan = random_plan(
        moment.groups, moment.export.graph, growth=target, epsilon=RANDOM_STEP, seed=moment.seed
    )
    plan = plan_for_module(plan, moment.model)
    tensors = named_tensors(moment.model)

    def scaled(split: GroupSplit, name: str, displacement: Displacement) -> Displacement:
        weight = np.moveaxis(to_numpy(tensors[name]), displacement.axis, 0)
        norms = np.linalg.norm(weight.reshape(len(weight), -1), axis=1)
        factor = norms[split.source[displacement.channels]]
        values = displacement.values * factor.reshape(-1, *[1] * (displacement.values.ndim - 1))
        return replace(displacement, values=values.astype(displacement.values.dtype))

    groups = tuple(
        replace(split, displacements={n: scaled(split, n, d) for n, d in split.displacements.items()})
        for split in plan.groups
    )
    return replace(plan, groups=groups)


def net2net(moment: Moment, target: Mapping[str, int] | int) -> SplitPlan:
    """Exact duplication (Net2WiderNet, arXiv 1511.05641)."""
    assert isinstance(target, Mapping)
    plan = net2net_plan(moment.groups, moment.export.graph, growth=target, seed=moment.seed)
    return plan_for_module(plan, moment.model)


def gradmax(moment: Moment, target: Mapping[str, int] | int) -> SplitPlan:
    """New neurons with zero outgoing weights, whose gradient will be the largest (GradMax, arXiv 2201.05125).

    As a plan, a new neuron is a copy with coefficient 0, displaced to where it should be. The incoming
    weights maximise the norm of the gradient of the outgoing ones under the norm of the filters that are
    there, by projected ascent on it: the paper's singular vectors are the optimum for one linear layer, the
    ascent is its form for convolutions behind batch norm and activations.
    """
    assert isinstance(target, Mapping)
    base = net2net(moment, target)
    groups = []
    for split in base.groups:
        coefficient = np.concatenate([np.ones(split.width), np.zeros(split.grown_width - split.width)])
        groups.append(replace(split, coefficient=coefficient))
    base = replace(base, groups=tuple(groups), scheme="gradmax")
    made = {
        split.group: next(m for m in moment.groups[split.group].members if m.role == "made" and m.axis == 0)
        for split in base.groups
    }
    grown = grow(moment.model, base).eval()
    parameters = {name: p.detach().clone() for name, p in grown.named_parameters()}
    buffers = dict(grown.named_buffers())
    generator = torch.Generator().manual_seed(moment.seed)
    fresh: dict[str, torch.Tensor] = {}
    norms: dict[str, torch.Tensor] = {}
    for split in base.groups:
        weight = parameters[made[split.group].tensor]
        norms[split.group] = weight[: split.width].flatten(1).norm(dim=1).mean()
        shape = weight[split.width :].shape
        fresh[split.group] = torch.randn(shape, generator=generator).requires_grad_()
    consumers = {
        split.group: {m.tensor for m in moment.groups[split.group].members if m.role == "mixed"}
        for split in base.groups
    }
    inputs, targets = moment.batches[0]

    def on_sphere(group: str) -> torch.Tensor:
        rows = fresh[group].flatten(1)
        return (rows / rows.norm(dim=1, keepdim=True) * norms[group]).view_as(fresh[group])

    optimizer = torch.optim.Adam(fresh.values(), lr=0.1)
    for _ in range(GRADMAX_STEPS):
        current = dict(parameters)
        for split in base.groups:
            name = made[split.group].tensor
            # The input axis of the new filters may have grown too, by neurons that give nothing yet.
            current[name] = torch.cat([current[name][: split.width], on_sphere(split.group)])
        outgoing = {
            name: current[name].detach().requires_grad_() for names in consumers.values() for name in names
        }
        differentiable = {
            name: value + (current[name] - current[name].detach()) for name, value in outgoing.items()
        }
        output = torch.func.functional_call(grown, {**current, **differentiable, **buffers}, (inputs,))
        gradients = torch.autograd.grad(
            moment.loss_fn(output, targets), list(outgoing.values()), create_graph=True
        )
        score = torch.stack([g.square().sum() for g in gradients]).sum()
        optimizer.zero_grad()
        (-score / score.detach()).backward()
        optimizer.step()
    splits = []
    for split in base.groups:
        member = made[split.group]
        layout = base.layouts[member.tensor]
        source = split.source[split.width :]
        weight = named_tensors(moment.model)[member.tensor]
        # Displacements are in the coordinates of the original tensor: the inputs that were there before.
        wanted = on_sphere(split.group).detach()[(slice(None), *(slice(0, n) for n in layout.shape[1:]))]
        values = to_numpy(wanted - weight[torch.from_numpy(source)])[:, None]
        displacement = Displacement(0, np.arange(split.width, split.grown_width), values)
        splits.append(replace(split, displacements={member.tensor: displacement}))
    return replace(base, groups=tuple(splits), epsilon=1.0)


METHODS: dict[str, Maker] = {
    "s3d-m2-c3": signed("m2", 3.0),
    "s3d-m4-c2": signed("m4", 2.0),
    "s2d": signed("s2d", 1.0),
    "random": random,
    "net2net": net2net,
    "gradmax": gradmax,
}
"""Methods that grow; ``free`` growth (widths of their own) is for those that can choose."""

CHOOSERS = ("s3d-m2-c3", "s3d-m4-c2", "s2d")
