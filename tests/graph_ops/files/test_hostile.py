"""Models that load and yet make no sense: every step either works or refuses with an error of ours."""

from __future__ import annotations

import contextlib
import random
import struct

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from growpipe.graph_ops.edit.deploy import deploy_form
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import GrowpipeError, UnsafeModel
from growpipe.graph_ops.files.load_save import load_model
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.onnx_tools.width_check import check_structure
from growpipe.graph_ops.plan.data_free import random_plan
from tests.helpers.text_models import text_model

pytestmark = pytest.mark.slow

BODY = """
    a = Conv<pads=[1,1,1,1]>(x, w1)
    n = BatchNormalization(a, scale, bias, mean, var)
    r = Relu(n)
    d = Conv<group=6, pads=[1,1,1,1]>(r, w2)
    q, s = Split<axis=1>(d, sizes)
    c = Concat<axis=1>(s, q, r)
    m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)
    k = Shape(m)
    z = Slice(k, zero, one)
    u = Concat<axis=0>(z, rest)
    f = Reshape(m, u)
    h = MatMul(f, w3)
    g = Add(h, b3)
    t = Transpose<perm=[1,0]>(g)
    y = Gemm<transA=1, transB=1>(t, w4)
"""
SIZES = [-(2**63), -2, -1, 0, 1, 2, 3, 5, 7, 64, 100_000, 2**31, 2**62]
OPERATORS = (
    "Concat",
    "Conv",
    "Einsum",
    "Expand",
    "Foo",
    "Gather",
    "LSTM",
    "Loop",
    "Reshape",
    "Shape",
    "TopK",
)


@pytest.fixture(scope="module")
def honest() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    shapes = {"w1": (6, 3, 3, 3), "w2": (6, 1, 3, 3), "w3": (48, 5), "b3": (5,), "w4": (4, 5)}
    shapes |= dict.fromkeys(("scale", "bias", "mean", "var"), (6,))
    weights = {name: np.abs(rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    numbers = {"sizes": [2, 4], "zero": [0], "one": [1], "rest": [48]}
    weights |= {name: np.array(values, np.int64) for name, values in numbers.items()}
    model = text_model(BODY, "float[N,3,4,4] x", "float[N,4] y", **weights)
    assert (
        check_structure(grow_graph(model, random_plan(find_channel_groups(model), model, growth=0.5))) == []
    )
    return ir.to_proto(model)


def spoil(model: onnx.ModelProto, rng: random.Random) -> None:
    """One change that protobuf and the loader may well let pass."""
    graph = model.graph
    node = rng.choice(graph.node)
    names = [value.name for value in (*graph.initializer, *graph.input)]
    tensor = rng.choice(graph.initializer)
    match rng.randrange(8):
        case 0 if node.attribute:
            attribute = rng.choice(node.attribute)
            attribute.i = rng.choice(SIZES)
            if attribute.ints:
                attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(SIZES)
        case 1 if node.attribute:
            attribute = rng.choice(node.attribute)
            if attribute.ints:
                del attribute.ints[rng.randrange(len(attribute.ints)) :]
            else:
                node.attribute.remove(attribute)
        case 2 if node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice([*names, ""])
        case 3 if node.input:
            del node.input[rng.randrange(len(node.input)) :]
        case 4:
            node.op_type = rng.choice(OPERATORS)
        case 5:
            dims = rng.choice([*graph.input, *graph.output]).type.tensor_type.shape.dim
            if dims:
                rng.choice(dims).dim_value = rng.choice(SIZES)
        case 6 if tensor.data_type == onnx.TensorProto.INT64:
            tensor.raw_data = struct.pack("<q", rng.choice(SIZES)) + tensor.raw_data[8:]
        case _:
            shape = list(tensor.dims)
            del tensor.dims[:]
            tensor.dims.extend(rng.choice([shape[::-1], [1, *shape], [*shape, 1]]))


@pytest.mark.parametrize("seed", range(20))
def test_every_step_works_or_refuses(honest, tmp_path, seed):
    rng = random.Random(seed)
    loaded = 0
    for _ in range(10):
        model = onnx.ModelProto()
        model.CopyFrom(honest)
        for _ in range(rng.randint(1, 3)):
            spoil(model, rng)
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        try:
            read = load_model(path)
        except UnsafeModel:
            continue
        loaded += 1
        with contextlib.suppress(GrowpipeError):
            deploy_form(read)
        with contextlib.suppress(GrowpipeError):
            groups = find_channel_groups(read)
            check_structure(grow_graph(read, random_plan(groups, read, growth=0.5)))
    assert loaded
