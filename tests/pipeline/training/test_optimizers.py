"""Every optimizer of a recipe trains, is kept on disk, and follows the network's growth."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.plan.data_free import random_plan
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.grow_module import grow
from growpipe.torch_module.optimizer_state import load_optimizer, save_optimizer
from growpipe.training.optimizers import make_optimizer, try_optimizer
from growpipe.training.options import TrainingOptions

NAMES = [
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
    "sgd",
]
REFUSED = {
    "ASGD": "keeps 'ax' of '0.weight', which cannot be grown",
    "LBFGS": "per-parameter options",
    "Muon": "2D parameters",
    "SparseAdam": "does not support dense gradients|weight_decay",
}


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, SplitPlan]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    export = export_growth_form(model.eval(), (torch.randn(2, 3),))
    return model, random_plan(export.groups(), export.graph, growth=0.5, seed=0)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.linspace(-1, 1, 12).reshape(4, 3)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_its_state_is_kept_and_grows(name: str, network: tuple[nn.Module, SplitPlan], tmp_path: Path) -> None:
    model, plan = copy.deepcopy(network[0]), network[1]
    options = TrainingOptions(optimizer=name.upper(), learning_rate=0.01)
    optimizer = make_optimizer(model, options)
    assert type(optimizer).__name__.casefold() == name
    step(model, optimizer)
    save_optimizer(optimizer, model, tmp_path / "state.safetensors")
    again = make_optimizer(model, options)
    load_optimizer(again, model, tmp_path / "state.safetensors")
    model.load_state_dict(network[0].state_dict())  # the plan is of these values; the state stays
    grown = grow(model, plan, optimizer=again)
    assert {id(p) for g in again.param_groups for p in g["params"]} == {id(p) for p in grown.parameters()}
    before = [parameter.detach().clone() for parameter in grown.parameters()]
    step(grown, again)
    for old, new in zip(before, grown.parameters(), strict=True):
        assert new.isfinite().all()
        assert not torch.equal(old, new)


def test_options_reach_the_optimizer_or_are_refused_in_one_line() -> None:
    model = nn.Linear(2, 2)
    sgd = make_optimizer(model, TrainingOptions(optimizer="sgd", optimizer_options={"nesterov": True}))
    assert (sgd.defaults["nesterov"], sgd.defaults["momentum"]) == (True, 0.9)
    adam = make_optimizer(model, TrainingOptions(optimizer_options={"betas": [0.8, 0.95]}))
    assert adam.defaults["betas"] == (0.8, 0.95)
    with pytest.raises(UsageError, match=r"train\.optimizer_options do not fit adamw: .*'beta'"):
        make_optimizer(model, TrainingOptions(optimizer_options={"beta": 0.9}))


def of(model: nn.Module) -> torch.Tensor:
    loss: torch.Tensor = model(torch.ones(2, 3)).square().mean()
    return loss


def test_every_optimizer_of_torch_follows_growth_or_is_refused_before_training(
    network: tuple[nn.Module, SplitPlan],
) -> None:
    there = {
        name
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name != "Optimizer"
    }
    assert {name.casefold() for name in there} == {*NAMES, *(name.casefold() for name in REFUSED)}
    before = copy.deepcopy(network[0].state_dict())
    for name in NAMES:
        try_optimizer(network[0], TrainingOptions(optimizer=name), None, of)
    for name, message in REFUSED.items():
        with pytest.raises(UsageError, match=message) as refusal:
            try_optimizer(network[0], TrainingOptions(optimizer=name), None, of)
        assert "\n" not in str(refusal.value)
    assert all(torch.equal(value, before[name]) for name, value in network[0].state_dict().items())


def test_an_optimizer_of_the_users_own_is_named_and_tried(
    network: tuple[nn.Module, SplitPlan], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Signs(torch.optim.SGD):\n"
        "    @torch.no_grad()\n"
        "    def step(self):\n"
        "        for group in self.param_groups:\n"
        "            for p in group['params']:\n"
        "                p -= group['lr'] * p.grad.sign()\n"
        "                self.state[p]['exp_avg'] = p.grad.clone()\n"
        "class Odd(Signs):\n"
        "    def step(self):\n"
        "        for p in self.param_groups[0]['params']:\n"
        "            self.state[p]['history'] = torch.ones(7)\n"
    )
    try_optimizer(network[0], TrainingOptions(optimizer="mine.py:Signs"), tmp_path, of)
    with pytest.raises(UsageError, match=r"keeps 'history' of '0\.weight', which cannot be grown"):
        try_optimizer(network[0], TrainingOptions(optimizer="mine.py:Odd"), tmp_path, of)
    with pytest.raises(UsageError, match=r"torch\.optim has no optimizer 'rmsprob'; did you mean 'rmsprop'"):
        try_optimizer(network[0], TrainingOptions(optimizer="rmsprob"), tmp_path, of)
