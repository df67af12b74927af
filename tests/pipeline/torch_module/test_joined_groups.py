"""Groups that a module follows only together, since one of its integers serves them all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from growpipe.analyser import analyse
from growpipe.budgets.budget import GrowthBudget
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.plan.data_free import net2net_plan, random_plan
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.grow_module import grow, load_grown, plan_for_module, save_grown
from growpipe.torch_module.module_fit import fit_module
from growpipe.torch_module.widen import largest_multiple, with_widths
from tests.helpers.text_models import ort_run

pytestmark = pytest.mark.slow

HEADS = 2


class Attention(nn.Module):
    """Queries, keys and values are views of ``head_dim`` channels; the scale is kept or computed."""

    def __init__(self, head_dim: int = 4, kept: bool = True, rotary: bool = False) -> None:
        super().__init__()
        self.head_dim, self.rotary = head_dim, rotary
        self.scaling = 0.5 if kept else None
        self.q, self.k, self.v = (nn.Linear(6, HEADS * head_dim) for _ in "qkv")
        self.o = nn.Linear(HEADS * head_dim, 5)
        self.register_buffer("frequencies", 0.3 ** torch.arange(head_dim // 2))

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * self.frequencies
        cos, sin = (torch.cat([part, part], -1) for part in (angles.cos(), angles.sin()))
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(x).view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        if self.rotary:
            q, k = self.turned(q), self.turned(k)
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=self.scaling)
        return self.o(mixed.transpose(1, 2).flatten(2))


class Fused(nn.Module):
    """One projection of queries, keys and values; it spells out the width and the heads."""

    def __init__(self, width: int = 8, heads: int = HEADS) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.embed, self.norm, self.out = nn.Linear(5, width), nn.LayerNorm(width), nn.Linear(width, 3)
        self.qkv, self.back = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        batch, tokens, width = x.shape
        q, k, v = (
            part.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm(x)).split(self.width, dim=2)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(self.norm(x + self.back(mixed)))


class Multiple(nn.Module):
    """Values have twice the width of keys, which is kept nowhere; eval mode keeps a table of every head."""

    def __init__(self, key_dim: int = 4) -> None:
        super().__init__()
        self.heads, self.key_dim, self.scale = 3, key_dim, key_dim**-0.5
        self.project, self.back = nn.Linear(6, 12 * key_dim), nn.Linear(6 * key_dim, 5)
        self.slopes = nn.Parameter(torch.randn(3))
        self.table: torch.Tensor | None = None

    def train(self, mode: bool = True) -> Multiple:
        self.table = None if mode else self.table
        return super().train(mode)

    def distances(self) -> torch.Tensor:
        if self.training or self.table is None:
            self.table = self.slopes[:, None, None] * torch.arange(25.0).reshape(5, 5)
        return self.table

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.project(x).view(-1, 5, self.heads, 4 * self.key_dim).transpose(1, 2)
        q, k, v = parts.split([self.key_dim, self.key_dim, 2 * self.key_dim], dim=3)
        logits = q @ k.mT * self.scale + self.distances()
        return self.back((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Fitted:
    """A module, its graph, and what the module makes of its groups."""

    def __init__(self, model: nn.Module, x: torch.Tensor, by_factor: bool = False) -> None:
        self.model, self.x = model.eval(), x
        self.export = export_growth_form(model, (x[:2],))
        self.graph, self.groups = self.export.graph, self.export.groups()
        whole = [g.name for g in self.groups.groups if g.whole_factor is not None] if by_factor else []
        self.fit = fit_module(model, self.graph, self.groups, (x[:2],), whole)

    def plan(self, plan: SplitPlan) -> SplitPlan:
        return plan_for_module(plan, self.model, self.fit.sizes, self.fit.pairs, self.fit.joined)

    def check_lockstep(self, plan: SplitPlan) -> None:
        with torch.no_grad():
            before = self.model(self.x).numpy()
        for epsilon, least in ((0.0, None), (0.05, 0.0), (0.2, 4e-6)):
            at = plan.with_epsilon(epsilon)
            with torch.no_grad():
                module = grow(self.model, at)(self.x).numpy()
            (graph,) = ort_run(grow_graph(self.graph, at), {self.graph.graph.inputs[0].name: self.x.numpy()})
            np.testing.assert_allclose(module, graph, atol=2e-6)
            moved = np.abs(module - before).max()
            assert moved <= 2e-6 if least is None else moved > least


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def tokens(count: int = 3, width: int = 6) -> torch.Tensor:
    return torch.randn(count, 5, width)


@pytest.mark.parametrize("rotary", [False, True])
def test_queries_keys_and_values_grow_in_equal_steps(rotary: bool) -> None:
    fitted = Fitted(Attention(rotary=rotary), tokens())
    assert fitted.fit.rigid == {}
    (joined,) = fitted.fit.joined
    assert (joined.names[1:], joined.step) == (("v.weight",), (1, 2) if rotary else (1, 1))
    drawn = random_plan(fitted.groups, fitted.graph, growth=0.3, epsilon=0.05, joined=fitted.fit.joined)
    assert joined.are_equal(drawn.widths)
    plan = fitted.plan(drawn)
    fitted.check_lockstep(plan)
    assert grow(fitted.model, plan).head_dim == drawn.widths["v.weight"]


def test_layers_of_one_rotary_table_grow_together() -> None:
    layers = [Attention(rotary=True) for _ in range(3)]
    for layer in layers[1:]:
        layer.frequencies = layers[0].frequencies
    first, second, third = layers
    fitted = Fitted(nn.Sequential(first, nn.Linear(5, 6), second, nn.Linear(5, 6), third), tokens())
    assert fitted.fit.rigid == {}
    (joined,) = fitted.fit.joined
    assert joined.names[1:] == ("0.v.weight", "2.v.weight", "4.v.weight")
    assert joined.step == (1, 2, 2, 2)
    drawn = random_plan(fitted.groups, fitted.graph, growth=0.3, epsilon=0.05, joined=fitted.fit.joined)
    fitted.check_lockstep(fitted.plan(drawn))


def test_the_grown_module_is_the_wide_one_that_is_built_by_hand() -> None:
    fitted = Fitted(Attention(), tokens())
    (joined,) = fitted.fit.joined
    plan = fitted.plan(net2net_plan(fitted.groups, fitted.graph, growth=joined.channels(2)))
    wide, own = Attention(6), fitted.model.state_dict()
    wide.load_state_dict({**wide.state_dict(), "o.bias": own["o.bias"]})
    copies = {split.group: split for split in plan.groups}
    pair, value = (copies[name] for name in joined.names)
    with torch.no_grad():
        for name, split, scaled in (("q", pair, True), ("k", pair, False), ("v", value, False)):
            scale = torch.tensor(split.coefficient if scaled else np.ones(6)).float()
            for kind in ("weight", "bias"):
                rows = own[f"{name}.{kind}"].unflatten(0, (HEADS, 4))[:, split.source]
                rows = rows * scale.reshape(1, 6, *[1] * (rows.ndim - 2))
                wide.get_parameter(f"{name}.{kind}").copy_(rows.flatten(0, 1))
        columns = own["o.weight"].unflatten(1, (HEADS, 4))[:, :, value.source]
        wide.o.weight.copy_((columns * torch.tensor(value.coefficient).float()).flatten(1))
        torch.testing.assert_close(wide(fitted.x), fitted.model(fitted.x))
        grown = grow(fitted.model, plan)
        for name, parameter in wide.named_parameters():
            torch.testing.assert_close(grown.get_parameter(name), parameter)
        torch.testing.assert_close(grown(fitted.x), wide(fitted.x))


def test_a_plan_of_unequal_steps_is_refused() -> None:
    fitted = Fitted(Attention(), tokens())
    (joined,) = fitted.fit.joined
    one = random_plan(fitted.groups, fitted.graph, growth={joined.names[1]: 1})
    with pytest.raises(UsageError, match=r"steps: 'q\.weight.*' from 4 to 4, 'v\.weight' from 4 to 5"):
        fitted.plan(one)
    unchecked = plan_for_module(one, fitted.model, fitted.fit.sizes, fitted.fit.pairs)
    with pytest.raises(UsageError, match="head_dim of the module is one size for the groups"):
        grow(fitted.model, unchecked)


def test_a_scale_that_follows_the_width_keeps_them_rigid() -> None:
    fitted = Fitted(Attention(kept=False), tokens())
    assert fitted.fit.joined == ()
    assert len(fitted.fit.rigid) == 2
    for name, why in fitted.fit.rigid.items():
        (other,) = fitted.fit.rigid.keys() - {name}
        assert why.startswith(f"it grows only together with {other!r}, and then a number")
        assert "F.scaled_dot_product_attention without scale=" in why


class Stacked(nn.Module):
    """One projection makes queries, keys and values of one width; the scale follows it."""

    def __init__(self, head_dim: int = 4) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv, self.o = nn.Linear(6, 3 * HEADS * head_dim), nn.Linear(HEADS * head_dim, 6)

    def forward(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:-1], 3, -1, self.head_dim).transpose(1, 3).unbind(2)
        mixed = functional.scaled_dot_product_attention(q * table, k * table, v)
        return self.o(mixed.transpose(1, 2).flatten(2))


class Tables(nn.Module):
    """Two layers whose tables lie outside of them, so that each could need an integer of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Stacked(), Stacked()])
        self.tables = nn.ParameterList([torch.randn(4), torch.randn(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, table in zip(self.layers, self.tables, strict=True):
            x = layer(x, table)
        return x


def test_a_group_that_only_its_scale_keeps_rigid_names_no_other_group() -> None:
    fitted = Fitted(Tables(), tokens())
    assert fitted.fit.joined == ()
    assert len(fitted.fit.rigid) == 2
    assert all(why.startswith("a number that it computes with") for why in fitted.fit.rigid.values())


@pytest.mark.parametrize("ranking", ["realised", "predicted"])
def test_an_analysis_within_a_budget_gives_them_equal_steps(tmp_path: Path, ranking: str) -> None:
    model = Attention().eval()
    x, target = tokens(64), torch.randn(64, 5, 5)
    parameters = sum(p.numel() for p in model.parameters())
    budget = GrowthBudget(parameters=int(1.8 * parameters))
    options: dict[str, Any] = {"ranking": ranking, "hold_out": False, "epsilon": 0.05}
    options |= {"max_widths": {"q.weight": HEADS}}
    plan = analyse(model, functional.mse_loss, [(x, target)], (x[:2],), budget=budget, **options)
    (names,) = plan.notes["analysis"]["joined"]
    widths = {name: plan.widths[name] for name in names}
    assert len(set(widths.values())) == 1 < min(widths.values()) - 3
    plan.save(tmp_path / "plan")
    loaded = SplitPlan.load(tmp_path / "plan")
    assert loaded.module_sizes == plan.module_sizes
    assert loaded.content_hash == plan.content_hash
    grown = grow(model, loaded)
    assert sum(p.numel() for p in grown.parameters()) <= budget.parameters
    assert grown.head_dim == widths["v.weight"]
    assert model.head_dim == 4
    save_grown(grown, tmp_path / "weights")
    back = load_grown(Attention(), tmp_path / "weights").eval()
    torch.testing.assert_close(back(x), grown(x), rtol=0.0, atol=0.0)


def test_a_stream_and_its_heads_double_together() -> None:
    fitted = Fitted(Fused(), tokens(width=5), by_factor=True)
    (joined,) = (one for one in fitted.fit.joined if one.by_factor)
    stream = next(g.name for g in fitted.groups.groups if g.whole_factor is not None)
    assert stream in joined.names
    drawn = random_plan(
        fitted.groups, fitted.graph, growth=0.0, epsilon=0.05, factors={stream: 2}, joined=fitted.fit.joined
    )
    assert drawn.widths == joined.widths(1)
    plan = fitted.plan(drawn)
    fitted.check_lockstep(plan)
    grown = grow(fitted.model, plan)
    assert (grown.width, grown.heads) == (16, 2 * HEADS)


def test_an_integer_may_be_multiplied_and_a_table_of_old_weights_is_dropped() -> None:
    fitted = Fitted(Multiple(), tokens())
    assert fitted.fit.rigid == {}
    (joined,) = fitted.fit.joined
    assert joined.step == (1, 2)
    plan = random_plan(fitted.groups, fitted.graph, growth=0.4, epsilon=0.05, joined=fitted.fit.joined)
    assert plan.widths == {"project.weight": 4, **joined.widths(2)}
    fitted.check_lockstep(fitted.plan(plan))
    assert fitted.model.table is not None
    grown = grow(fitted.model, fitted.plan(plan))
    assert (grown.heads, grown.key_dim, grown.table) == (4, 6, None)
    assert not any(module.training for module in grown.modules())


class Frozen(nn.Module):
    """Queries are a table that cannot grow; the values have the same width in the module."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = 4
        self.q, self.k, self.v, self.o = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).view(-1, 5, self.head_dim) for layer in (self.q, self.k, self.v))
        return self.o((q.exp() @ k.exp().mT).softmax(-1) @ v)


def test_a_group_that_cannot_split_and_needs_the_same_integer_is_named() -> None:
    fitted = Fitted(Frozen(), tokens())
    (why,) = fitted.fit.rigid.values()
    assert "head_dim may be the width of 'q.weight', too, which cannot split: MatMul" in why


def test_widths_of_a_rival_are_taken_in_equal_steps() -> None:
    fitted = Fitted(Attention(rotary=True), tokens())
    (joined,) = fitted.fit.joined
    own = {group.name: group.width for group in fitted.groups.groups if group.splittable}
    cost = fitted.groups.cost
    for share in (1.1, 1.7, 2.4):
        most = share * cost.parameters()
        widths = largest_multiple(own, lambda w, most=most: cost.parameters(w) <= most, joined=[joined])
        assert joined.are_equal(widths)
        assert cost.parameters(widths) <= most
    wider = with_widths(fitted.model, fitted.export, fitted.groups, widths, fitted.fit.sizes)
    assert wider.head_dim == widths["v.weight"] > 4
    assert wider(fitted.x).shape == fitted.model(fitted.x).shape


class Encoder(nn.Module):
    """A layer of torch's own, of which one integer is the width of the stream and of all heads together."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Linear(6, 8), body, nn.Linear(8, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        if isinstance(self.body, nn.MultiheadAttention):
            return self.head(self.body(h, h, h)[0])
        return self.head(
            self.body(h) if isinstance(self.body, nn.TransformerEncoderLayer) else self.body(h, h)
        )


def torch_attention() -> nn.Module:
    return Encoder(nn.MultiheadAttention(8, HEADS, batch_first=True))


TORCH_BODIES = {
    "MultiheadAttention": lambda: nn.MultiheadAttention(8, HEADS, batch_first=True),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(8, HEADS, 12),  # tokens first
    "Transformer": lambda: nn.Transformer(8, HEADS, 1, 1, 12, batch_first=True),
}


@pytest.mark.parametrize("name", TORCH_BODIES)
def test_the_stream_of_an_attention_of_torch_grows_with_whole_heads(name: str, tmp_path: Path) -> None:
    fitted = Fitted(Encoder(TORCH_BODIES[name]()), tokens(), by_factor=True)
    (joined,) = fitted.fit.joined
    assert joined.names[0] == "embed.weight"
    assert joined.by_factor == (not name.startswith("Multihead"))
    assert joined.step[1:] == (HEADS if joined.by_factor else 1,) * (len(joined.names) - 1)
    assert joined.step[0] == 8 if joined.by_factor else 4
    for fault in fitted.fit.rigid.values():
        assert "embed_dim follows 'embed.weight', " in fault
    steps = 1 if joined.by_factor else 2
    factors = {name: 2 for name in joined.names} if joined.by_factor else None
    growth = 0.0 if joined.by_factor else joined.channels(steps)
    plan = fitted.plan(
        random_plan(
            fitted.groups,
            fitted.graph,
            growth=growth,
            epsilon=0.05,
            factors=factors,
            joined=fitted.fit.joined,
        )
    )
    assert plan.widths == joined.widths(steps)
    fitted.check_lockstep(plan)
    grown = grow(fitted.model, plan)
    attentions = [m for m in grown.modules() if isinstance(m, nn.MultiheadAttention)]
    assert {(m.embed_dim, m.num_heads) for m in attentions} == {(16, 2 * HEADS)}
    save_grown(grown, tmp_path / "weights")
    back = load_grown(Encoder(TORCH_BODIES[name]()), tmp_path / "weights").eval()
    torch.testing.assert_close(back(fitted.x), grown(fitted.x), rtol=0.0, atol=0.0)


def mean_square(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x) - x[..., :1].sin()).square().mean()


@pytest.mark.parametrize("build", [lambda: Attention(rotary=True), torch_attention])
def test_the_predicted_change_of_joined_groups_is_the_measured_one(build: Callable[[], nn.Module]) -> None:
    model, x = build().double().eval(), tokens(32).double()
    target = x[..., :1].sin().expand_as(model(x))
    plan = analyse(
        model, functional.mse_loss, [(x, target)], (x[:2],), scheme="m3", growth=0.5, epsilon=1e-3,
        hold_out=False, ranking="predicted",
    )  # fmt: skip
    (names,) = plan.notes["analysis"]["joined"]
    assert set(names) <= plan.widths.keys()
    assert any(split.group in names and split.predicted_change < 0 for split in plan.groups)
    with torch.no_grad():
        measured = mean_square(grow(model, plan), x) - mean_square(model, x)
    assert float(measured) / plan.predicted_change == pytest.approx(1.0, abs=1e-2)


def test_the_change_of_a_doubled_stream_and_its_heads_is_of_second_order() -> None:
    """It is half of vᵀHv, with H the Hessian of the grown network at ε = 0 and v the displacements."""
    layer = nn.TransformerEncoderLayer(8, HEADS, 12, activation="gelu")
    fitted = Fitted(Encoder(layer).double(), tokens(8).double(), by_factor=True)
    drawn = random_plan(
        fitted.groups, fitted.graph, growth=0.0, epsilon=1e-3, factors=2, joined=fitted.fit.joined, seed=1
    )
    plan = fitted.plan(drawn)
    assert drawn.widths == fitted.fit.joined[0].widths(1)
    still, moved = (grow(fitted.model, plan.with_epsilon(epsilon)) for epsilon in (0.0, 1e-3))
    parameters = list(still.parameters())
    way = [(b - a).detach() for a, b in zip(parameters, moved.parameters(), strict=True)]
    with sdpa_kernel(SDPBackend.MATH):  # which has second derivatives
        base = mean_square(still, fitted.x)
    gradients = torch.autograd.grad(base, parameters, create_graph=True)
    along = sum((g * v).sum() for g, v in zip(gradients, way, strict=True))
    curved = torch.autograd.grad(along, parameters)
    predicted = sum((g * v).sum() for g, v in zip(curved, way, strict=True)) / 2
    with torch.no_grad():
        measured = mean_square(moved, fitted.x) - base
    assert abs(float(along.detach())) < 1e-3 * abs(float(predicted))
    assert float(measured / predicted) == pytest.approx(1.0, abs=1e-2)
