"""Whole networks, grown at random and compared with the original in onnxruntime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from growing import assert_same_function, random_plan
from torch import nn

from growpipe.graph_ops.groups import find_channel_groups
from growpipe.graph_ops.rewrite import grow_graph

FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {}


def family(*shape: int):
    """Register a network with the shape of one sample."""

    def register(build):
        FAMILIES[build.__name__.lower()] = (build, shape)
        return build

    return register


def export(model: nn.Module, shape: tuple[int, ...]) -> ir.Model:
    """The growth form: torch's exporter without its optimiser, dynamic batch."""
    example = torch.randn(2, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            optimize=False,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    return program.model


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """The network in eval mode, with batch-norm statistics that are not the trivial ones."""
    torch.manual_seed(0)
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model


def conv_bn(inputs: int, outputs: int, kernel: int = 3, act: type[nn.Module] = nn.ReLU, **options):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options),
        nn.BatchNorm2d(outputs),
        act(),
    )


@family(8)
class MLP(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 10), nn.Softplus(), nn.Linear(10, 3))


@family(3, 8, 8)
class FlattenCNN(nn.Sequential):
    """Convolutions flattened into a linear layer: the channel axis becomes channels times pixels."""

    def __init__(self):
        super().__init__(
            conv_bn(3, 6, act=nn.SiLU),
            nn.MaxPool2d(2),
            conv_bn(6, 8, act=nn.GELU),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 10),
            nn.ReLU6(),
            nn.Linear(10, 4),
        )


@family(3, 8, 8)
class MobileNetV1(nn.Sequential):
    def __init__(self):
        super().__init__(
            conv_bn(3, 6, stride=2),
            conv_bn(6, 6, groups=6),
            conv_bn(6, 10, 1),
            conv_bn(10, 20, groups=10),
            conv_bn(20, 12, 1, nn.Hardswish),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 4),
        )


class Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None):
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut or nn.Identity(), act or nn.Identity()

    def forward(self, x):
        return self.act(self.body(x) + self.shortcut(x))


@pytest.fixture(scope="module", params=FAMILIES)
def grown(request):
    build, shape = FAMILIES[request.param]
    model = export(seeded(build), shape)
    return model, grow_graph(model, random_plan(model)), shape, request.param


def test_every_hidden_channel_of_the_family_splits(grown):
    model, _, _, name = grown
    groups = find_channel_groups(model).groups
    declined = {g.name: str(g.barrier) for g in groups if not g.splittable}
    assert set(declined) <= DECLINED.get(name, set()) | {
        g.name for g in groups if g.barrier and g.barrier.operator in ("Input", "Output")
    }
    assert any(g.splittable for g in groups)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_growth_at_epsilon_zero_keeps_the_function(grown, batch):
    model, wider, shape, _ = grown
    assert sum(p.size for p in initializers(wider)) > sum(p.size for p in initializers(model))
    values = np.random.default_rng(batch).normal(size=(batch, *shape)).astype(np.float32)
    assert_same_function(model, wider, {model.graph.inputs[0].name: values})


DECLINED: dict[str, set[str]] = {}


def initializers(model: ir.Model) -> list[ir.TensorProtocol]:
    return [value.const_value for value in model.graph.initializers.values()]
