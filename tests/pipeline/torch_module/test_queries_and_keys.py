"""Queries and keys of modules: pairs of channels split in the module and in its graph alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from growpipe.analyser import analyse
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import NothingToSplit, UsageError
from growpipe.graph_ops.plan.data_free import random_plan
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.grow_module import grow, plan_for_module
from growpipe.torch_module.module_fit import fit_module
from tests.helpers.text_models import ort_run


class Attention(nn.Module):
    """One weight for queries and keys of two heads; rotary pairs; a scale that is kept or computed."""

    def __init__(self, kept: bool, rotary: bool) -> None:
        super().__init__()
        self.qk, self.v = nn.Linear(6, 16), nn.Linear(6, 4)
        self.rotary = rotary
        self.scale = 0.5 if kept else None
        self.register_buffer("frequencies", torch.tensor([1.0, 0.3]))

    def turned(self, x):
        angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * self.frequencies
        cos, sin = (torch.cat([part, part], -1) for part in (angles.cos(), angles.sin()))
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def forward(self, x):
        q, k = self.qk(x).unflatten(-1, (2, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        v = self.v(x).unflatten(-1, (2, -1)).transpose(1, 2)
        if self.rotary:
            q, k = self.turned(q), self.turned(k)
        return functional.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2)


def grown_twice(model: nn.Module, x: torch.Tensor, epsilon: float):
    """What the module and its graph compute once grown by one plan."""
    graph, _, plan = planned(model, x)
    at = plan.with_epsilon(epsilon)
    with torch.no_grad():
        module = grow(model, at)(x).numpy()
    (rewritten,) = ort_run(grow_graph(graph, at), {graph.graph.inputs[0].name: x.numpy()})
    return module, rewritten


def planned(model: nn.Module, x: torch.Tensor):
    export = export_growth_form(model, (x[:2],))
    groups = export.groups()
    fit = fit_module(model, export.graph, groups, (x[:2],))
    growth = {g.name: 2 for g in groups.groups if g.splittable and g.name not in fit.rigid}
    plan = random_plan(groups, export.graph, growth=growth, epsilon=0.1, seed=2)
    return export.graph, groups, plan_for_module(plan, model, fit.sizes, fit.pairs, fit.joined)


@pytest.mark.parametrize("rotary", [False, True])
def test_module_and_graph_grow_alike(rotary):
    torch.manual_seed(0)
    model, x = Attention(kept=True, rotary=rotary).eval(), torch.randn(3, 5, 6)
    with torch.no_grad():
        before = model(x).numpy()
    _, groups, plan = planned(model, x)
    (folded,) = {m.tensor for g in groups.groups for m in g.members if m.role == "folded"} - {"qk.bias"}
    assert folded == "qk.weight"
    assert plan.grow_parameter("qk.weight", model.qk.weight.detach().numpy()).shape == (
        (32, 6) if rotary else (24, 6)
    )
    for epsilon, tolerance in ((0.0, 1e-6), (0.1, None)):
        module, graph = grown_twice(model, x, epsilon)
        np.testing.assert_allclose(module, graph, atol=2e-6)
        moved = np.abs(module - before).max()
        assert moved <= tolerance if tolerance else moved > 1e-4


def test_moments_of_an_optimizer_follow_queries_and_keys():
    """The moments of the grown network are the gradients that it has."""
    torch.manual_seed(0)
    model, x = Attention(kept=True, rotary=True).double().eval(), torch.randn(3, 5, 6).double()
    _, _, plan = planned(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    model(x).square().sum().backward()
    optimizer.step()
    grown = grow(model, plan.with_epsilon(0.0), optimizer=optimizer)
    grown(x).square().sum().backward()
    for parameter in grown.parameters():
        torch.testing.assert_close(optimizer.state[parameter]["momentum_buffer"], parameter.grad)


class Scaled(nn.Module):
    """Queries that only a learned scale of 1 + w lets take coefficients."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.w = nn.Linear(6, 4), nn.Linear(6, 4), nn.Parameter(torch.randn(4))

    def forward(self, x):
        q, k = torch.tanh(self.q(x)) * (1.0 + self.w), torch.tanh(self.k(x))
        return torch.softmax(q @ k.mT, -1) @ x


