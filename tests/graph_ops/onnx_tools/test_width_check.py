"""The check of widths: sound models have no problem, and every contradiction is named."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.onnx_tools import process as isolation
from growpipe.graph_ops.onnx_tools.shape_inference import infer_shapes
from growpipe.graph_ops.onnx_tools.width_check import check_widths
from tests.helpers.text_models import text_model


def model(body: str, inputs: str = "float[N,12,7,7] x", opset: int = 20, **weights) -> ir.Model:
    """A model in ONNX text form whose initializers are given by shape, or as arrays."""
    declared = ", ".join(
        f"int64[{len(w)}] {name}" if isinstance(w, list) else f"float[{','.join(map(str, w))}] {name}"
        for name, w in weights.items()
    )
    both = ", ".join(filter(None, (inputs, declared)))
    text = f'<ir_version: 10, opset_import: ["": {opset}, "custom": 1]> g ({both}) => (y) {{ {body} }}'
    parsed = ir.from_onnx_text(text)
    for name, weight in weights.items():
        array = np.array(weight, np.int64) if isinstance(weight, list) else np.zeros(weight, np.float32)
        value = next(v for v in parsed.graph.inputs if v.name == name)
        parsed.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        parsed.graph.register_initializer(value)
    return parsed


def vector(length: int) -> dict[str, tuple[int]]:
    return dict.fromkeys(("s", "b", "m", "v"), (length,))


SOUND = {
    "conv": model("y = Conv(x, w, b)", w=(8, 12, 3, 3), b=(8,)),
    "grouped": model("y = Conv<group=4>(x, w)", w=(8, 3, 3, 3)),
    "transposed": model("y = ConvTranspose<group=2>(x, w, b)", w=(12, 5, 3, 3), b=(10,)),
    "batch norm": model("y = BatchNormalization(x, s, b, m, v)", **vector(12)),
    "flatten": model("f = Reshape(x, t) y = Gemm<transB=1>(f, w, b)", t=[-1, 588], w=(10, 588), b=(10,)),
    "zero": model("y = Reshape(x, t)", t=[0, 3, 4, -1]),
    "heads": model("y = Reshape(x, t)", inputs="float[N,T,12] x", t=[0, 0, 4, 3]),
    "length of a slice": model(
        "s = Slice(x, e, e, e) y = Reshape(s, t)", inputs="float[N,6,6] x, int64[1] e", t=[-1, 15]
    ),
    "as many as are not zero": model("i = NonZero(x) y = Reshape(i, t)", t=[-1, 3]),
    "batch and length": model("y = Reshape(x, t)", inputs="float[N,6,T] x", t=[-1, 15]),
    "mean and variance": model("k = MeanVarianceNormalization(x) y = GlobalAveragePool(k)"),
    "mean and variance in a branch": model(
        "y = If(c) <then_branch = t () => (a) "
        "{ k = MeanVarianceNormalization(x) a = GlobalAveragePool(k) }, "
        "else_branch = e () => (b) { b = GlobalAveragePool(x) }>",
        inputs="float[N,12,7,7] x, bool c",
    ),
    "matmul": model("y = MatMul(x, w)", inputs="float[N,T,12] x", w=(12, 5)),
    "concat": model("c = Concat<axis=1>(x, x) y = Conv(c, w)", w=(8, 24, 1, 1)),
    "split": model("y, z = Split<axis=1>(x, t)", t=[5, 7]),
    "broadcast": model("y = Add(x, w)", w=(12, 1, 1)),
    "prelu": model("y = PRelu(x, w)", w=(12, 1, 1)),
    "layer norm": model("y = LayerNormalization(x, w)", inputs="float[N,T,12] x", w=(12,)),
    "lstm": model(
        "y = LSTM<hidden_size=5>(x, w, r, b)",
        inputs="float[T,N,12] x",
        w=(1, 20, 12),
        r=(1, 20, 5),
        b=(1, 40),
    ),
    "einsum": model('y = Einsum<equation="nchw,oc->nohw">(x, w)', w=(5, 12)),
    "expand": model("y = Expand(x, t)", inputs="float[1,12,1] x", t=[3, 12, 4]),
    "unknown": model("z = custom.Foo(x) y = Conv(x, w)", w=(8, 12, 3, 3)),
}

BROKEN = {
    "conv": (model("y = Conv(x, w)", w=(8, 13, 3, 3)), "12 channels, its weight takes 13"),
    "conv bias": (model("y = Conv(x, w, b)", w=(8, 12, 3, 3), b=(9,)), "makes 8 channels, its bias has 9"),
    "depthwise": (model("y = Conv<group=13>(x, w)", w=(13, 1, 3, 3)), "takes 1 x 13 group"),
    "group": (model("y = Conv<group=4>(x, w)", w=(9, 3, 3, 3)), "9 filters do not divide into 4"),
    "transposed": (model("y = ConvTranspose(x, w)", w=(11, 5, 3, 3)), "takes 11"),
    "transposed bias": (model("y = ConvTranspose<group=2>(x, w, b)", w=(12, 5, 1, 1), b=(5,)), "makes 10"),
    "batch norm": (model("y = BatchNormalization(x, s, b, m, v)", **vector(13)), "'m' has 13"),
    "gemm": (model("f = Flatten(x) y = Gemm<transB=1>(f, w)", w=(10, 589)), "588"),
    "gemm bias": (model("f = Flatten(x) y = Gemm(f, w, b)", w=(588, 10), b=(11,)), "11"),
    "reshape": (model("y = Reshape(x, t)", t=[-1, 600]), "does not fill"),
    "heads": (model("y = Reshape(x, t)", inputs="float[N,T,13] x", t=[0, 0, 4, 3]), "does not fill"),
    "mean and variance": (
        model("k = MeanVarianceNormalization(x) y = Conv(k, w)", w=(8, 13, 3, 3)),
        "12 channels, its weight takes 13",
    ),
    "known lengths copied": (model("y = Reshape(x, t)", inputs="float[N,T,12] x", t=[0, 0, 5]), "not fill"),
    "matmul": (model("y = MatMul(x, w)", inputs="float[N,T,12] x", w=(13, 5)), "12 columns.*13 rows|12.*13"),
    "concat": (model("y = Concat<axis=2>(x, w)", w=(1, 13, 7, 7)), "differ on axis 1"),
    "split": (model("y, z = Split<axis=1>(x, t)", t=[5, 8]), "add to 13|13"),
    "broadcast": (model("y = Mul(x, w)", w=(13, 1, 1)), "12 and 13 entries on axis -3"),
    "prelu": (model("y = PRelu(x, w)", w=(13, 1, 1)), "'w' has 13|13"),
    "layer norm": (model("y = LayerNormalization(x, w)", inputs="float[N,T,12] x", w=(13,)), "'w' has 13"),
    "lstm": (
        model("y = LSTM<hidden_size=5>(x, w, r)", inputs="float[T,N,12] x", w=(1, 20, 13), r=(1, 20, 5)),
        "takes 13",
    ),
    "lstm gates": (
        model("y = LSTM<hidden_size=5>(x, w, r)", inputs="float[T,N,12] x", w=(1, 20, 12), r=(1, 20, 6)),
        "has 6 entries, hidden size 5",
    ),
    "einsum": (model('y = Einsum<equation="nchw,oc->nohw">(x, w)', w=(5, 13)), "'c' of"),
    "expand": (model("y = Expand(x, t)", inputs="float[1,12,1] x", t=[3, 13, 4]), "12 and 13|13"),
    "beside an unknown": (model("z = custom.Foo(x) y = Conv(x, w)", w=(8, 13, 3, 3)), "takes 13"),
    "in a subgraph": (
        model(
            "y = If(c) <then_branch = t () => (a) { a = Conv(x, w) }, "
            "else_branch = e () => (b) { b = Relu(x) }>",
            inputs="float[N,12,7,7] x, bool c",
            w=(8, 13, 3, 3),
        ),
        "takes 13",
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_models_have_no_problem(name):
    assert check_widths(SOUND[name]) == []


@pytest.mark.parametrize("name", BROKEN)
def test_every_contradiction_is_named(name):
    broken, match = BROKEN[name]
    problems = "; ".join(check_widths(broken))
    assert re.search(match, problems), problems


def test_stale_declarations_are_problems():
    stale = model("r = Relu(x) y = Conv(r, w)", w=(8, 12, 3, 3))
    stale.graph.node(0).outputs[0].shape = ir.Shape(["N", 11, 7, 7])
    assert "'r' is declared as [N,11,7,7]" in "; ".join(check_widths(stale))

    stale = model("y = Conv(x, w)", w=(8, 12, 3, 3))
    stale.graph.initializers["w"].shape = ir.Shape([8, 11, 3, 3])
    assert "initializer 'w' is declared" in "; ".join(check_widths(stale))


class TestShapes:
    def test_stale_shapes_do_not_stand_in_the_way(self):
        stale = model("r = Relu(x) y = Conv(r, w)", w=(8, 12, 3, 3))
        stale.graph.node(0).outputs[0].shape = ir.Shape(["N", 11, 7, 7])
        inferred = infer_shapes(stale)
        assert inferred.graph.node(0).outputs[0].shape == ir.Shape(["N", 12, 7, 7])
        assert inferred.graph.outputs[0].shape == ir.Shape(["N", 8, 5, 5])
        # The original is as it was.
        assert stale.graph.node(0).outputs[0].shape == ir.Shape(["N", 11, 7, 7])
        assert stale.graph.outputs[0].shape is None
        assert list(stale.graph.initializers) == ["w"]
        assert [value.name for value in stale.graph.inputs] == ["x"]

    def test_tensors_are_shared_and_stay(self):
        big = model("y = Conv(x, w)", w=(300, 12, 3, 3))
        inferred = infer_shapes(big)
        assert inferred.graph.initializers["w"].const_value is big.graph.initializers["w"].const_value
        assert [value.name for value in inferred.graph.inputs] == ["x"]

    @pytest.mark.parametrize("body", ["y = Conv(x, w)", "z = custom.Foo(x) y = Conv(x, w)"])
    def test_an_output_that_differs_from_its_declaration(self, body):
        wrong = model(body, w=(8, 12, 3, 3))
        wrong.graph.outputs[0].shape = ir.Shape(["N", 9, 5, 5])
        assert infer_shapes(wrong).graph.outputs[0].shape == ir.Shape(["N", 8, 5, 5])
        (problem,) = check_widths(wrong)
        assert "'y' is declared as [N,9,5,5], but is [N,8,5,5]" in problem

    def test_subgraphs(self):
        branching = model(
            "y = If(c) <then_branch = t () => (a) { a = Relu(x) }, "
            "else_branch = e () => (b) { b = Tanh(x) }>",
            inputs="float[N,12,7,7] x, bool c",
        )
        inner = infer_shapes(branching).graph.node(0).attributes["then_branch"].as_graph()
        assert inner.outputs[0].shape == ir.Shape(["N", 12, 7, 7])


class TestIsolation:
    """ONNX's own code aborts the process on some models; that must not be ours."""

    def test_a_model_that_is_never_answered_is_a_problem(self, monkeypatch):
        sound = model("y = Conv(x, w)", w=(8, 12, 3, 3))
        assert check_widths(sound) == []
        worker = isolation._process
        assert worker is not None
        worker._process.send_signal(signal.SIGSTOP)  # as good as an endless loop
        with monkeypatch.context() as patch:
            patch.setattr(isolation, "_SECONDS", 0.2)
            with pytest.raises(CheckFailed, match="did not end within"):
                infer_shapes(sound)
        # The next model gets a process of its own.
        assert check_widths(sound) == []
        assert isolation._process is not worker

    def test_a_process_that_died_is_replaced(self):
        sound = model("y = Conv(x, w)", w=(8, 12, 3, 3))
        assert check_widths(sound) == []
        worker = isolation._process
        assert worker is not None
        worker._process.kill()
        worker._process.wait()
        assert check_widths(sound) == []


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1.5, True, 1j])
@pytest.mark.parametrize("operator", ["Reshape", "Expand", "Split"])
def test_what_stands_where_integers_are_due_is_a_problem_and_no_exception(operator, number):
    model = text_model(f"y = {operator} (x, k)", "float[N,4] x", k=np.array([1, 2]))
    model.graph.initializers["k"].const_value = ir.tensor(np.array([number, number]), name="k")
    assert check_widths(model)


def test_a_length_that_would_fill_the_memory_ends_inference_and_not_its_process() -> None:
    text = (
        f'<ir_version: 10, opset_import: ["": 20]> g (float[N,4] x) => (y) '
        f"<int64[1] huge = {{{2**40}}}, int64[1] rest = {{4}}> "
        "{ n = Shape<start=0, end=1>(x) s = Squeeze(n) v = Reshape(s, huge) t = Concat<axis=0>(v, rest) "
        "y = Reshape(x, t) }"
    )
    hostile = onnx.parser.parse_model(text)
    isolation.infer_model_shapes(onnx.parser.parse_model(text.replace(str(2**40), "1")), strict=False)
    process = isolation._process
    assert process is not None
    with pytest.raises(CheckFailed, match="shape inference fails"):
        isolation.infer_model_shapes(hostile, strict=False)
    assert isolation._process is process, "the process goes on"
    status = Path(f"/proc/{process._process.pid}/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        assert int(peak.split()[1]) < 700 * 1024
