"""The default verdict: a model that onnxruntime runs as its users run it does not fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from growpipe.checks import run_checks
from growpipe.checks.child.model_process import ModelProcess
from growpipe.checks.measure.tolerance import Tolerance, rounding_floors
from growpipe.graph_ops.files.load_save import load_model
from tests.helpers.good_models import build, cnn, normal, save


@pytest.fixture(scope="module")
def process() -> Iterator[ModelProcess]:
    with ModelProcess(seconds=60, memory_mb=8192) as shared:
        yield shared


def with_names(model: onnx.ModelProto, **names: list[str | None]) -> onnx.ModelProto:
    """Name the symbolic dimensions of inputs and outputs, as the text form of ONNX cannot."""
    for value in (*model.graph.input, *model.graph.output):
        for dim, name in zip(value.type.tensor_type.shape.dim, names.get(value.name, ()), strict=False):
            if name:
                dim.dim_param = name
    return model


def decoder(total: str) -> onnx.ModelProto:
    """Attention over a cache: the mask is as long as cache and input together."""
    body = """
    e = Gather (table, input_ids)
    k = Concat <axis = 1> (past, e)
    kt = Transpose <perm = [0, 2, 1]> (k)
    s = MatMul (e, kt)
    m1 = Unsqueeze (mask, ax1)
    s2 = Add (s, m1)
    p = Softmax <axis = -1> (s2)
    o = MatMul (p, k)
    y = MatMul (o, wo)
    """
    weights = {"table": normal(20, 8), "ax1": np.array([1], np.int64), "wo": normal(8, 4)}
    model = build(
        "(int64[B, S] input_ids, float[B, P, 8] past, float[B, T] mask) => (float[B, S, 4] y)", body, weights
    )
    return with_names(
        model,
        input_ids=["batch_size", "sequence_length"],
        past=["batch_size", "past_sequence_length", None],
        mask=["batch_size", total],
        y=["batch_size", "sequence_length", None],
    )


@pytest.mark.parametrize(
    "total",
    [
        "past_sequence_length + sequence_length",
        "total_sequence_length",
        "sequence_length+past_sequence_length",
    ],
)
@pytest.mark.parametrize("profile", ["default", "release"])
def test_a_dimension_that_is_a_sum_has_the_size_of_the_sum(
    total: str, profile: str, tmp_path: Path, process: ModelProcess
) -> None:
    policy = {"profile": profile}
    report = run_checks(save(decoder(total), tmp_path), only=["structure"], policy=policy, process=process)
    assert report.of("structure/run").status == "passed"
    assert report.of("structure/outputs").status == "passed"


def test_sizes_that_do_not_fit_are_no_fault_and_the_command_says_which_to_give(
    tmp_path: Path, process: ModelProcess
) -> None:
    body = "tail = Slice (x, three, far, one)\n y = MatMul (tail, z)"
    limits = {n: np.array([v], np.int64) for n, v in (("three", 3), ("far", 999), ("one", 1))}
    signature = "(float[2, long] x, float[short, 4] z) => (float[2, 4] y)"
    path = save(build(signature, body, limits), tmp_path)
    report = run_checks(path, only=["structure"], process=process)
    result = report.of("structure/run")
    assert (result.status, report.exit_code) == ("skipped", 0)
    assert """--set 'numerics.dims."long"=SIZE' --set 'numerics.dims."short"=SIZE'""" in result.message
    strict = run_checks(path, only=["structure"], policy={"profile": "release"}, process=process)
    assert strict.of("structure/run").status == "failed"
    assert "SIZE" in strict.of("structure/run").advice
    dims = {"numerics": {"dims": {"long": 9, "short": 6}}}
    given = run_checks(path, only=["structure"], policy=dims, process=process)
    assert given.of("structure/run").status == "passed"


STATE = """
    xt = Transpose <perm = [1, 0, 2]> (x)
    Y, hn, cn = LSTM <hidden_size = 5> (xt, w, r, b, , h0, c0)
    hs = Squeeze (hn, ax0)
    y = MatMul (hs, wo)
