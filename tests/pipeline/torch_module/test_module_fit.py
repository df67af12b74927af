"""Modules that keep lengths beside their parameters: which integers follow a group, which group is rigid."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from growpipe import analyse
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import NothingToSplit, UsageError
from growpipe.graph_ops.groups.channel_groups import ChannelGroups
from growpipe.graph_ops.plan.data_free import random_plan
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.torch_module.export import GrowthExport, export_growth_form
from growpipe.torch_module.grow_module import grow, grow_into, load_grown, plan_for_module, save_grown
from growpipe.torch_module.integers import get_integer
from growpipe.torch_module.module_fit import ModuleFit, fit_module
from tests.helpers.text_models import ort_run

pytestmark = pytest.mark.slow


class Literal(nn.Module):
    """The first hidden layer is reshaped to a literal width, the second is not."""

    def __init__(self, free: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 5)
        self.last = nn.Linear(5, 2)
        self.free = free

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x)).view(-1, 6)
        hidden = torch.tanh(self.second(hidden))
        return self.last(hidden if self.free else hidden.view(-1, 5))


class Projection(nn.Module):
    """A linear layer that keeps its own width, as that of GPT-2 does."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.nf = after
        self.weight = nn.Parameter(0.5 * torch.randn(before, after))
        self.bias = nn.Parameter(0.5 * torch.randn(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], self.nf)


class Attention(nn.Module):
    """Heads and their width are spelt out; so is how the projection is divided."""

    def __init__(self, width: int, heads: int, channels: int) -> None:
        super().__init__()
        self.heads, self.channels = heads, channels
        self.inner = heads * channels
        self.project = Projection(width, 3 * self.inner)
        self.back = Projection(self.inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        parts = [
            part.view(batch, tokens, self.heads, self.channels).transpose(1, 2)
            for part in self.project(x).split(self.inner, dim=2)
        ]
        mixed = nn.functional.scaled_dot_product_attention(*parts)
        return x + self.back(mixed.transpose(1, 2).reshape(batch, tokens, self.inner))


class Block(nn.Module):
    """Attention and a layer of four times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = Attention(width, 3, 2)
        self.rise, self.fall = Projection(width, 4 * width), Projection(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attention(x)
        return x + self.fall(torch.tanh(self.rise(x)))


class Sizes(nn.Module):
    """Lengths in a list, in a nested tuple, and a multiple of one."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [3, 5]
        self.shapes = ((8,), (7, 4))
        self.flat = 28
        self.stem, self.left, self.right = nn.Linear(4, 8), nn.Linear(3, 5), nn.Linear(5, 2)
        self.mid, self.last = nn.Linear(7, 7), nn.Linear(28, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = torch.tanh(self.stem(x)).split(self.sizes, dim=1)
        joined = torch.cat([self.left(left), self.right(right)], dim=1)
        wide = torch.tanh(self.mid(joined)).view(-1, self.shapes[1][0], 1).expand(-1, -1, self.shapes[1][1])
        return self.last(wide.reshape(-1, self.flat))


class Configured(nn.Module):
    """Two layers that read their widths from one configuration."""

    class Layer(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.config = config
            self.rise, self.fall = nn.Linear(4, config.width), nn.Linear(config.width, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fall(torch.tanh(self.rise(x)).view(-1, self.config.width))

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(width=6, depth=2)
        self.first, self.second = self.Layer(self.config), self.Layer(self.config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class Either(nn.Module):
    """A change of either of two integers makes forward follow."""

    def __init__(self) -> None:
        super().__init__()
        self.width = self.most = 6
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x)).view(-1, max(self.width, self.most)))


def fitted(model: nn.Module, x: torch.Tensor) -> tuple[GrowthExport, ChannelGroups, ModuleFit]:
    export = export_growth_form(model.eval(), (x,))
    groups = export.groups()
    return export, groups, fit_module(model, export.graph, groups, (x,))


def rigid(model: nn.Module, x: torch.Tensor) -> dict[str, str]:
    return dict(fitted(model, x)[2].rigid)


def check_lockstep(model: nn.Module, x: torch.Tensor) -> tuple[ModuleFit, SplitPlan]:
    """Every group that is not rigid grows; the module and the graph agree, at ε = 0 with what they were."""
    export, groups, fit = fitted(model, x)
    growth = {
        group.name: 1 + position % 2
        for position, group in enumerate(groups.groups)
        if group.splittable and group.name not in fit.rigid
    }
    drawn = random_plan(groups, export.graph, growth=growth, epsilon=0.05, seed=3)
    plan = plan_for_module(drawn, model, fit.sizes, fit.pairs, fit.joined)
    name = str(export.graph.graph.inputs[0].name)
    for epsilon in (0.0, plan.epsilon):
        at = plan.with_epsilon(epsilon)
        with torch.no_grad():
            grown, original = grow(model, at)(x).numpy(), model(x).numpy()
        (rewritten,) = ort_run(grow_graph(export.graph, at), {name: x.numpy()})
        scale = np.abs(grown).max()
        assert np.abs(grown - rewritten).max() <= 1e-5 * scale
        if epsilon == 0.0:
            assert np.abs(grown - original).max() <= 1e-5 * scale
    return fit, plan


def followers(fit: ModuleFit) -> dict[str, set[str]]:
    return {size.name: set(size.groups) for size in fit.sizes}


def test_a_group_that_is_spelt_out_is_found_and_the_others_are_not() -> None:
    found = rigid(Literal(), torch.randn(3, 4))
    assert found.keys() == {"first.weight"}
    assert "shape" in found["first.weight"]
    assert "no integer of a module equals its width" in found["first.weight"]


def test_a_module_that_follows_has_none() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))
    assert rigid(model, torch.randn(2, 1, 4, 4)) == {}


