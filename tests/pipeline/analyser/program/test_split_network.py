"""The network whose channels are pairs, against the grown module: its loss and its slopes."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from growpipe.analyser.options import GrowthOptions
from growpipe.analyser.preparation import prepare
from growpipe.analyser.program.copies import Pair
from growpipe.analyser.program.split_network import SplitNetwork, split_networks
from growpipe.graph_ops.plan.grow_tensor import Displacement
from growpipe.graph_ops.plan.split_plan import GroupSplit, SplitPlan
from growpipe.torch_module.export import named_tensors
from growpipe.torch_module.grow_module import grow_into
from tests.helpers.splitting_cases import CASES, Problem, build

pytestmark = pytest.mark.slow

WEIGHTS = ((0.5, 0.5), (1.125, -0.125), (0.5, 0.5))
"""Of the copies, channel by channel in turn."""


def networks_of(problem: Problem, opposite: bool, without: Sequence[str] = ()) -> list[SplitNetwork]:
    """The groups in pairs; channels are no means of their copies where their consumers allow it."""
    layouts = problem.prepared.groups.layouts
    generator = torch.Generator().manual_seed(0)
    pairs = {}
    for group in problem.prepared.program.groups:
        weights = torch.tensor([WEIGHTS[c % 3 if not opposite else 0] for c in range(group.width)])
        delta = torch.randn(group.width, group.dimension, generator=generator, dtype=torch.float64)
        if group.name not in without:
            pairs[group.name] = Pair(weights.double().T, delta)
    return split_networks(problem.prepared.program, pairs, layouts)


def grown_loss(problem: Problem, network: SplitNetwork, steps: list[float]) -> float:
    """The loss of the module grown by the same copies."""
    groups, splits = problem.prepared.groups, []
    for group, step in zip(network.groups, steps, strict=True):
        pair, width = network.pairs[group.name], group.width
        delta = step * torch.cat([pair.displacement, pair.ratio[:, None] * pair.displacement])
        parts = delta.split(group.sizes, dim=-1)
        splits.append(
            GroupSplit(
                group=group.name,
                width=width,
                source=np.tile(np.arange(width), 2),
                coefficient=pair.weights.reshape(-1).numpy(),
                displacements={
                    block.tensor: Displacement(
                        block.axis,
                        np.arange(2 * width),
                        part.reshape(2 * width, block.rows.shape[1], *block.others).numpy(),
                    )
                    for block, part in zip(group.blocks, parts, strict=True)
                },
                predicted_change=None,
            )
        )
    tensors = named_tensors(problem.model)
    layouts = {n: at for n, at in groups.restricted([s.group for s in splits]).items() if n in tensors}
    plan = SplitPlan(
        groups=tuple(splits), layouts=layouts, epsilon=1.0, graph_hash=groups.graph_hash, parameters_hash="",
        scheme="m2", c=1.25, metric="euclidean", surrogate=None, predicted_change=None,
        module_sizes=problem.prepared.fit.sizes_of(split.group for split in splits),
    )  # fmt: skip
    return problem.loss(grow_into(copy.deepcopy(problem.model), problem.model, plan))


@pytest.mark.parametrize("opposite", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_grown_module(name: str, opposite: bool) -> None:
    problem = build(name, ("weights",) if opposite else ("weights", "filters", "biases", "affine"))
    networks = networks_of(problem, opposite)
    # Heads and the channels within them, a channel and its multiples: those split one after the other.
    assert len(networks) == (2 if name in {"attention", "depthwise"} else 1)
    for network in networks:
        check(problem, network)


def check(problem: Problem, network: SplitNetwork) -> None:
    """Its loss and slopes are those of the grown module."""
    steps = [0.3 + 0.1 * position for position in range(len(network.groups))]
    loss, slopes = network.slopes((problem.x,), problem.y, problem.loss_fn, steps)
    assert loss == pytest.approx(grown_loss(problem, network, steps), rel=1e-12)
    for position in range(len(steps)):
        ends = []
        for sign in (1, -1):
            moved = list(steps)
            moved[position] += sign * 1e-5
            ends.append(grown_loss(problem, network, moved))
        assert float(slopes[position]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-8)


def test_channels_that_are_no_means_stay_where_a_consumer_hides_them() -> None:
    # What the transposed convolution reads stands on the other axis of its weight.
    problem = build("transposed", ("weights",))
    (network,) = networks_of(problem, opposite=False)
    hidden = network.pairs["down.weight"]
    assert hidden.uniform
    assert (hidden.displacement[1] == 0).all()
    assert (hidden.displacement[0] != 0).all()
    assert not network.pairs["up.weight"].uniform


class Heads(nn.Module):
    """An attention whose heads split, and the queries and keys within them; in one product or two."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.heads, self.size, self.fused = 2, 3, fused
        self.qk = nn.Linear(4, 12) if fused else nn.ModuleList(nn.Linear(4, 6) for _ in range(2))
        self.v, self.o = nn.Linear(4, 4), nn.Linear(4, 4)
        self.up, self.down = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        split = self.qk(x).chunk(2, -1) if self.fused else [one(x) for one in self.qk]
        q, k = (one.reshape(*x.shape[:2], self.heads, self.size).transpose(1, 2) for one in split)
        v = self.v(x).reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)
        y = (torch.softmax(q @ k.mT * 0.6, -1) @ v).transpose(1, 2)
        x = x + self.o(y.reshape(*x.shape[:2], -1))
        return self.down(torch.tanh(self.up(x))).mean(1)


@pytest.mark.parametrize("fused", [False, True])
def test_heads_and_the_queries_and_keys_within_them_split_at_once(fused: bool) -> None:
    torch.manual_seed(0)
    model = Heads(fused).double().eval()
    x, y = torch.randn(6, 5, 4, dtype=torch.float64), torch.randint(0, 3, (6,))
    prepared = prepare(model, (x[:2],), GrowthOptions(), torch.device("cpu"))
    problem = Problem(model, cross_entropy, x, y, prepared)
    (network,) = networks_of(problem, opposite=True, without=("v.weight",))
    assert [bool(group.sums) for group in network.groups] == [False, True, False]
    check(problem, network)
    # Queries and keys that are no means of their copies stay as they are.
    (network,) = networks_of(problem, opposite=False, without=("v.weight",))
    assert not network.pairs[network.groups[1].name].displacement[1].any()
    check(problem, network)
