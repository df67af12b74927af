"""Running a model and comparing outputs."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

from growpipe.checks.measure.compare import compare, compare_each, run_model
from growpipe.graph_ops.errors import CheckFailed, MissingEnvironment, UsageError

GEMM = """
<ir_version: 8, opset_import: ["": 17]>
gemm (float[N, 3] x) => (float[N, 4] y) <float[4, 3] w = {1,0,0, 0,1,0, 0,0,1, 1,1,1}>
{
    y = Gemm <transB = 1> (x, w)
}
"""


def serialised(text: str) -> bytes:
    return onnx.parser.parse_model(text).SerializeToString()


@pytest.mark.parametrize("optimised", [True, False])
def test_run_model_gives_outputs_by_name(optimised: bool) -> None:
    x = np.float32([[1, 2, 3], [4, 5, 6]])
    outputs = run_model(serialised(GEMM), {"x": x, "unused": x}, optimised=optimised)
    np.testing.assert_array_equal(outputs["y"], np.float32([[1, 2, 3, 6], [4, 5, 6, 15]]))


def test_run_model_from_a_path(tmp_path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(serialised(GEMM))
    assert run_model(path, {"x": np.ones((1, 3), np.float32)})["y"].shape == (1, 4)


def test_run_model_refuses_what_cannot_run() -> None:
    with pytest.raises(UsageError, match="needs inputs"):
        run_model(serialised(GEMM), {})
    with pytest.raises(CheckFailed, match="could not run the model"):
        run_model(serialised(GEMM), {"x": np.ones((1, 5), np.float32)})
    with pytest.raises(CheckFailed, match="could not load the model"):
        run_model(b"not a model", {})


def test_a_device_that_is_not_there_is_no_silent_fallback() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine's onnxruntime has CUDA")
    with pytest.raises(MissingEnvironment, match="CUDAExecutionProvider"):
        run_model(serialised(GEMM), {"x": np.ones((1, 3), np.float32)}, device="cuda")


def test_compare_names_the_worst_output() -> None:
    reference = {"a": np.float32([[1, 2], [3, 4]]), "b": np.float32([10, -20])}
    candidate = {"a": np.float32([[1, 2], [3, 3]]), "b": np.float32([10, -21])}
    divergence = compare(reference, candidate)
    assert divergence.output == "a"
    assert divergence.max_abs == 1.0
    assert divergence.scale == 4.0
    assert divergence.relative == 0.25
    assert divergence.top1_agreement == 0.5
    assert compare_each(reference, candidate)["b"].relative == pytest.approx(0.05)
    expected = (1 + 4 + 9 + 12) / math.sqrt((1 + 4 + 9 + 16) * (1 + 4 + 9 + 9))
    assert divergence.cosine == pytest.approx(expected)


def test_equal_outputs_do_not_diverge() -> None:
    y = {"y": np.float32([[1, -np.inf, np.nan], [0, 0, 0]])}
    divergence = compare(y, y)
    assert (divergence.max_abs, divergence.relative, divergence.quantile) == (0.0, 0.0, 0.0)
    assert divergence.cosine == pytest.approx(1.0)
    assert divergence.non_finite == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_finite_in_one_alone_diverges_infinitely(bad: float) -> None:
    divergence = compare({"y": np.float32([1, 2])}, {"y": np.float32([1, bad])})
    assert divergence.relative == math.inf
    assert divergence.non_finite == 1


def test_zero_reference_has_no_relative_tolerance() -> None:
    assert compare({"y": np.zeros(3)}, {"y": np.full(3, 1e-30)}).relative == math.inf
    assert compare({"y": np.zeros(3)}, {"y": np.zeros(3)}).cosine == 1.0


def test_quantile_leaves_out_single_outliers() -> None:
    reference = np.ones(10_000)
    candidate = reference.copy()
    candidate[3] = 2.0
    divergence = compare({"y": reference}, {"y": candidate})
    assert divergence.relative == 1.0
    assert divergence.quantile == 0.0


def test_outputs_of_other_names_are_matched_by_position() -> None:
    divergence = compare({"out": np.ones(2)}, {"logits": np.ones(2) * 2})
    assert divergence.output == "logits"
    assert divergence.relative == 1.0


def test_integers_booleans_and_strings() -> None:
    assert compare({"y": np.int64([5, 10])}, {"y": np.int64([5, 9])}).relative == 0.1
    assert compare({"y": np.array([True])}, {"y": np.array([True])}).relative == 0.0
    assert compare({"y": np.array(["a"])}, {"y": np.array(["b"])}).relative == math.inf
    with pytest.raises(CheckFailed, match="the reference is"):
        compare({"y": np.array(["a"])}, {"y": np.array([1.0])})


def test_missing_outputs_and_other_shapes_fail() -> None:
    with pytest.raises(CheckFailed, match="are not there"):
        compare({"a": np.ones(1), "b": np.ones(1)}, {"a": np.ones(1)})
    with pytest.raises(CheckFailed, match="has shape"):
        compare({"a": np.ones(1)}, {"a": np.ones(2)})
    with pytest.raises(CheckFailed, match="no outputs"):
        compare({}, {})


def test_float64_extremes_do_not_overflow_the_cosine() -> None:
    assert compare({"y": np.full(2, 1e300)}, {"y": np.full(2, 1e300)}).cosine == pytest.approx(1.0)