def test_the_analyser_leaves_rigid_groups_alone() -> None:
    torch.manual_seed(0)
    inputs, target = torch.randn(256, 4), torch.randint(0, 2, (256,))
    batches = [(inputs, target)]
    plan = analyse(Literal(), nn.functional.cross_entropy, batches, (inputs[:2],), growth=0.5)
    assert set(plan.widths) == {"second.weight"}
    assert plan.notes["analysis"]["rigid"].keys() == {"first.weight"}
    with pytest.raises(NothingToSplit, match=r"works with the present channel count alone.*first\.weight"):
        analyse(Literal(free=False), nn.functional.cross_entropy, batches, (inputs[:2],))


class Unused(nn.Module):
    """A branch is computed and thrown away; the graph does not have it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.branch = nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x))
        self.branch(hidden)
        return self.last(hidden)


def test_a_branch_that_no_output_needs_is_named() -> None:
    found = rigid(Unused(), torch.randn(2, 4))
    assert "(in branch, Linear, which no output needs: remove its call)" in found["first.weight"]


def test_widths_and_heads_follow_in_every_block(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block(4), Block(4), nn.Linear(4, 3))
    with caplog.at_level(logging.DEBUG, "growpipe"):
        fit, _ = check_lockstep(model, torch.randn(2, 5, 4))
    for block in "01":
        heads, rise = f"{block}.attention.project.weight", f"{block}.rise.weight"
        found = {name: groups for name, groups in followers(fit).items() if name.startswith(block)}
        assert found == {
            f"{block}.attention.heads": {heads},
            f"{block}.attention.inner": {heads},
            f"{block}.attention.project.nf": {heads},
            f"{block}.rise.nf": {rise},
        }
    # Query, key and value have one width in the module, from which it computes the scale.
    assert all("attention.project.weight#" in name for name in fit.rigid)
    assert all("F.scaled_dot_product_attention without scale=" in reason for reason in fit.rigid.values())
    assert len(fit.rigid) == 4
    assert any("tried 0.rise.nf 16 to 17: follows" in message for message in caplog.messages)


def test_lists_tuples_and_multiples_follow() -> None:
    torch.manual_seed(0)
    model = Sizes()
    fit, plan = check_lockstep(model, torch.randn(3, 4))
    assert fit.rigid == {}
    names = set(followers(fit))
    assert {"sizes[0]", "sizes[1]", "shapes[1][0]", "flat"} <= names
    grown = grow(model, plan)
    assert grown.flat == 4 * grown.shapes[1][0] > 28
    assert grown.shapes[0] == (8,), "a length of another layer that forward does not read"
    assert (model.sizes, model.shapes, model.flat) == ([3, 5], ((8,), (7, 4)), 28)


def test_a_shared_configuration_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = Configured()
    fit, plan = check_lockstep(model, torch.randn(3, 4))
    assert set(followers(fit)) == {"first.config.width", "second.config.width"}
    grown = grow(model, plan)
    assert (grown.first.config.width, grown.second.config.width) == (7, 8)
    assert grown.config.width == 6
    assert model.first.config is model.config
    assert model.config.width == 6


def test_an_ambiguous_choice_leaves_the_group_rigid_and_is_named() -> None:
    reasons = rigid(Either(), torch.randn(3, 4))
    assert reasons.keys() == {"first.weight"}
    assert "ambiguous: a change of most and of width makes it follow alike" in reasons["first.weight"]


def test_an_analysis_says_what_follows_and_weights_on_disk_bring_it_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Projection(4, 6), nn.Tanh(), Projection(6, 3))
    x, target = torch.randn(256, 4), torch.randint(0, 3, (256,))
    plan = analyse(model, nn.functional.cross_entropy, [(x, target)], (x[:2],), growth=0.5, epsilon=0.1)
    assert [size.name for size in plan.module_sizes] == ["0.nf"]
    plan.save(tmp_path / "plan")
    loaded = SplitPlan.load(tmp_path / "plan")
    assert loaded.module_sizes == plan.module_sizes
    assert loaded.content_hash == plan.content_hash
    grown = grow(model, loaded)
    assert grown[0].nf == 9
    save_grown(grown, tmp_path / "weights")
    back = load_grown(nn.Sequential(Projection(4, 6), nn.Tanh(), Projection(6, 3)), tmp_path / "weights")
    torch.testing.assert_close(back(x), grown(x), rtol=0.0, atol=0.0)
    save_grown(back, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "weights").read_bytes()


def test_a_copy_that_is_grown_again_keeps_no_integer_of_the_plan_before() -> None:
    torch.manual_seed(0)
    model = Configured().eval()
    x = torch.randn(3, 4)
    export, groups, fit = fitted(model, x)
    copied = copy.deepcopy(model)
    for name in ("first.rise.weight", "second.rise.weight"):
        drawn = random_plan(groups, export.graph, growth={name: 2})
        plan = plan_for_module(drawn, model, fit.sizes, fit.pairs, fit.joined)
        torch.testing.assert_close(grow_into(copied, model, plan)(x), model(x))
    assert get_integer(copied.first, "config.width") == 6


def test_a_plan_of_another_module_is_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Projection(4, 6), nn.Tanh(), Projection(6, 3))
    _, plan = check_lockstep(model, torch.randn(3, 4))
    model[0].nf = 7
    with pytest.raises(UsageError, match=r"0\.nf is 7, not 6"):
        grow(model, plan)


class Masked(nn.Module):
    """One logit of three is masked; the hidden layer may be spelt out."""

    def __init__(self, literal: bool) -> None:
        super().__init__()
        self.first, self.last, self.literal = nn.Linear(4, 6), nn.Linear(6, 3), literal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x))
        # Of a wider layer only the first six channels are read, so that the output changes without an error.
        hidden = hidden[:, :6] @ self.last.weight[:, :6].T if self.literal else self.last(hidden)
        return hidden.masked_fill(torch.tensor([False, True, False]), -torch.inf)


@pytest.mark.parametrize("literal", [False, True])
def test_masked_outputs_neither_hide_a_change_nor_are_one(literal: bool) -> None:
    torch.manual_seed(0)
    model, x = Masked(False), torch.randn(3, 4)
    export = export_growth_form(model.eval(), (x,))
    model.literal = literal
    fit = fit_module(model, export.graph, export.groups(), (x,))
    assert set(fit.rigid) == ({"first.weight"} if literal else set())


def test_outputs_that_are_not_finite_are_no_fault_of_the_widths() -> None:
    torch.manual_seed(0)
    model, x = Either(), torch.randn(3, 4)
    with torch.no_grad():
        model.last.bias.fill_(torch.nan)
    with pytest.raises(UsageError, match="Either gives no finite value on the example inputs"):
        fitted(model, x)