"""
STATE_WEIGHTS = {
    "w": normal(1, 20, 6),
    "r": normal(1, 20, 5),
    "b": normal(1, 40),
    "ax0": np.array([0], np.int64),
    "wo": normal(5, 4),
}


def test_a_state_with_the_batch_on_axis_1_is_cut_there(tmp_path: Path, process: ModelProcess) -> None:
    model = build(
        "(float[batch, S, 6] x, float[1, batch, 5] h0, float[1, batch, 5] c0)"
        " => (float[batch, 4] y, float[1, batch, 5] hn, float[1, batch, 5] cn)",
        STATE,
        STATE_WEIGHTS,
    )
    report = run_checks(
        save(model, tmp_path),
        only=["structure/run", "numerics"],
        policy={"profile": "release"},
        process=process,
    )
    assert report.of("numerics/batch").status == "passed"
    assert report.exit_code == 0


def test_a_state_along_axis_0_is_not_taken_for_a_batch(tmp_path: Path, process: ModelProcess) -> None:
    body = "Y, hn = GRU <hidden_size = 5> (x, w, r)\n y = Squeeze (Y, ax)"
    weights = {"w": normal(1, 15, 6), "r": normal(1, 15, 5), "ax": np.array([1], np.int64)}
    model = build("(float[N, 1, 6] x) => (float[N, 1, 5] y)", body, weights)
    path = save(model, tmp_path)
    result = run_checks(path, only=["numerics/batch"], process=process).of("numerics/batch")
    assert result.status == "skipped"
    assert "recurrent" in result.message
    strict = run_checks(path, only=["numerics/batch"], policy={"profile": "release"}, process=process)
    assert strict.of("numerics/batch").status == "failed"


def test_a_dimension_of_another_name_is_not_taken_for_a_batch(tmp_path: Path, process: ModelProcess) -> None:
    body = "m = ReduceMean <axes = [0], keepdims = 1> (x)\n y = Sub (x, m)"
    path = save(build("(float[rows, 4] x) => (float[rows, 4] y)", body), tmp_path)
    status = {}
    for profile in ("default", "release"):
        report = run_checks(path, only=["numerics/batch"], policy={"profile": profile}, process=process)
        status[profile] = report.of("numerics/batch").status
    assert status == {"default": "skipped", "release": "warned"}
    asked = {"numerics": {"batch_dim": "rows"}}
    report = run_checks(path, only=["numerics/batch"], policy=asked, process=process)
    assert report.of("numerics/batch").status == "failed"


def half_of(model: onnx.ModelProto) -> onnx.ModelProto:
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for tensor in half.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), tensor.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return half


def test_a_conversion_to_float16_is_compared_with_its_float32_original(
    tmp_path: Path, process: ModelProcess
) -> None:
    reference = save(cnn(), tmp_path, "reference.onnx")
    path = save(half_of(cnn()), tmp_path)
    quick = {"latency": {"seconds": 0.5}}
    report = run_checks(path, reference=reference, policy=quick, process=process)
    assert report.exit_code == 0, [(r.check, r.message) for r in report.worst[:3]]
    assert report.of("numerics/reference").status == "passed"
    assert report.of("numerics/reference").measured["limit"] == 1e-2
    assert report.of("latency/ratio").status in ("passed", "warned")
    wrong = cnn()
    wrong.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(
            1.1 * onnx.numpy_helper.to_array(wrong.graph.initializer[0]), wrong.graph.initializer[0].name
        )
    )
    bad = run_checks(
        save(half_of(wrong), tmp_path), reference=reference, only=["numerics/reference"], process=process
    )
    assert bad.of("numerics/reference").status == "failed"
    assert "was not found" not in bad.of("numerics/reference").findings[0].message


def test_a_saturated_sigmoid_is_not_a_difference(tmp_path: Path, process: ModelProcess) -> None:
    # Around -16.6 a sigmoid is 6e-8, and two kernels round it to different multiples of that.
    body = "a = MatMul (x, w)\n s = Sigmoid (a)\n y = Transpose <perm = [1, 0]> (s)\n z = Identity (a)"
    path = save(
        build("(float[N, 4] x) => (float[4, N] y, float[N, 4] z)", body, {"w": normal(4, 4)}), tmp_path
    )
    tolerance = Tolerance(1e-4, floors=rounding_floors(load_model(path)))
    tiny = {"y": np.full((4, 1), 6e-8), "z": np.full((1, 4), 6e-8)}
    assert tolerance.judge(tiny, {**tiny, "y": 2 * tiny["y"]})[1] == []
    assert tolerance.judge(tiny, {**tiny, "y": tiny["y"] + 1e-5})[1] != []
    divergence, problems = tolerance.judge(tiny, {**tiny, "z": 2 * tiny["z"]})
    assert divergence.output == "z"
    assert problems != []


def test_rounding_that_float64_shows_is_not_an_optimisation_gone_wrong(
    tmp_path: Path, process: ModelProcess
) -> None:
    # A small difference of large numbers: another order of summation changes all of its digits.
    body = "big = Add (x, c)\n a = MatMul (big, w)\n b = MatMul (big, v)\n d = Sub (a, b)\n y = Relu (d)"
    w = normal(64, 64)
    weights = {"c": np.float32([3e4]), "w": w, "v": w + 1e-7 * normal(64, 64, seed=2)}
    path = save(build("(float[N, 64] x) => (float[N, 64] y)", body, weights), tmp_path)
    report = run_checks(path, only=["numerics/optimisation"], process=process)
    assert report.of("numerics/optimisation").status == "passed"


def test_a_wrong_declared_shape_is_reported_and_not_fatal(tmp_path: Path, process: ModelProcess) -> None:
    model = build("(float[N, 4] x) => (float[N, 7] y)", "y = MatMul (x, w)", {"w": normal(4, 3)})
    path = save(model, tmp_path)
    report = run_checks(path, only=["structure"], process=process)
    assert report.exit_code == 0
    (warning,) = (r for r in report.results if r.status == "warned")
    assert warning.check == "structure/shapes"
    assert warning.advice
    assert report.of("structure/outputs").status == "skipped"
    assert "the same defect as structure/shapes" in report.of("structure/outputs").message
    strict = run_checks(path, only=["structure"], policy={"profile": "release"}, process=process)
    assert strict.exit_code == 1
    asked = {"levels": {"structure": "error"}}
    assert run_checks(path, only=["structure"], policy=asked, process=process).exit_code == 1


def test_an_old_opset_is_a_warning_unless_the_policy_asks(tmp_path: Path, process: ModelProcess) -> None:
    model = build("(float[N, 4] x) => (float[N, 4] y)", "y = Relu (x)")
    model.opset_import[0].version = 9
    path = save(model, tmp_path)
    found = {}
    for name, policy in {
        "default": {},
        "release": {"profile": "release"},
        "asked": {"structure": {"min_opset": 10}},
        "allowed": {"structure": {"min_opset": 9}},
    }.items():
        result = run_checks(path, only=["structure/versions"], policy=policy, process=process)
        found[name] = result.of("structure/versions").status
    assert found == {"default": "warned", "release": "failed", "asked": "failed", "allowed": "passed"}


def test_outputs_and_inputs_are_sized_before_they_are_allocated(tmp_path: Path) -> None:
    body = "shape = Constant <value = int64[3] {1024, 1024, 64}> ()\n y = Expand (x, shape)"
    path = save(build("(float[1, 1, 1] x) => (float[1024, 1024, 64] y)", body), tmp_path)
    policy = {"limits": {"memory_mb": 900}}
    result = run_checks(path, only=["structure/run"], policy=policy).of("structure/run")
    assert result.status == "failed"
    assert "its outputs need 256 MiB; limits.memory_mb = 900 leaves 225 MiB" in result.message

    result = run_checks(path, only=["structure/run"], policy={"limits": {"memory_mb": 300}}).of(
        "structure/run"
    )
    assert result.status == "failed"
    assert "more memory than limits.memory_mb allows: one tensor takes 256 MiB" in result.message

    path = save(
        build("(float[20000, 20000] x) => (float[20000] y)", "y = ReduceMax <axes = [1], keepdims = 0> (x)"),
        tmp_path,
    )
    result = run_checks(path, only=["structure/run"], policy=policy).of("structure/run")
    assert result.status == "failed"
    assert "inputs of [20000, 20000] need 1.49 GiB; limits.memory_mb = 900" in result.message


@pytest.mark.parametrize(
    ("signature", "body", "message"),
    [
        (
            "(float[1, 1] x) => (float[8192, 4096] y, float[8192, 4096] z)",
            "n = Constant <value = int64[2] {8192, 4096}> ()\n y = Expand (x, n)\n z = Expand (x, n)",
            "its outputs need 256 MiB; limits.memory_mb = 900",
        ),
        (
            "(float[2147483648, 2147483648] x) => (float[1, 1] y)",
            "y = ReduceMax <axes = [0, 1]> (x)",
            "inputs of [2147483648, 2147483648] need",
        ),
        (
            "(double[16384, 4096] x, double[16384, 4096] z) => (double[16384, 4096] y)",
            "y = Add (x, z)",
            "inputs of [16384, 4096], [16384, 4096] need 1 GiB",
        ),
    ],
    ids=["two outputs together", "an input of 16 EiB", "two inputs together"],
)
def test_the_limit_holds_for_all_arrays_together(
    tmp_path: Path, signature: str, body: str, message: str
) -> None:
    path = save(build(signature, body), tmp_path)
    result = run_checks(path, only=["structure/run"], policy={"limits": {"memory_mb": 900}}).of(
        "structure/run"
    )
    assert result.status == "failed"
    assert message in result.message
