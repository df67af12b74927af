"""Growth of the module object itself, and of averages of its weights: EMA, schedule and GradScaler go on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.plan.data_free import random_plan
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.torch_module.export import export_growth_form, named_tensors
from growpipe.torch_module.grow_module import grow, grow_in_place, plan_for_module


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.SiLU(), nn.Flatten(), nn.Linear(3 * 4, 2), nn.Tanh()
    )


def plan_of(model: nn.Module, epsilon: float = 0.0) -> SplitPlan:
    training = model.training
    export = export_growth_form(model.eval(), (torch.randn(2, 1, 4, 4),))
    model.train(training)
    plan = random_plan(export.groups(), export.graph, growth=0.7, epsilon=epsilon, seed=1)
    return plan_for_module(plan, model)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    x = torch.randn(8, 1, 4, 4)
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=scaler is not None):
        loss = model(x).float().square().mean()
    if scaler is None:
        loss.backward()
        optimizer.step()
        return
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


def test_the_module_itself_becomes_what_grow_returns() -> None:
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    step(model, optimizer, None)
    other = copy.deepcopy(model)
    its_optimizer = torch.optim.AdamW(other.parameters(), lr=0.01)
    its_optimizer.load_state_dict(optimizer.state_dict())
    plan = plan_of(model, epsilon=0.1)
    holder, inner, kept = nn.ModuleList([model]), model[0], model[4].bias
    grow_in_place(model, plan, optimizer)
    expected = grow(other, plan, its_optimizer)
    assert holder[0] is model
    assert model[0] is inner
    assert model[4].bias is kept, "what keeps its shape stays the same object"
    assert repr(model) == repr(expected)
    assert model[0].out_channels == 5
    for _ in range(2):
        for name, tensor in named_tensors(expected).items():
            torch.testing.assert_close(named_tensors(model)[name], tensor, rtol=0, atol=0)
        torch.manual_seed(1)
        step(model, optimizer, None)
        torch.manual_seed(1)
        step(expected, its_optimizer, None)
    assert optimizer.param_groups[0]["params"] == list(model.parameters())
    assert optimizer.state.keys() == set(model.parameters())


def test_ema_schedule_and_grad_scaler_go_on() -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(2):
        step(model, optimizer, scaler)
        average.update_parameters(model)
        schedule.step()
    x = torch.randn(4, 1, 4, 4)
    before = average.eval()(x)
    inside = average.module
    grow_in_place(model, plan_of(model), optimizer, averaged=[average])
    assert average.module is inside
    torch.testing.assert_close(average(x), before, rtol=1e-5, atol=1e-6)
    assert int(average.n_averaged) == 2
    momentum = {id(p): optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()}
    values = {name: tensor.clone() for name, tensor in average.module.named_parameters()}
    step(model, optimizer, scaler)
    average.update_parameters(model)
    schedule.step()
    for name, parameter in model.named_parameters():
        assert momentum[id(parameter)].shape == parameter.shape
        expected = 0.9 * values[name] + 0.1 * parameter
        torch.testing.assert_close(average.module.get_parameter(name), expected, rtol=1e-5, atol=1e-6)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 8)
    assert scaler.get_scale() == 64.0


def test_grow_takes_averages_too_and_refuses_those_of_other_networks() -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = AveragedModel(model)
    plan, shape = plan_of(model), model[0].weight.shape
    other = nn.Sequential(nn.Conv2d(1, 2, 3))
    for grown in (grow, grow_in_place):
        with pytest.raises(UsageError, match=r"^an average is not of this Sequential: they differ in '0.wei"):
            grown(model, plan, optimizer, [average, other])
        assert model[0].weight.shape == average.module[0].weight.shape == shape
        assert optimizer.param_groups[0]["params"][0] is model[0].weight
    wider = grow(model, plan, optimizer, [average])
    assert average.module[0].weight.shape == wider[0].weight.shape != shape
    torch.testing.assert_close(average.module[0].weight, wider[0].weight)
    assert average.module[0].weight is not wider[0].weight


def test_tied_weights_stay_tied_and_shared_sizes_are_taken() -> None:
    model = make()
    model.append(nn.Linear(2, 2, bias=False))
    model.append(nn.Linear(2, 2, bias=False))
    model[7].weight = model[6].weight
    grow_in_place(model, plan_of(model))
    assert model[7].weight is model[6].weight
    assert model[4].in_features == model[4].weight.shape[1] == 5 * 4
    assert model(torch.randn(2, 1, 4, 4)).shape == (2, 2)
