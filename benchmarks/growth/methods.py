"""Every method of growth as a maker of split plans, so that all of them run on one harness."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from growpipe import analyse
from growpipe.analyser import GrowthBudget
from growpipe.graph_ops.axes.dims import axis_map, channel_rows
from growpipe.graph_ops.groups.channel_groups import ChannelGroups
from growpipe.graph_ops.plan.data_free import net2net_plan, random_plan
from growpipe.graph_ops.plan.grow_tensor import Displacement
from growpipe.graph_ops.plan.split_plan import GroupSplit, SplitPlan
from growpipe.torch_module.export import GrowthExport, named_tensors
from growpipe.torch_module.grow_module import grow, plan_for_module
from growpipe.torch_module.outputs import to_numpy

RANDOM_STEP = 0.5  # of the norm of the filter that is copied
GRADMAX_STEPS = 30
KEPT = 2**30  # bytes between products: to keep all is cheaper than to compute it again


@dataclass(frozen=True)
class Moment:
    """Everything a method may look at when the network is to grow.

    Attributes:
        batches: training data: the analysis set, and then as many samples for trials.
        samples: of the analysis set.
    """

    model: nn.Module
    loss_fn: Callable[[Any, Any], torch.Tensor]
    batches: list[tuple[Any, Any]]
    samples: int
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
            limits: dict[str, Any] = {"budget": GrowthBudget(macs=target), "growth": None}
        else:
            own = {group.name: group.width for group in moment.groups.groups if group.splittable}
            exact = {name: width + target.get(name, 0) for name, width in own.items()}
            limits = {"min_widths": exact, "max_widths": exact, "growth": 10.0, "max_factor": 10.0}
        return analyse(
            moment.model,
            moment.loss_fn,
            moment.batches,
            moment.example_inputs,
            scheme=scheme,
            c=c,
            max_samples=moment.samples,
            line_search_samples=384,
            ranking_samples=2 * moment.samples,
            memory_limit=KEPT,
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
        rows = channel_rows(plan.layouts[name].axes[displacement.axis].dim, split.group)
        weight = np.moveaxis(to_numpy(tensors[name]), displacement.axis, 0)[rows]
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


def uneven(moment: Moment, target: Mapping[str, int] | int) -> SplitPlan:
    """Exact copies, the k-th with k times the outgoing weight of the first (SPARKLING, arXiv 2602.02472)."""
    plan = net2net(moment, target)
    groups = []
    for split in plan.groups:
        rank = np.array([np.count_nonzero(split.source[:i] == s) + 1 for i, s in enumerate(split.source)])
        total = np.bincount(split.source, rank, split.width)
        groups.append(replace(split, coefficient=rank / total[split.source]))
    return replace(plan, groups=tuple(groups), scheme="uneven")


def padded(moment: Moment, target: Mapping[str, int] | int) -> SplitPlan:
    """New neurons with random filters of the mean norm and outgoing weights of zero: padding with noise."""
    plan = net2net(moment, target)
    tensors = named_tensors(moment.model)
    generator = np.random.default_rng(moment.seed)
    groups = []
    for split in plan.groups:
        coefficient = np.concatenate([np.ones(split.width), np.zeros(split.grown_width - split.width)])
        channels = np.arange(split.width, split.grown_width)
        displacements = {}
        for member in moment.groups[split.group].members:
            if member.role != "made":
                continue
            rows = channel_rows(plan.layouts[member.tensor].axes[member.axis].dim, split.group)
            weight = np.moveaxis(to_numpy(tensors[member.tensor]), member.axis, 0)[rows]
            wanted = generator.normal(0.0, weight.std(), (len(channels), *weight.shape[1:]))
            values = (wanted - weight[split.source[channels]]).astype(weight.dtype)
            displacements[member.tensor] = Displacement(member.axis, channels, values)
        groups.append(replace(split, coefficient=coefficient, displacements=displacements))
    return replace(plan, groups=tuple(groups), epsilon=1.0, scheme="padded")


def best_random(moment: Moment, target: Mapping[str, int] | int) -> SplitPlan:
    """Of eight random growths the one with the least loss right after it."""

    def loss(plan: SplitPlan) -> float:
        grown = grow(moment.model, plan).eval()
        with torch.no_grad():
            return sum(float(moment.loss_fn(grown(x), y)) for x, y in moment.batches)

    plans = [random(replace(moment, seed=8 * moment.seed + number), target) for number in range(8)]
    return min(plans, key=loss)


@dataclass(frozen=True)
class Incoming:
    """Weights that make the neurons of a group, along axis 0 of one tensor.

    Attributes:
        group: the group's name.
        tensor: the tensor's name.
        rows: int64 [neurons, rows per neuron], of the neurons that are there.
        fresh: int64 [new neurons, rows per neuron], of the new ones in the grown tensor.
        inputs: by other axis the source and the coefficient of every grown entry.
    """

    group: str
    tensor: str
    rows: torch.Tensor
    fresh: torch.Tensor
    inputs: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @staticmethod
    def of(plan: SplitPlan, split: GroupSplit, tensor: str) -> Incoming:
        first, *others = plan.layouts[tensor].axes
        channel = axis_map(first.dim, plan.offspring).channel[split.group]
        order = np.argsort(channel, kind="stable")
        fresh = order[channel[order] >= split.width].reshape(split.grown_width - split.width, -1)
        inputs = []
        for axis in others:
            grown = axis_map(axis.dim, plan.offspring)
            scale = grown.coefficient if axis.role == "mixed" else np.ones_like(grown.coefficient)
            inputs.append((torch.from_numpy(grown.source), torch.from_numpy(scale).float()))
        rows = torch.from_numpy(channel_rows(first.dim, split.group))
        return Incoming(split.group, tensor, rows, torch.from_numpy(fresh), tuple(inputs))

    def into(self, weight: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """The grown ``weight`` with the new neurons' ``values``, [new, rows per neuron, *original inputs]."""
        grown = values.flatten(0, 1)
        for axis, (source, scale) in enumerate(self.inputs, start=1):
            shape = (-1, *[1] * (grown.ndim - axis - 1))
            grown = grown.index_select(axis, source) * scale.reshape(shape)
        return weight.index_copy(0, self.fresh.flatten(), grown)


