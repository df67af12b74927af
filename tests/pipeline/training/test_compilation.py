"""Compiled training: the same network, without a trace of the wrapper, or a clear word on what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from growpipe.data import Loaders
from growpipe.graph_ops.errors import MissingEnvironment, UsageError
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.data_free import random_plan
from growpipe.seeding import seed_everything
from growpipe.torch_module.export import export_growth_form, named_tensors
from growpipe.torch_module.grow_module import grow, plan_for_module, save_grown
from growpipe.training.compilation import compiled, compiler_errors
from growpipe.training.evaluation import Objective
from growpipe.training.optimizers import make_optimizer
from growpipe.training.options import TrainingOptions
from growpipe.training.train import TrainingStage, train

pytestmark = pytest.mark.slow

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="no C++ compiler: torch.compile cannot be tried on the CPU",
)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """What was compiled for one test is no help and no harm to the next."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def loaders() -> Loaders:
    inputs = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, (inputs[:, 0] > 0).long())
    return Loaders(DataLoader(data, 8, shuffle=True), DataLoader(data, 32), DataLoader(data, 32))


def make_model() -> nn.Module:
    seed_everything(0, "seed network")
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.SiLU(), nn.Linear(6, 2))


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, settings: TrainingOptions) -> nn.Module:
    train(
        model,
        optimizer,
        Objective(loaders(), nn.functional.cross_entropy),
        settings,
        TrainingStage("s", 2),
    )
    return model


@needs_compiler
@pytest.mark.timeout(600)
def test_a_compiled_training_and_its_growth_are_those_of_the_plain_one(tmp_path: Path) -> None:
    results = []
    for compile_ in (False, True):
        torch._dynamo.utils.counters.clear()
        settings = TrainingOptions(optimizer="sgd", learning_rate=0.05, compile=compile_)
        model = make_model()
        names = list(model.state_dict())
        optimizer = make_optimizer(model, settings)
        trained(model, optimizer, settings)
        export = export_growth_form(model, (torch.zeros(2, 4),))
        plan = random_plan(find_channel_groups(export.graph), export.graph, growth=0.5, seed=1)
        grown = grow(model, plan_for_module(plan, model), optimizer=optimizer)
        compiled_graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        trained(grown, optimizer, settings)
        if compile_:
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > compiled_graphs > 0
        save_grown(grown, tmp_path / f"{compile_}.safetensors")
        assert list(grown.state_dict()) == names
        assert type(grown) is nn.Sequential
        assert not any("_orig_mod" in name for name in named_tensors(grown))
        assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
            id(p) for p in grown.parameters()
        }
        results.append(grown)
    for (name, plain), fast in zip(
        results[0].state_dict().items(), results[1].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5, msg=name)


def test_without_a_compiler_it_says_what_is_missing() -> None:
    import torch._inductor.config as config

    with (
        config.patch({"cpp.cxx": (None, "/nonexistent/g++"), "force_disable_caches": True}),
        pytest.raises(
            MissingEnvironment, match=r"train\.compile needs a C\+\+ compiler .* = false"
        ) as caught,
    ):
        compiled(make_model(), "cpu")
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_a_network_that_cannot_be_compiled_is_one_line() -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def backend(graph: object, inputs: object) -> None:
        raise RuntimeError("unheard-of operator\nand a page about it")

    model = torch.compile(make_model(), backend=backend)
    with (
        pytest.raises(
            UsageError, match=r"cannot be compiled: .*unheard-of operator.*compile = false"
        ) as caught,
        compiler_errors(True),
    ):
        model(torch.zeros(2, 4))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, BackendCompilerFailed)
