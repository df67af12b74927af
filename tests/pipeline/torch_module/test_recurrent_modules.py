"""`nn.LSTM`, `nn.GRU` and `nn.RNN`: hidden units split in the module, in its graph and in the optimizer."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from growpipe.analyser import analyse
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.edit.history import read_history
from growpipe.graph_ops.plan.data_free import net2net_plan, random_plan
from growpipe.torch_module.export import GrowthExport, export_growth_form
from growpipe.torch_module.grow_module import grow, load_grown, plan_for_module, save_grown
from growpipe.torch_module.module_fit import fit_module
from tests.helpers.text_models import ort_run

pytestmark = pytest.mark.slow

HIDDEN, INPUTS = 4, 5


class Network(nn.Module):
    """A recurrent module between two linear maps; the last state of its last layer is read, too."""

    def __init__(self, kind: type[nn.RNNBase], **options: bool | int | str) -> None:
        super().__init__()
        sides = 2 if options.get("bidirectional") else 1
        self.embed = nn.Linear(3, INPUTS)
        self.body = kind(INPUTS, HIDDEN, **{"batch_first": True, **options})
        self.head = nn.Linear(sides * HIDDEN, 3)
        self.last = nn.Linear(HIDDEN, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.embed(x))
        states, last = self.body(hidden if self.body.batch_first else hidden.transpose(0, 1))
        states = states if self.body.batch_first else states.transpose(0, 1)
        state = last[0] if isinstance(last, tuple) else last
        return self.head(states).mean(1) + self.last(state[-1])


NETWORKS = {
    "LSTM": lambda: Network(nn.LSTM, num_layers=2, bidirectional=True),
    "GRU": lambda: Network(nn.GRU, num_layers=2, bias=False),
    "RNN": lambda: Network(nn.RNN, nonlinearity="relu", bidirectional=True),
    "steps first": lambda: Network(nn.LSTM, batch_first=False),
}


def samples() -> torch.Tensor:
    return torch.randn(7, 3, 3, generator=torch.Generator().manual_seed(1))


@functools.cache
def exported(name: str) -> tuple[nn.Module, GrowthExport]:
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    return model, export_growth_form(model, (samples()[:2],))


WIDTHS = {"embed.weight": (INPUTS, 7), "body.weight_ih_l0": (HIDDEN, 6)}


@pytest.mark.parametrize("name", NETWORKS)
def test_hidden_units_split_in_the_module_and_in_the_graph(name, tmp_path):
    model, export = exported(name)
    x, groups = samples(), export.groups()
    assert {group.name for group in groups.groups if group.splittable} == WIDTHS.keys()
    fit = fit_module(model, export.graph, groups, (x[:2],))
    assert (fit.rigid, fit.sizes) == ({}, ())
    plan = random_plan(groups, export.graph, growth=0.5, epsilon=0.05, seed=3)
    plan = plan_for_module(plan, model)
    for epsilon in (0.0, plan.epsilon):
        grown, graph = (
            grow(model, plan.with_epsilon(epsilon)),
            grow_graph(export.graph, plan.with_epsilon(epsilon)),
        )
        with torch.no_grad():
            after, before = grown(x).numpy(), model(x).numpy()
        (rewritten,) = ort_run(graph, {str(graph.graph.inputs[0].name): x.numpy()})
        scale = np.abs(before).max()
        assert np.abs(after - rewritten).max() <= 1e-5 * scale
        assert (np.abs(after - before).max() <= 1e-5 * scale) == (epsilon == 0.0)
    assert (grown.body.hidden_size, grown.body.input_size) == (6, 7)
    assert [step.widths for step in read_history(graph)] == [WIDTHS]
    save_grown(grown, tmp_path / "grown.safetensors")
    loaded = load_grown(NETWORKS[name]().eval(), tmp_path / "grown.safetensors")
    assert (loaded.body.hidden_size, loaded.body.input_size) == (6, 7)
    with torch.no_grad():
        assert torch.equal(loaded(x), grown(x))


def test_net2net_copies_units():
    model, export = exported("LSTM")
    plan = plan_for_module(net2net_plan(export.groups(), export.graph, growth=0.5), model)
    grown = grow(model, plan)
    with torch.no_grad():
        torch.testing.assert_close(grown(samples()), model(samples()))


def test_the_moments_of_the_optimizer_follow_gates_and_columns():
    torch.manual_seed(0)
    model = NETWORKS["GRU"]().double().eval()
    x = samples().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(x).square().sum().backward()
    optimizer.step()
    export = export_growth_form(model, (x[:2],))
    plan = plan_for_module(random_plan(export.groups(), export.graph, growth=0.5, seed=2), model)
    moments = {name: optimizer.state[p]["exp_avg"] for name, p in model.named_parameters()}
    grown = grow(model, plan.with_epsilon(0.0), optimizer=optimizer)
    offspring = plan.offspring["body.weight_ih_l0"]
    rows = moments["body.weight_hh_l0"].unflatten(0, (-1, HIDDEN))
    wanted = (
        rows[:, offspring.source][:, :, offspring.source] * torch.from_numpy(offspring.coefficient)[:, None]
    )
    found = optimizer.state[grown.body.weight_hh_l0]["exp_avg"]
    torch.testing.assert_close(found, wanted.flatten(0, 1))
    grown.zero_grad()
    before = grown.body.weight_hh_l0.detach().clone()
    grown(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(grown.body.weight_hh_l0, before)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_the_predicted_change_is_the_measured_one(name):
    torch.manual_seed(0)
    options = {"nonlinearity": "tanh", "bidirectional": True} if name == "RNN" else {"num_layers": 2}
    model = Network(getattr(nn, name), **options).double().eval()
    x = torch.randn(32, 3, 3, dtype=torch.float64)
    y = torch.randint(3, (32,))
    plan = analyse(
        model,
        functional.cross_entropy,
        [(x, y)],
        (x[:2],),
        scheme="m3",
        growth=0.5,
        epsilon=1e-3,
        hold_out=False,
        ranking="predicted",
        freeze=["embed.weight"],
    )
    assert plan.widths.keys() == {"body.weight_ih_l0"}
    with torch.no_grad():
        before, after = (functional.cross_entropy(m(x), y) for m in (model, grow(model, plan)))
    assert plan.predicted_change < 0
    assert float(after - before) / plan.predicted_change == pytest.approx(1.0, abs=1e-2)
