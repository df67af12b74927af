"""What models are judged by in the checks: any metric of any task, in the metric's own direction."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from growpipe.checks import CheckReport, run_checks
from growpipe.checks.baseline import write_baseline
from growpipe.checks.child.model_process import ModelProcess
from growpipe.checks.policy import load_policy
from growpipe.graph_ops.errors import UsageError
from tests.helpers.broken_models import regression, with_noise
from tests.helpers.good_models import cnn, save


@pytest.fixture(scope="module")
def process() -> Iterator[ModelProcess]:
    with ModelProcess(seconds=60) as shared:
        yield shared


def test_an_error_is_better_if_it_is_lower(tmp_path: Path, process: ModelProcess) -> None:
    data = regression(tmp_path, of=cnn())
    good, worse = save(cnn(), tmp_path, "good.onnx"), save(with_noise(0.1), tmp_path, "worse.onnx")

    def checked(model: Path, reference: Path | None, **policy: Any) -> CheckReport:
        return run_checks(
            model, reference=reference, data=[data], only=["accuracy"], policy=policy, process=process
        )

    report = checked(good, worse, accuracy={"ceiling": 0.06})
    assert report.exit_code == 0
    floor, drop = report.of("accuracy/floor"), report.of("accuracy/drop")
    assert floor.message.startswith("RMSE 0.05")
    assert floor.message.endswith("on 400 samples, ceiling 0.06")
    assert floor.measured["metric"] == "RMSE"
    assert floor.measured["low"] < floor.measured["value"] == pytest.approx(0.05, rel=0.1)
    assert drop.message.startswith("RMSE 0.05")
    assert "rise -0" in drop.message
    assert drop.measured["value"] < 0

    report = checked(worse, good)
    rise = report.of("accuracy/drop")
    assert (report.exit_code, rise.status) == (1, "failed")
    assert rise.message.endswith("(0.01 of the reference's)")
    assert rise.measured["low"] > 0
    assert checked(worse, good, accuracy={"max_drop": 1.0}).exit_code == 0
    assert checked(worse, good, accuracy={"max_relative_drop": 20.0}).exit_code == 0
    assert checked(worse, good, accuracy={"max_relative_drop": 0.1}).exit_code == 1

    write_baseline(checked(good, None), tmp_path / "baseline.json")
    against = run_checks(worse, data=[data], only=["accuracy"], baseline=tmp_path / "baseline.json")
    assert against.of("accuracy/drop").status == "failed"
    other = run_checks(
        worse,
        data=[data],
        only=["accuracy"],
        baseline=tmp_path / "baseline.json",
        policy={"accuracy": {"metric": "mae"}},
    )
    assert "the baseline holds the RMSE and not the MAE" in other.of("accuracy/drop").message


def test_a_metric_of_the_users_own_is_that_of_the_policys_folder(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "mine.py").write_text(
        "def error(output, target, power):\n    return (output - target).abs().pow(power).mean(dim=1)\n"
    )
    policy = tmp_path / "growpipe.toml"
    policy.write_text(
        '[accuracy]\nmetric = "mine.py:error"\nlower_is_better = true\nmetric_options = { power = 2 }\n'
    )
    report = run_checks(
        save(with_noise(0.1), tmp_path),
        reference=save(cnn(), tmp_path, "reference.onnx"),
        data=[regression(tmp_path, of=cnn())],
        only=["accuracy"],
        policy=policy,
    )
    assert report.exit_code == 1
    assert report.of("accuracy/floor").message.startswith("error 0.39")
    assert report.of("accuracy/drop").measured["low"] > 0
    assert report.of("accuracy/drop").message.startswith("error 0.39")


@pytest.mark.parametrize(
    ("accuracy", "message"),
    [
        ({"metric": "rmse", "floor": 0.1}, "RMSE is better if it is lower; set ceiling instead of floor"),
        ({"ceiling": 0.1, "task": "binary"}, "more is better of the accuracy; set floor instead"),
        ({"floor": 92}, "limits of the accuracy are between 0 and 1: 0.9 is 90 %"),
        ({"metric": "loss"}, "the loss is code of a recipe"),
        ({"metric": "acuracy"}, "there is no metric 'acuracy'; known are accuracy, f1, mae"),
        ({"metric": "mae", "task": "binary"}, "a binary task has no metric 'mae'"),
        ({"metric": "mine.py:error"}, "set lower_is_better = true or false"),
        ({"metric": "mae", "lower_is_better": True}, "are of a metric of your own; remove them"),
        ({"max_drop": 0.1, "max_relative_drop": 0.1}, "both bound the drop; set one"),
    ],
)
def test_a_policy_says_what_its_metric_cannot_be(accuracy: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        load_policy(None, {"accuracy": accuracy})


def test_limits_that_do_not_fit_the_targets(tmp_path: Path, process: ModelProcess) -> None:
    data = regression(tmp_path, of=cnn())
    path = save(cnn(), tmp_path)
    with pytest.raises(UsageError, match=r"float32 \[400, 5\] and taken as regression.*set ceiling"):
        run_checks(path, data=[data], policy={"accuracy": {"floor": 0.9}}, process=process)
    with pytest.raises(UsageError, match=r"integer classes.*accuracy\.task = regression"):
        run_checks(path, data=[data], policy={"accuracy": {"task": "classification"}}, process=process)
