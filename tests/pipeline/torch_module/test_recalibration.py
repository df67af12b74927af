"""Recalibration: the plain average of real statistics, in step with growth, and out of the way otherwise."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from growpipe import grow, recalibrate
from growpipe.data import Loaders
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.data_free import random_plan
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.grow_module import plan_for_module
from growpipe.training.evaluation import Objective, evaluate
from growpipe.training.optimizers import make_optimizer
from growpipe.training.options import TrainingOptions
from growpipe.training.train import TrainingStage, train


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 2),
    )


def make_batches(count: int = 4, dtype: torch.dtype = torch.float32) -> list[tuple[Any, Any]]:
    generator = torch.Generator().manual_seed(1)
    images = 3.0 + 2.0 * torch.randn(count * 8, 2, 6, 6, generator=generator, dtype=dtype)
    targets = (images.mean((1, 2, 3)) > 3.0).long()
    return list(zip(images.split(8), targets.split(8), strict=True))


def test_the_statistics_are_the_average_over_the_batches() -> None:
    model = make_model().double().eval()
    before = copy.deepcopy(model.state_dict())
    batches = make_batches(dtype=torch.float64)
    assert recalibrate(model, batches, samples=32) == 32
    with torch.no_grad():
        made = [model[0](inputs) for inputs, _ in batches]
    mean = torch.stack([value.mean((0, 2, 3)) for value in made]).mean(0)
    variance = torch.stack([value.var((0, 2, 3)) for value in made]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    assert not any(module.training for module in model.modules())
    assert model[1].momentum == 0.1
    for name, tensor in model.state_dict().items():
        assert ("running" in name) != torch.equal(tensor, before[name]), name


def test_as_many_batches_as_the_samples_need() -> None:
    one, two = make_model(), make_model()
    assert recalibrate(one, make_batches(), samples=9) == 16
    recalibrate(two, make_batches(2), samples=16)
    assert torch.equal(one[5].running_var, two[5].running_var)


def test_what_was_there_before_does_not_matter() -> None:
    fresh, stale = make_model(), make_model()
    with torch.no_grad():
        stale[1].running_mean.fill_(17.0)
        stale[1].running_var.fill_(1e-3)
    for model in (fresh, stale):
        recalibrate(model, make_batches())
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, stale.state_dict()[name]), name


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_recalibrated_and_grown_is_grown_and_recalibrated_at_epsilon_0(epsilon: float) -> None:
    model = make_model().double().eval()
    batches = make_batches(dtype=torch.float64)
    recalibrate(model, batches)
    graph = export_growth_form(model, (batches[0][0],)).graph
    plan = random_plan(find_channel_groups(graph), graph, growth=0.6, epsilon=epsilon, seed=3)
    grown = grow(model, plan_for_module(plan, model)).eval()
    inputs = batches[0][0]
    with torch.no_grad():
        expected, stale = model(inputs), grown(inputs)
        recalibrate(grown, batches)
        fresh = grown(inputs)
    if epsilon == 0:
        torch.testing.assert_close(stale, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(fresh, expected, rtol=1e-9, atol=1e-9)
    else:
        # The displaced copies have statistics of their own: the ones gathered from the parent are stale.
        assert not torch.allclose(fresh, stale, rtol=1e-3, atol=1e-3)


def test_frozen_statistics_and_other_networks_are_left_alone() -> None:
    model = make_model()
    model[1].momentum = 0.0
    before = copy.deepcopy(model.state_dict())
    recalibrate(model, make_batches())
    assert torch.equal(model[1].running_mean, before["1.running_mean"])
    assert not torch.equal(model[5].running_mean, before["5.running_mean"])
    assert recalibrate(nn.Linear(2, 2), []) == 0


def test_an_error_leaves_the_old_statistics() -> None:
    model = make_model().eval()
    before = copy.deepcopy(model.state_dict())

    def broken() -> Iterator[Any]:
        yield make_batches()[0]
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        recalibrate(model, broken())
    infinite = [(torch.full((8, 2, 6, 6), float("inf")), torch.zeros(8))]
    with pytest.raises(UsageError, match="statistics of '1' are not finite"):
        recalibrate(model, infinite)
    with pytest.raises(UsageError, match="recalibration got no batches"):
        recalibrate(model, [])
    with pytest.raises(UsageError, match="at least one sample"):
        recalibrate(model, make_batches(), samples=0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(module.training for module in model.modules())


def test_training_ends_with_recalibrated_statistics_and_their_validation() -> None:
    batches = make_batches()
    objective = Objective(Loaders(batches, batches, batches), nn.functional.cross_entropy)
    trained = {}
    for samples in (0, 32):
        model = make_model()
        settings = TrainingOptions(recalibrate=samples, learning_rate=0.05)
        optimizer = make_optimizer(model, settings)
        history = train(model, optimizer, objective, settings, TrainingStage("s", 3))
        held_out = evaluate(model, batches, objective)
        assert history[-1].validation_loss == held_out.loss
        trained[samples] = model
    for (name, plain), tensor in zip(trained[0].named_parameters(), trained[32].parameters(), strict=True):
        assert torch.equal(plain, tensor), name
    expected = copy.deepcopy(trained[0])
    recalibrate(expected, batches, samples=32)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, trained[32].state_dict()[name]), name


def test_a_training_killed_after_its_last_epoch_ends_with_the_same_statistics(tmp_path: Path) -> None:
    batches = make_batches()
    settings = TrainingOptions(recalibrate=32, learning_rate=0.05)
    states, histories = [], []

    class Killed(BaseException):
        pass

    class Fragile(list):
        left = 0

        def __iter__(self) -> Iterator[Any]:
            self.left -= 1
            if self.left == 0:
                raise Killed
            return super().__iter__()

    for dies in (False, True):
        data = Fragile(batches)
        data.left = 3 if dies else 0  # two epochs, then the recalibration

        def run() -> None:
            model = make_model()
            history = train(
                model,
                make_optimizer(model, settings),
                Objective(Loaders(data, batches, batches), nn.functional.cross_entropy),  # noqa: B023
                settings,
                TrainingStage("s", 2, checkpoint=tmp_path / str(dies), key="k"),  # noqa: B023
            )
            states.append(model.state_dict())
            histories.append(history)

        if dies:
            with pytest.raises(Killed):
                run()
        run()
    assert histories[0] == histories[1]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_a_training_of_no_epochs_is_none_at_all() -> None:
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    settings = TrainingOptions(recalibrate=32)
    batches = make_batches()
    history = train(
        model,
        make_optimizer(model, settings),
        Objective(Loaders(batches, batches, batches), nn.functional.cross_entropy),
        settings,
        TrainingStage("s", 0),
    )
    assert history == []
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
