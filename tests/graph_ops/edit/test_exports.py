"""Graphs from elsewhere: other exporters, opsets and number formats, and models of transformers."""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.onnx_tools.width_check import check_widths
from tests.helpers.growing import assert_same_function, signed_plan
from tests.helpers.networks import FAMILIES, seeded

pytestmark = pytest.mark.slow

# Each with how many of its groups split; every exporter must give the same.
MIXED_BAG = {
    "DGCNN": 4,
    "PointNet": 6,
    "UNet": 6,
    "VisionTransformer": 5,
    "conv1d": 2,
    "group_norm": 2,
    "resnext": 8,
    "senet": 2,
    "shufflenet_v2": 6,
}

# In a legacy export the scale of queries and keys is computed from their width, which can then not change.
PAIRS = {"VisionTransformer": 2}


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


def check_growth(model: ir.Model, name: str, tolerance: float = 1e-5, more: int = 0) -> None:
    groups = find_channel_groups(model).groups
    assert sum(group.splittable for group in groups) == MIXED_BAG[name] + more
    wider = grow_graph(model, signed_plan(model))
    assert check_widths(wider) == []
    shape = FAMILIES[name][1]
    values = [np.random.default_rng(b).normal(size=(b, *shape)).astype(np.float32) for b in (1, 3)]
    batches = [{model.graph.inputs[0].name: value} for value in values]
    assert_same_function(model, wider, batches, tolerance)


@pytest.mark.parametrize("name", MIXED_BAG)
def test_torchscript_export_grows(name):
    check_growth(torchscript_export(name, 17), name)


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_old_and_new_opsets_grow(opset):
    check_growth(torchscript_export("shufflenet_v2", opset), "shufflenet_v2")


def test_unfused_torchscript_export_grows():
    model = torchscript_export(
        "resnext", 17, do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE
    )
    assert any(node.op_type == "BatchNormalization" for node in model.graph)
    check_growth(model, "resnext")


@pytest.mark.parametrize("name", ["UNet", "VisionTransformer", "group_norm", "resnext", "senet"])
def test_optimised_export_grows(name):
    check_growth(dynamo_export(name, optimize=True), name, more=PAIRS.get(name, 0))


def test_attention_operator_of_opset_23_grows():
    model = dynamo_export("VisionTransformer", optimize=True, opset_version=23)
    assert any(node.op_type == "Attention" for node in model.graph)
    check_growth(model, "VisionTransformer", more=PAIRS["VisionTransformer"])


@pytest.mark.parametrize(
    ("name", "axes", "sample"),
    [
        ("UNet", (0, 2, 3), (3, 3, 16, 8)),
        ("DGCNN", (0, 2), (3, 3, 11)),
        ("group_norm", (0, 2, 3), (1, 4, 12, 10)),
    ],
)
def test_all_axes_but_the_channels_may_be_dynamic(name, axes, sample):
    build, shape = FAMILIES[name]
    model = quietly(
        torch.onnx.export,
        seeded(build),
        (torch.randn(2, *shape),),
        dynamo=True,
        optimize=False,
        verbose=False,
        dynamic_shapes=(dict.fromkeys(axes, torch.export.Dim.AUTO),),
    ).model
    assert sum(group.splittable for group in find_channel_groups(model).groups) == MIXED_BAG[name]
    values = np.random.default_rng(0).normal(size=sample).astype(np.float32)
    batch = {model.graph.inputs[0].name: values}
    assert_same_function(model, grow_graph(model, signed_plan(model)), [batch])


def transformer(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A tiny model of the transformers library, and an example input."""
    import transformers

    common = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    tokens = torch.randint(0, 30, (2, 6))
    match name:
        case "vit":
            config = transformers.ViTConfig(**common, image_size=8, patch_size=4, num_labels=3)
            return transformers.ViTForImageClassification(config), torch.randn(2, 3, 8, 8)
        case "bert":
            config = transformers.BertConfig(**common, vocab_size=30, max_position_embeddings=16)
            return transformers.BertForSequenceClassification(config), tokens
        case "gpt2":
            config = transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=30, n_positions=16)
            return transformers.GPT2LMHeadModel(config), tokens
        case _:
            config = transformers.LlamaConfig(
                **common, num_key_value_heads=1, vocab_size=30, max_position_embeddings=16
            )
            return transformers.LlamaForCausalLM(config), tokens


class Logits(torch.nn.Module):
    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x):
        extra = {"use_cache": False} if hasattr(self.model.config, "use_cache") else {}
        return self.model(x, **extra).logits


# Of each layer the whole heads, the width of the value heads, the queries with the keys, and the hidden units
# of the MLP; BERT's pooler. The queries and keys of all layers of LLaMA share one rotary embedding.
TRANSFORMERS = {"vit": 8, "bert": 9, "gpt2": 8, "llama": 7}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_grow_in_their_heads_mlps_and_stream(name):
    model, example = transformer(name)
    program = quietly(
        torch.onnx.export,
        Logits(model).eval(),
        (example,),
        dynamo=True,
        optimize=False,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    graph = program.model
    groups = find_channel_groups(graph).groups
    reasons = {group.barrier.reason for group in groups if group.barrier is not None}
    assert reasons <= {
        "an input of the graph",
        "an output of the graph",
        "it picks entries of this axis by data",
    }
    assert sum(group.splittable for group in groups) == TRANSFORMERS[name]
    (stream,) = (group for group in groups if group.whole_factor is not None)
    assert stream.width == 8
    wider = grow_graph(graph, signed_plan(graph))
    assert check_widths(wider) == []
    inputs = {graph.graph.inputs[0].name: example.numpy()}
    assert_same_function(graph, wider, [inputs, {k: v[:1] for k, v in inputs.items()}])
