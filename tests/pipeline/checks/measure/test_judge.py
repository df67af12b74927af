"""What a model is judged by: metrics of every task in onnxruntime, with their intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from growpipe.checks.measure.judge import Judge, Judged, score, task_of
from growpipe.checks.measure.sessions import open_session
from growpipe.graph_ops.errors import CheckFailed, UsageError
from growpipe.metrics import wilson_interval
from growpipe.quality import METRICS_OF_TASKS, Score, TaskName


def identity(shape: str, kind: str = "float") -> bytes:
    text = f"""
    <ir_version: 8, opset_import: ["": 17]>
    identity ({kind}[{shape}] x) => ({kind}[{shape}] y) {{ y = Identity(x) }}
    """
    return onnx.parser.parse_model(text).SerializeToString()


def accuracy(
    model: bytes, inputs: dict[str, np.ndarray], targets: np.ndarray, output: str | None = None
) -> Score:
    return score(model, inputs, targets, Judge(output=output))


def scores(targets: np.ndarray, wrong: int, classes: int = 5) -> np.ndarray:
    shown = targets.copy()
    shown[:wrong] = (shown[:wrong] + 1) % classes
    return np.eye(classes, dtype=np.float32)[shown]


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
def test_accuracy_counts_every_sample_once(batch_size: int) -> None:
    targets = np.arange(100) % 5
    result = score(identity("N, 5"), {"x": scores(targets, 13)}, targets, Judge(batch_size=batch_size))
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


def test_equal_scores_put_the_first_class_first() -> None:
    targets = np.arange(8)
    constant = {"x": np.zeros((8, 8), np.float32)}
    top5 = Judge(metric="top5_accuracy")
    assert score(identity("N, 8"), constant, targets, top5).value == 5 / 8
    constant["x"][0] = np.nan
    assert score(identity("N, 8"), constant, targets, top5).value == 4 / 8


@pytest.mark.parametrize(
    ("targets", "task"),
    [
        (np.int64([0, 1]), "classification"),
        (np.uint8([[0, 255]]), "classification"),
        (np.array([True, False]), "binary"),
        (np.float32([[0], [1]]), "binary"),
        (np.float32([[0, 1]]), "multilabel"),
        (np.float32([0.5, 1]), "regression"),
    ],
)
def test_targets_tell_their_task(targets: np.ndarray, task: TaskName) -> None:
    assert task_of(targets) == task


def test_labels_are_those_above_a_threshold() -> None:
    x = {"x": np.float32([0.2, 0.6, 0.9, np.nan])}
    targets = np.float32([0, 1, 0, 0])
    assert score(identity("N"), x, targets, Judge("binary")).value == 1 / 4
    assert score(identity("N"), x, targets, Judge("binary", threshold=0.5)).value == 2 / 4
    assert score(identity("N"), x, targets[:, None], Judge("binary", threshold=0.5)).value == 2 / 4


@pytest.mark.parametrize("shape", ["N, 7", "N, 7, 6", "N, 6, 7"])
def test_metrics_are_those_of_the_training(shape: str) -> None:
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("growpipe.training.metrics")
    random = np.random.default_rng(0)
    sizes = [40 if size == "N" else int(size) for size in shape.split(", ")]
    x = random.normal(size=sizes).astype(np.float32)
    x[3, ..., 0] = np.nan
    wanted: dict[TaskName, np.ndarray] = {
        "classification": random.integers(0, 7, [n for n in sizes if n != 7]),
        "binary": random.integers(0, 2, sizes).astype(np.float32),
        "multilabel": random.integers(0, 2, sizes),
        "regression": np.nan_to_num(x) + random.normal(size=sizes).astype(np.float32),
    }
    for task, targets in wanted.items():
        outputs = np.nan_to_num(x) if task == "regression" else x
        for name in set(METRICS_OF_TASKS[task]) - {"loss"}:
            tally = metrics.metric_of(name, task).tally()
            tally.add(torch.from_numpy(outputs), torch.from_numpy(targets), 40)
            found = score(identity(shape), {"x": outputs}, targets, Judge(task, name, batch_size=16))
            assert found.value == pytest.approx(tally.value(), rel=1e-12), (task, name)
            assert found.standard_error is not None
            if name not in ("accuracy", "top5_accuracy"):
                assert found.standard_error == pytest.approx(tally.standard_error(), rel=1e-9), (task, name)


def test_outputs_that_are_classes_have_an_f1_too() -> None:
    given, targets = np.int64([0, 1, 4, 0]), np.int64([0, 1, 2, 0])
    found = score(identity("N", "int64"), {"x": given}, targets, Judge(metric="f1", batch_size=1))
    assert found.value == pytest.approx((1 + 1 + 0 + 0) / 4)  # of the classes 0, 1, 2 and 4


def test_an_error_that_is_not_finite_is_told() -> None:
    x = {"x": np.float32([1.0, np.inf])}
    with pytest.raises(CheckFailed, match="RMSE is inf on 2 samples"):
        score(identity("N"), x, np.float32([0.5, 2.0]), Judge("regression"))
    with pytest.raises(CheckFailed, match=r"R² is nan on 2 samples.*not defined"):
        score(identity("N"), x, np.float32([2.0, 2.0]), Judge("regression", "r2"))


def test_the_message_names_the_task_that_fits() -> None:
    with pytest.raises(CheckFailed, match=r"set accuracy\.task to binary or multilabel"):
        score(identity("N, 5"), {"x": np.zeros((3, 5), np.float32)}, np.ones((3, 5), np.int64), Judge())
    with pytest.raises(CheckFailed, match=r"float32 \[3, 5\].*int64 \[3\].*every target needs one"):
        score(identity("N, 5"), {"x": np.zeros((3, 5), np.float32)}, np.ones(3, np.int64), Judge("binary"))


def test_a_metric_of_the_users_own_may_give_values_or_their_mean_or_gather_batches(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from growpipe.checks.child.torch_metric import judge_by_own_metric

    (tmp_path / "mine.py").write_text(
        "def single(output, target, scale):\n    return scale * (output - target).mean(dim=1)\n\n\n"
        "def mean(output, target):\n    return (output - target).mean().item()\n\n\n"
        "def pair(outputs, target):\n    return outputs[0][:2, 0]\n\n\n"
        "class Most:\n    most = 0.0\n\n"
        "    def update(self, output, target):\n"
        "        self.most = max(self.most, float((output - target).max()))\n\n"
        "    def compute(self):\n        return self.most\n"
    )
    x = np.arange(12, dtype=np.float32).reshape(6, 2)

    def judged(name: str, model: bytes = identity("N, 2"), **judge: Any) -> Judged:
        own = Judge("regression", f"{tmp_path}/mine.py:{name}", lower_is_better=True, batch_size=4, **judge)
        return judge_by_own_metric(open_session(model), {"x": x}, np.zeros((6, 2), np.float32), own)

    values = judged("single", metric_options={"scale": 2.0})
    assert (values.value, values.samples) == (11.0, 6)
    assert values.rows is not None
    assert values.rows[:, 0].tolist() == [1, 5, 9, 13, 17, 21]
    assert (judged("mean").value, judged("mean").rows) == (5.5, None)
    assert (judged("Most").value, judged("Most").rows) == (11.0, None)
    assert judged("Most", output="y").value == 11.0
    two = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["": 17]>
    two (float[N, 2] x) => (float[N, 2] y, float[N, 2] z) { y = Identity(x) z = Neg(x) }
    """).SerializeToString()
    with pytest.raises(UsageError, match="pair gave 2 values for 4 samples"):
        judged("pair", two)
    with pytest.raises(UsageError, match=r"the model has no output 'w'; it has \['y', 'z'\]"):
        judged("mean", two, output="w")
