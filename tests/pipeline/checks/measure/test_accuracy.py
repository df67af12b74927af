"""Accuracy and its interval."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from growpipe.checks.measure.accuracy import accuracy, wilson_interval
from growpipe.graph_ops.errors import CheckFailed, UsageError


def identity(shape: str, kind: str = "float") -> bytes:
    text = f"""
    <ir_version: 8, opset_import: ["": 17]>
    identity ({kind}[{shape}] x) => ({kind}[{shape}] y) {{ y = Identity(x) }}
    """
    return onnx.parser.parse_model(text).SerializeToString()


def scores(targets: np.ndarray, wrong: int, classes: int = 5) -> np.ndarray:
    shown = targets.copy()
    shown[:wrong] = (shown[:wrong] + 1) % classes
    return np.eye(classes, dtype=np.float32)[shown]


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
def test_accuracy_counts_every_sample_once(batch_size: int) -> None:
    targets = np.arange(100) % 5
    result = accuracy(identity("N, 5"), {"x": scores(targets, 13)}, targets, batch_size=batch_size)
    assert result.value == 0.87
    assert result.samples == 100
    # The interval of 87 of 100, as R's prop.test(87, 100, correct = FALSE) gives it.
    assert result.low == pytest.approx(0.7902, abs=1e-4)
    assert result.high == pytest.approx(0.9224, abs=1e-4)


def test_a_fixed_batch_is_filled_up() -> None:
    targets = np.arange(10) % 5
    result = accuracy(identity("4, 5"), {"x": scores(targets, 3)}, targets)
    assert (result.value, result.samples) == (0.7, 10)


def test_classes_per_position() -> None:
    targets = np.arange(12).reshape(2, 6) % 5
    x = np.moveaxis(np.eye(5, dtype=np.float32)[targets], -1, 1)  # [samples, classes, positions]
    x[0, :, 0] = [0, 1, 0, 0, 0]
    result = accuracy(identity("N, 5, 6"), {"x": x}, targets)
    assert result.value == pytest.approx(11 / 12)
    assert result.samples == 2


def test_outputs_that_are_classes_already() -> None:
    targets = np.arange(4)
    result = accuracy(identity("N", "int64"), {"x": np.int64([0, 1, 2, 0])}, targets)
    assert result.value == 0.75


def test_a_nan_is_never_right() -> None:
    x = np.full((3, 5), np.nan, np.float32)
    assert accuracy(identity("N, 5"), {"x": x}, np.zeros(3, np.int64)).value == 0.0


def test_the_wilson_interval_at_the_ends() -> None:
    low, high = wilson_interval(1.0, 10)
    assert high == pytest.approx(1.0)
    assert low == pytest.approx(0.7225, abs=1e-4)
    assert wilson_interval(0.0, 10)[0] == pytest.approx(0.0, abs=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="samples of the targets"):
        accuracy(identity("N, 5"), {"x": np.zeros((3, 5), np.float32)}, np.zeros(4, np.int64))
    with pytest.raises(UsageError, match="integer classes"):
        accuracy(identity("N, 5"), {"x": np.zeros((3, 5), np.float32)}, np.zeros(3))
    with pytest.raises(UsageError, match="no output"):
        accuracy(identity("N, 5"), {"x": np.zeros((3, 5), np.float32)}, np.zeros(3, np.int64), output="z")
    with pytest.raises(CheckFailed, match="gives no classes"):
        accuracy(identity("N"), {"x": np.zeros(3, np.float32)}, np.zeros(3, np.int64))
