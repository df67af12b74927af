"""The deploy form: what is fused and folded, what stays, and what of the making leaves the file."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from growpipe.graph_ops.edit.deploy import deploy_form
from growpipe.graph_ops.edit.folding import fuse_batch_norms
from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.onnx_tools.shape_inference import infer_shapes
from tests.helpers.text_models import ort_run, text_model

RNG = np.random.default_rng(0)


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def norm(width: int, prefix: str = "") -> dict[str, np.ndarray]:
    return {
        f"{prefix}scale": weight(width),
        f"{prefix}bias": weight(width),
        f"{prefix}mean": weight(width),
        f"{prefix}var": RNG.uniform(0.3, 2.0, width).astype(np.float32),
    }


IMAGE, VECTOR = "float[N,4,6,6] x", "float[N,4] x"
BN = "BatchNormalization"
CASES = {
    "conv": (
        f"c = Conv(x, w) y = {BN}(c, scale, bias, mean, var)",
        IMAGE,
        {"w": weight(5, 4, 3, 3)} | norm(5),
    ),
    "conv with bias": (
        f"c = Conv(x, w, b) n = {BN}<epsilon=0.1>(c, scale, bias, mean, var) y = Relu(n)",
        IMAGE,
        {"w": weight(5, 4, 3, 3), "b": weight(5)} | norm(5),
    ),
    "depthwise": (
        f"c = Conv<group=4>(x, w) y = {BN}(c, scale, bias, mean, var)",
        IMAGE,
        {"w": weight(4, 1, 3, 3)} | norm(4),
    ),
    "transposed": (
        f"c = ConvTranspose<group=2>(x, w, b) y = {BN}(c, scale, bias, mean, var)",
        IMAGE,
        {"w": weight(4, 3, 3, 3), "b": weight(6)} | norm(6),
    ),
    "gemm": (
        f"c = Gemm<transB=1,alpha=0.5,beta=2.0>(x, w, b) y = {BN}(c, scale, bias, mean, var)",
        VECTOR,
        {"w": weight(7, 4), "b": weight(7)} | norm(7),
    ),
    "gemm, not transposed, bias of a row": (
        f"c = Gemm(x, w, b) y = {BN}(c, scale, bias, mean, var)",
        VECTOR,
        {"w": weight(4, 7), "b": weight(1, 7)} | norm(7),
    ),
    "weight above the size that shape inference is given": (
        f"c = Conv(x, w, b) y = {BN}(c, scale, bias, mean, var)",
        IMAGE,
        {"w": weight(1200, 4, 3, 3), "b": weight(1200)} | norm(1200),
    ),
    "shared weight": (
        f"c = Conv(x, w) n = {BN}(c, scale, bias, mean, var) d = Conv(x, w) y = Add(n, d)",
        IMAGE,
        {"w": weight(5, 4, 3, 3)} | norm(5),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_batch_norms_are_fused(case):
    body, inputs, weights = CASES[case]
    model = text_model(body, inputs, **weights)
    form = deploy_form(model)
    assert BN not in [node.op_type for node in form.graph]
    assert BN in [node.op_type for node in model.graph]
    assert_same_function(model, form)


def assert_same_function(model: ir.Model, form: ir.Model, *shape: int) -> None:
    dims = [3 if not isinstance(d, int) else d for d in model.graph.inputs[0].shape]
    feeds = {"x": RNG.standard_normal(shape or dims).astype(np.float32)}
    for optimised in (False, True):
        before, after = ort_run(model, feeds), ort_run(form, feeds, optimised=optimised)
        for one, other in zip(before, after, strict=True):
            assert np.abs(one - other).max() <= 1e-5 * np.abs(one).max()
    assert [v.name for v in form.graph.inputs] == [v.name for v in model.graph.inputs]
    assert [v.name for v in form.graph.outputs] == [v.name for v in model.graph.outputs]


NOT_FUSED = {
    "two consumers": (
        f"c = Conv(x, w) n = {BN}(c, scale, bias, mean, var) y = Add(n, c)",
        {"w": weight(5, 4, 3, 3)} | norm(5),
    ),
    "after an activation": (
        f"c = Conv(x, w) r = Relu(c) y = {BN}(r, scale, bias, mean, var)",
        {"w": weight(5, 4, 3, 3)} | norm(5),
    ),
    "too large for its type": (
        f"c = Conv(x, w) y = {BN}<epsilon=0.0>(c, scale, bias, mean, var)",
        {"w": np.full((5, 4, 3, 3), 1e30, np.float32)} | norm(5) | {"var": np.full(5, 1e-30, np.float32)},
    ),
}


@pytest.mark.parametrize("case", NOT_FUSED)
def test_what_cannot_be_fused_stays(case):
    body, weights = NOT_FUSED[case]
    form = deploy_form(text_model(body, IMAGE, **weights))
    assert BN in [node.op_type for node in form.graph]


@pytest.mark.parametrize("name", ["scale", "bias", "mean", "var"])
@pytest.mark.parametrize("shape", [(4,), (1,), (), (5, 1)])
def test_a_norm_without_one_value_for_each_channel_is_not_fused(name, shape):
    weights = CASES["conv"][2] | {name: np.ones(shape, np.float32)}
    assert fuse_batch_norms(text_model(CASES["conv"][0], IMAGE, **weights)) == 0


@pytest.mark.parametrize(
    ("layer", "kernel"),
    [
        ("Conv(x, w)", (4, 4, 3, 3)),
        ("Conv(x, w)", (5,)),
        ("ConvTranspose<group=2>(x, w)", (3, 5, 3, 3)),
        ("ConvTranspose<group=0>(x, w)", (4, 5, 3, 3)),
        ("Gemm<transB=1>(x, w)", (4, 5)),
        ("Gemm(x, w)", (5,)),
    ],
)
def test_a_norm_behind_a_layer_of_another_width_is_not_fused(layer, kernel):
    body = f"c = {layer} y = {BN}(c, scale, bias, mean, var)"
    assert fuse_batch_norms(text_model(body, IMAGE, w=weight(*kernel), **norm(5))) == 0


def test_a_weight_that_can_be_fed_is_not_fused():
    model = text_model(f"c = Conv(x, w) y = {BN}(c, scale, bias, mean, var)", IMAGE, **CASES["conv"][2])
    model.graph.inputs.append(model.graph.initializers["w"])
    assert BN in [node.op_type for node in deploy_form(model).graph]


def test_shape_inference_leaves_no_tensor_marked_as_an_input():
    case = CASES["weight above the size that shape inference is given"]
    model = text_model(case[0], case[1], **case[2])
    inferred = infer_shapes(model)
    for view in (model, inferred):
        assert [value.name for value in view.graph.inputs] == ["x"]
        assert set(view.graph.initializers) == set(case[2])
        assert not any(value.is_graph_input() for value in view.graph.initializers.values())
        assert all(value.is_initializer() for value in view.graph.initializers.values())


def test_constants_are_folded():
    model = text_model(
        """
        t = Transpose<perm=[1,0]>(w)
        m = MatMul(x, t)
        n = Shape<start=1, end=2>(m)
        z = ConstantOfShape(n)
        one = Constant<value_ints=[1]>()
        o = Unsqueeze(z, one)
        f = Flatten<axis=0>(o)
        a = Add(m, f)
        d, mask = Dropout(a)
        y = Identity(d)
        """,
        VECTOR,
        w=weight(7, 4),
    )
    form = deploy_form(model)
    assert [node.op_type for node in form.graph] == ["MatMul", "Add"]
    assert "w" not in form.graph.initializers
    assert_same_function(model, form)


def test_what_would_blow_up_is_not_folded():
    model = text_model(
        "z = ConstantOfShape(n) s = ReduceSum<keepdims=0>(z) y = Add(x, s)",
        VECTOR,
        n=np.array([2**20, 2**10], np.int64),
    )
    assert "ConstantOfShape" in [node.op_type for node in deploy_form(model).graph]


def test_traces_and_paths_go():
    model = text_model(CASES["conv"][0], IMAGE, **CASES["conv"][2])
    trace = 'File "/home/somebody/net.py", line 3, in forward'
    model.doc_string = trace
    model.metadata_props.update(
        {"source": "/home/somebody/net.py", "labels": "cat,dog", "growpipe.growth": "[]"}
    )
    model.graph.doc_string = trace
    model.graph.metadata_props["pkg.torch"] = trace
    for node in model.graph:
        node.metadata_props["pkg.torch.onnx.stack_trace"] = trace
        node.doc_string = trace
        node.outputs[0].metadata_props["from"] = trace
    for value in model.graph.initializers.values():
        value.doc_string = trace
        assert value.const_value is not None
        value.const_value.doc_string = trace
    form = deploy_form(model)
    assert b"somebody" not in ir.to_proto(form).SerializeToString()
    assert form.metadata_props == {"labels": "cat,dog", "growpipe.growth": "[]"}
    assert b"somebody" in ir.to_proto(model).SerializeToString()


def test_shapes_of_the_form_are_inferred_anew():
    form = deploy_form(text_model(CASES["conv"][0], IMAGE, **CASES["conv"][2]))
    assert form.graph.outputs[0].shape == ir.Shape(["N", 5, 4, 4])


def test_a_model_with_wrong_widths_is_refused():
    with pytest.raises(CheckFailed, match="4 channels, its weight takes 6"):
        deploy_form(text_model("y = Conv(x, w)", IMAGE, w=weight(5, 6, 3, 3)))
