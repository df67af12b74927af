"""Graphs from elsewhere: other exporters, opsets and number formats, and models of the transformers library."""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from growing import assert_same_function, random_plan
from networks import FAMILIES, seeded
from onnx import version_converter

from growpipe.graph_ops.groups import find_channel_groups
from growpipe.graph_ops.rewrite import grow_graph
from growpipe.graph_ops.widths import check_widths

MIXED_BAG = [
    "cnn_flatten",
    "mobilenet_v2",
    "resnext",
    "UNet",
    "senet",
    "shufflenet_v2",
    "group_norm",
    "conv1d",
]


def quietly(export, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        return export(*arguments, **options)


def torchscript_export(name: str, opset: int, **options) -> ir.Model:
    build, shape = FAMILIES[name]
    buffer = io.BytesIO()
    quietly(
        torch.onnx.export,
        seeded(build),
        (torch.randn(2, *shape),),
        buffer,
        dynamo=False,
        opset_version=opset,
        input_names=["x"],
        dynamic_axes={"x": {0: "batch"}},
        **options,
    )
    return ir.from_proto(onnx.load_from_string(buffer.getvalue()))


def dynamo_export(name: str, **options) -> ir.Model:
    build, shape = FAMILIES[name]
    return quietly(
        torch.onnx.export,
        seeded(build),
        (torch.randn(2, *shape),),
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        **options,
    ).model


def check_growth(model: ir.Model, name: str, tolerance: float = 1e-5, dtype=np.float32) -> None:
    groups = find_channel_groups(model).groups
    assert any(group.splittable for group in groups)
    wider = grow_graph(model, random_plan(model))
    assert check_widths(wider) == []
    shape = FAMILIES[name][1]
    values = [np.random.default_rng(b).normal(size=(b, *shape)).astype(dtype) for b in (1, 3)]
    batches = [{model.graph.inputs[0].name: value} for value in values]
    assert_same_function(model, wider, batches, tolerance)


@pytest.mark.parametrize("name", MIXED_BAG)
def test_torchscript_export_grows(name):
    check_growth(torchscript_export(name, 17), name)


@pytest.mark.parametrize("opset", [11, 12, 13, 16, 18])
@pytest.mark.parametrize("name", ["resnext", "shufflenet_v2"])
def test_old_and_new_opsets_grow(name, opset):
    check_growth(torchscript_export(name, opset), name)


def test_unfused_torchscript_export_grows():
    model = torchscript_export(
        "mobilenet_v1", 17, do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE
    )
    assert any(node.op_type == "BatchNormalization" for node in model.graph)
    check_growth(model, "mobilenet_v1")


@pytest.mark.parametrize("name", MIXED_BAG)
def test_optimised_export_grows(name):
    check_growth(dynamo_export(name, optimize=True), name)


@pytest.mark.parametrize("opset", [21, 23])
def test_newest_opsets_grow(opset):
    check_growth(dynamo_export("VisionTransformer", optimize=True, opset_version=opset), "VisionTransformer")
