"""Whole networks, grown at random and compared with the original in onnxruntime."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.onnx_tools.width_check import check_widths
from tests.helpers.growing import assert_same_function, signed_plan
from tests.helpers.networks import FAMILIES, seeded

pytestmark = pytest.mark.slow

# Channels of these families that reach something which does not treat them separately.
DECLINED: dict[str, dict[str, str]] = {
    "VisionTransformer": {
        "blocks.0.attention.qkv.weight#2": "the graph computes with the length of this axis",
        "blocks.1.attention.qkv.weight#2": "the graph computes with the length of this axis",
    },
    "PixelShuffle": {"wide.weight#2": "channels become pixels"},
    "shuffle_uneven": dict.fromkeys(
        ("0.0.weight", "1.0.weight", "3.0.weight:in"), "its inputs divide this axis into different parts"
    ),
    "TiedTranspose": dict.fromkeys(
        ("first.weight", "hidden.weight"), "'hidden.weight' both mixes and carries the channels on one axis"
    ),
}

# Those that are normalised over.
EVENLY = {
    "VisionTransformer": {"patch.weight"},
    "convnext": {"0.weight", "3.weight"},
    "group_norm": {"0.weight#2"},
}


def export(model: nn.Module, shape: tuple[int, ...], **options) -> ir.Model:
    """The growth form: torch's exporter without its optimiser, dynamic batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            model,
            (torch.randn(2, *shape),),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            **{"optimize": False, **options},
        )
    return program.model


@pytest.fixture(scope="module", params=FAMILIES)
def grown(request):
    build, shape = FAMILIES[request.param]
    model = export(seeded(build), shape)
    return model, grow_graph(model, signed_plan(model)), shape, request.param


def test_only_named_channels_are_declined(grown):
    model, _, _, name = grown
    groups = find_channel_groups(model).groups
    declined = {
        group.name: group.barrier.reason
        for group in groups
        if group.barrier is not None and group.barrier.operator not in ("Input", "Output")
    }
    assert declined == DECLINED.get(name, {})
    evenly = {group.name for group in groups if group.whole_factor is not None}
    assert evenly == EVENLY.get(name, set())
    assert any(group.splittable for group in groups)


def test_grown_widths_agree(grown):
    _, wider, _, _ = grown
    assert check_widths(wider) == []


def test_growth_at_epsilon_zero_keeps_the_function(grown):
    model, wider, shape, _ = grown
    assert elements(wider) > elements(model)
    assert_same_function(model, wider, [samples(model, shape, batch) for batch in (1, 2, 7)])


def samples(model: ir.Model, shape: tuple[int, ...], batch: int) -> dict[str, np.ndarray]:
    values = np.random.default_rng(batch).normal(size=(batch, *shape)).astype(np.float32)
    return {model.graph.inputs[0].name: values}


def elements(model: ir.Model) -> int:
    return sum(value.const_value.size for value in model.graph.initializers.values())
