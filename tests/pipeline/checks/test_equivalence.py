"""Two forms of one model are told apart, and nothing is claimed where random inputs prove nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from growpipe.checks import equivalence
from growpipe.checks.equivalence import compare_forms
from growpipe.graph_ops.errors import CheckFailed, MissingEnvironment

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
LAYERS = "h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)"


def written(path: Path, body: str, inputs: str = "float[N,4] x", outputs: str = "float[N,3] y") -> Path:
    proto = parser.parse_model(f"{HEAD} g ({inputs}) => ({outputs}) {{ {body} }}")
    rng = np.random.default_rng(0)
    for name, shape in {"w": (4, 5), "v": (5, 3), "t": (7, 3)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype("f4"), name))
    onnx.save(proto, path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return written(tmp_path / "model.onnx", LAYERS)


def test_the_same_function_is_verified_on_several_batches(model: Path, tmp_path: Path) -> None:
    form = written(
        tmp_path / "form.onnx", LAYERS.replace("h = MatMul(x, w)", "i = Identity(x) h = MatMul(i, w)")
    )
    found = compare_forms(model, form, "the form")
    assert (found.verified, found.inputs, found.limit) == (True, 4, 1e-4)
    assert found.relative == 0.0
    assert str(found).startswith("verified in onnxruntime on 4 sets of random inputs")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (LAYERS.replace("r = Relu(h)", "r = LeakyRelu<alpha=0.5>(h)"), "relative difference .*MatMul 'y'"),
        (LAYERS.replace("y = MatMul(r, v)", "m = MatMul(r, v) y = Transpose(m)"), "has shape"),
        ("h = MatMul(x, w) r = Relu(h) k = Constant<value_ints=[1,5]>() s = Reshape(r, k) y = MatMul(s, v)",
         "does not run where the model does"),
    ],
)  # fmt: skip
def test_another_function_is_an_error_that_names_the_node(
    model: Path, tmp_path: Path, body: str, message: str
) -> None:
    form = written(tmp_path / "form.onnx", body)
    with pytest.raises(CheckFailed, match=f"the form .*{message}"):
        compare_forms(model, form, "the form")


@pytest.mark.parametrize(
    ("body", "inputs", "reason"),
    [
        # An index beyond the table; noise.
        (
            "far = Constant<value_int=90>() i = Add(x, far) y = GatherND(t, i)",
            "int64[N,2] x",
            "does not run",
        ),
        ("n = RandomNormalLike(x) y = Add(x, n)", "float[N,3] x", "from run to run"),
        # A gigabyte of them: it would take longer to make them than a user waits.
        ("y = ReduceMax<keepdims=0>(x)", "float[N,250000000] x", "no random inputs"),
    ],
)
def test_inputs_that_prove_nothing_are_no_alarm(tmp_path: Path, body: str, inputs: str, reason: str) -> None:
    outputs = "float[N,3] y" if "Random" in body else "float[N] y"
    model = written(tmp_path / "model.onnx", body, inputs, outputs)
    found = compare_forms(model, model, "the form")
    assert not found.verified
    assert reason in str(found)
    assert str(found).startswith("not verified: ")


def test_sizes_are_tried_until_the_model_runs(tmp_path: Path) -> None:
    body = "r = ReduceMean<axes=[1], keepdims=0>(p) y = Identity(r) p = AveragePool<kernel_shape=[30]>(x)"
    model = written(tmp_path / "model.onnx", body, "float[N,3,L] x", "float[N,M] y")
    assert compare_forms(model, model, "the form").verified


def test_a_saturated_output_is_judged_by_what_is_rounded(tmp_path: Path) -> None:
    one = "big = Constant<value_float=16.0>() s = Sub(x, big) y = Sigmoid(s)"
    other = one.replace("Sub(x, big)", "Sub(big, x)").replace("y =", "p =")
    other += " c = Constant<value_float=1.0>() y = Sub(c, p)"
    model = written(tmp_path / "model.onnx", one, outputs="float[N,4] y")
    form = written(tmp_path / "form.onnx", other, outputs="float[N,4] y")
    found = compare_forms(model, form, "the form")  # no alarm; but 1e-7 on all inputs proves nothing either
    assert not found.verified
    assert "no fault would show" in found.reason


HIDING = [
    ("y = Sigmoid(s)", "float[N,3] y"),
    ("p = Softmax<axis=1>(s) y = Identity(p)", "float[N,3] y"),
    ("y = Relu(s)", "float[N,3] y"),
    ("k = ArgMax<axis=1, keepdims=0>(s) y = Cast<to=1>(k)", "float[N] y"),
    ("p = Sigmoid(s) two = Constant<value_float=2.0>() m = Mul(p, two) q = Tanh(s) "
     "y = Concat<axis=1>(m, q)", "float[N,6] y"),
]  # fmt: skip


@pytest.mark.parametrize(("tail", "outputs"), HIDING)
def test_a_fault_behind_a_saturated_output_is_found(tmp_path: Path, tail: str, outputs: str) -> None:
    far = "b = Constant<value_floats=[90.0, -90.0, -90.0]>() " if "Arg" in tail or "Soft" in tail else (
        "b = Constant<value_floats=[-90.0, -90.0, -90.0]>() "
    )  # fmt: skip
    body = f"{far} {LAYERS.replace('y =', 'z =')} s = Add(z, b) {tail}"
    model = written(tmp_path / "model.onnx", body, outputs=outputs)
    same = compare_forms(model, model, "the form")
    assert (same.verified, same.unshown) == (True, ())
    form = written(
        tmp_path / "form.onnx", body.replace("Relu(h)", "LeakyRelu<alpha=0.5>(h)", 1), outputs=outputs
    )
    with pytest.raises(CheckFailed, match="the form computes something else: relative difference"):
        compare_forms(model, form, "the form")


def test_outputs_that_no_input_moves_are_named(tmp_path: Path) -> None:
    body = f"{LAYERS} u = Transpose(v) zero = Constant<value_float=0.0>() n = Mul(y, zero) d = MatMul(n, u)"
    model = written(tmp_path / "model.onnx", body, outputs="float[N,3] y, float[N,5] d")
    found = compare_forms(model, model, "the form")
    assert (found.verified, found.unshown) == (True, ("d",))
    assert "a fault in 'd' would not show" in str(found)


def test_without_a_runtime_nothing_is_claimed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: str) -> None:
        raise MissingEnvironment("onnxruntime is not installed")

    monkeypatch.setattr(equivalence, "require_installed", missing)
    assert str(compare_forms(model, model, "the form")) == "not verified: onnxruntime is not installed"