def gradmax(moment: Moment, target: Mapping[str, int] | int) -> SplitPlan:
    """New neurons with zero outgoing weights, whose gradient will be the largest (GradMax, arXiv 2201.05125).

    As a plan, a new neuron is a copy with coefficient 0, displaced to where it should be. The incoming
    weights maximise the norm of the gradient of the outgoing ones under the norm of the neurons that are
    there, by projected ascent on it: the paper's singular vectors are the optimum for one linear layer, the
    ascent is its form for convolutions behind batch norm and activations. They are in the coordinates of the
    original inputs: what is new among the inputs gives nothing yet.
    """
    assert isinstance(target, Mapping)
    moment = replace(moment, model=copy.deepcopy(moment.model).cpu())  # one batch: no work for a GPU
    base = net2net(moment, target)
    groups = []
    for split in base.groups:
        coefficient = np.concatenate([np.ones(split.width), np.zeros(split.grown_width - split.width)])
        groups.append(replace(split, coefficient=coefficient))
    base = replace(base, groups=tuple(groups), scheme="gradmax")
    tensors = named_tensors(moment.model)
    made = {
        split.group: [
            Incoming.of(base, split, member.tensor)
            for member in moment.groups[split.group].members
            if member.role == "made" and member.axis == 0
        ]
        for split in base.groups
    }
    grown = grow(moment.model, base).eval()
    parameters = {name: p.detach().clone() for name, p in grown.named_parameters()}
    buffers = dict(grown.named_buffers())
    generator = torch.Generator().manual_seed(moment.seed)
    fresh: dict[str, torch.Tensor] = {}
    norms: dict[str, torch.Tensor] = {}
    for split in base.groups:
        there = torch.cat([tensors[i.tensor].detach()[i.rows].flatten(1) for i in made[split.group]], dim=1)
        norms[split.group] = there.norm(dim=1).mean()
        shape = (split.grown_width - split.width, there.shape[1])
        fresh[split.group] = torch.randn(shape, generator=generator).requires_grad_()
    consumers = {m.tensor for s in base.groups for m in moment.groups[s.group].members if m.role == "mixed"}
    inputs, targets = moment.batches[0]

    def on_sphere(group: str) -> list[tuple[Incoming, torch.Tensor]]:
        """By tensor the weights of the new neurons, [new, rows per neuron, *original inputs]."""
        neurons = fresh[group] / fresh[group].norm(dim=1, keepdim=True) * norms[group]
        shapes = [(i.fresh.shape[1], *tensors[i.tensor].shape[1:]) for i in made[group]]
        parts = neurons.split([math.prod(shape) for shape in shapes], dim=1)
        return [(i, p.unflatten(1, shape)) for i, p, shape in zip(made[group], parts, shapes, strict=True)]

    optimizer = torch.optim.Adam(fresh.values(), lr=0.1)
    for _ in range(GRADMAX_STEPS):
        current = dict(parameters)
        for group in made:
            for incoming, values in on_sphere(group):
                current[incoming.tensor] = incoming.into(current[incoming.tensor], values)
        outgoing = {name: current[name].detach().requires_grad_() for name in sorted(consumers)}
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
        source = torch.from_numpy(split.source[split.width :])
        channels = np.arange(split.width, split.grown_width)
        displacements = {}
        for incoming, wanted in on_sphere(split.group):
            copied = tensors[incoming.tensor].detach()[incoming.rows[source]]
            displacements[incoming.tensor] = Displacement(0, channels, to_numpy(wanted.detach() - copied))
        splits.append(replace(split, displacements=displacements))
    return replace(base, groups=tuple(splits), epsilon=1.0)


METHODS: dict[str, Maker] = {
    "s3d-m2-c3": signed("m2", 3.0),
    "s3d-m4-c2": signed("m4", 2.0),
    "s3d-m4-c1.25": signed("m4", 1.25),
    "s3d-m4-c3": signed("m4", 3.0),
    "s2d": signed("s2d", 1.0),
    "random": random,
    "net2net": net2net,
    "uneven": uneven,
    "padded": padded,
    "best-random": best_random,
    "gradmax": gradmax,
}
"""Methods that grow; ``free`` growth (widths of their own) is for those that can choose."""

CHOOSERS = ("s3d-m2-c3", "s3d-m4-c2", "s3d-m4-c1.25", "s2d")