def test_a_scale_of_one_and_a_parameter_takes_the_coefficients(tmp_path):
    """The state of the optimizer is that of a gradient, to which the 1 adds nothing."""
    torch.manual_seed(0)
    model, x = Scaled().double().eval(), torch.randn(3, 5, 6).double()
    _, groups, plan = planned(model, x)
    assert [m.tensor for g in groups.groups for m in g.members if m.role == "folded"] == ["w"]
    plan.save(tmp_path / "plan")
    plan = SplitPlan.load(tmp_path / "plan")
    (split,) = plan.groups
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    model(x).square().sum().backward()
    optimizer.step()
    grown = grow(model, plan.with_epsilon(0.0), optimizer=optimizer)
    wanted = torch.tensor(split.coefficient) * (1.0 + model.w[split.source]) - 1.0
    torch.testing.assert_close(grown.w, nn.Parameter(wanted))
    torch.testing.assert_close(grown(x), model(x))
    grown(x).square().sum().backward()
    for parameter in grown.parameters():
        torch.testing.assert_close(optimizer.state[parameter]["momentum_buffer"], parameter.grad)
    module, graph = grown_twice(model.float(), x.float(), 0.1)
    np.testing.assert_allclose(module, graph, atol=2e-6)


class Divided(Attention):
    """As `Attention`, with logits that are divided by the root of the width that queries have."""

    def forward(self, x):
        q, k = self.qk(x).unflatten(-1, (2, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        v = self.v(x).unflatten(-1, (2, -1)).transpose(1, 2)
        return (torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("kind", [Attention, Divided])
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_a_scale_that_follows_the_width_is_named(kind, size):
    """However small the logits are, and however little the output would change."""
    torch.manual_seed(0)
    model, x = kind(kept=False, rotary=False).eval(), torch.randn(3, 5, 6)
    with torch.no_grad():
        model.qk.weight.mul_(size)
        model.qk.bias.mul_(size)
    export = export_growth_form(model, (x,))
    groups = export.groups()
    (pair,) = (group for group in groups.groups if group.of_pairs)
    fit = fit_module(model, export.graph, groups, (x,))
    assert pair.splittable
    assert "F.scaled_dot_product_attention without scale=" in fit.rigid[pair.name]
    plan = plan_for_module(
        random_plan(groups, export.graph, growth={pair.name: 1}), model, fit.sizes, fit.pairs
    )
    with pytest.raises(UsageError, match="may compute its scale from their width"):
        grow(model, plan)


class Logits(nn.Module):
    """The products of queries and keys, as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.q, self.k = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(5, 4)

    def forward(self, x):
        h = torch.tanh(self.body(x))
        return self.q(h) @ self.k(h).mT


def test_products_that_are_an_output_are_left_out_of_an_analysis():
    torch.manual_seed(0)
    model, x = Logits().eval(), torch.randn(32, 5, 6)
    batches = [(x, torch.randn(32, 5, 5))]
    plan = analyse(model, functional.mse_loss, batches, (x[:2],), growth=0.4, hold_out=False)
    assert plan.widths == {"body.weight": 7}
    with pytest.raises(NothingToSplit, match="products of queries and keys"):
        analyse(model, functional.mse_loss, batches, (x[:2],), freeze=("body.weight",))


def test_a_plan_for_queries_and_keys_survives_the_disk(tmp_path):
    torch.manual_seed(0)
    model, x = Attention(kept=True, rotary=False).eval(), torch.randn(3, 5, 6)
    _, _, plan = planned(model, x)
    export = export_growth_form(model, (x[:2],))
    assert random_plan(export.groups(), export.graph, growth=0.5).unproved
    plan = replace(plan, unproved=("qk.weight",))
    plan.save(tmp_path / "plan")
    assert SplitPlan.load(tmp_path / "plan").content_hash == plan.content_hash
