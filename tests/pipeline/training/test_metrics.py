"""Metrics against scikit-learn and by hand, in batches as whole; targets that do not fit are one line."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn import metrics as peers
from torch import Tensor

from growpipe.graph_ops.errors import UsageError
from growpipe.quality import METRICS, METRICS_OF_TASKS, Quality, TaskName
from growpipe.training.metrics import ACCURACY, Metric, metric_of, own_metric

SCORES = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
STEPS = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])  # [samples, steps, classes]
PIXELS = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]])  # [samples, classes, pixels]


def value(metric: Metric, output: Any, target: Any, parts: int = 1) -> float:
    """The metric of a set that comes in so many batches."""
    tally = metric.tally()
    for scores, wanted in zip(output.chunk(parts), target.chunk(parts), strict=True):
        tally.add(scores, wanted, len(wanted))
    return tally.value()


@pytest.mark.parametrize(
    ("task", "output", "target", "right"),
    [
        ("classification", SCORES, torch.tensor([0, 1]), 1 / 2),
        ("classification", PIXELS, torch.tensor([[0, 0], [0, 1]]), 1 / 2),
        ("classification", STEPS, torch.tensor([[0, 1, 0]]), 2 / 3),
        ("classification", SCORES * float("nan"), torch.tensor([0, 0]), 0.0),
        ("binary", torch.tensor([1.0, -1.0, 3.0]), torch.tensor([1.0, 1.0, 1.0]), 2 / 3),
        ("binary", torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 0]), 1.0),
        ("binary", torch.tensor([1.0, -1.0]), torch.tensor([[True], [True]]), 1 / 2),
        ("multilabel", SCORES - 0.5, torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]), 5 / 6),
    ],
)
def test_the_share_that_is_right_is_counted(
    task: TaskName, output: Tensor, target: Tensor, right: float
) -> None:
    assert value(metric_of("accuracy", task), output, target) == pytest.approx(right)


def test_the_first_tensor_of_an_output_is_judged() -> None:
    tally = ACCURACY.tally()
    tally.add((SCORES, PIXELS), torch.tensor([0, 1]), 2)
    tally.add({"scores": SCORES}, torch.tensor([0, 2]), 2)
    assert tally.value() == pytest.approx(3 / 4)


@pytest.mark.parametrize("parts", [1, 3])
def test_metrics_are_those_of_scikit_learn(parts: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(60, 7, generator=generator)
    classes = torch.randint(0, 6, (60,), generator=generator)  # class 6 may be given but is never right
    labels = torch.rand(60, 7, generator=generator) > 0.5
    given = scores.argmax(1)
    found = {
        name: value(metric_of(name, "classification"), scores, classes, parts)
        for name in ("f1", "mean_iou", "top5_accuracy")
    }
    assert found["f1"] == pytest.approx(peers.f1_score(classes, given, average="macro"))
    assert found["mean_iou"] == pytest.approx(peers.jaccard_score(classes, given, average="macro"))
    five = peers.top_k_accuracy_score(classes, scores, k=5, labels=range(7))
    assert found["top5_accuracy"] == pytest.approx(five)
    several = value(metric_of("f1", "multilabel"), scores, labels, parts)
    assert several == pytest.approx(peers.f1_score(labels, scores > 0, average="macro"))
    one = value(metric_of("f1", "binary"), scores[:, :1], labels[:, 0], parts)
    assert one == pytest.approx(peers.f1_score(labels[:, 0], scores[:, 0] > 0))
    wanted = scores + torch.randn(60, 7, generator=generator)
    for name, peer in {
        "mae": peers.mean_absolute_error,
        "r2": peers.r2_score,
        "rmse": lambda y, x: math.sqrt(peers.mean_squared_error(y, x)),
    }.items():
        assert value(metric_of(name, "regression"), scores, wanted, parts) == pytest.approx(
            peer(wanted, scores)
        ), name


def test_pixels_count_for_the_mean_iou() -> None:
    target = torch.tensor([[0, 1], [0, 0]])  # given are 0 1 and 0 0
    assert value(metric_of("mean_iou", "classification"), PIXELS, target) == 1.0
    masks = torch.tensor([[[1.0, -1.0]], [[1.0, 1.0]]])  # [samples, 1, pixels]
    assert value(metric_of("mean_iou", "binary"), masks, torch.ones(2, 1, 2)) == pytest.approx(3 / 4)


@pytest.mark.parametrize("name", METRICS_OF_TASKS["regression"][:3])
def test_the_standard_error_is_that_of_repeated_sets(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    values, told = [], []
    for _ in range(300):
        target = torch.randn(100, generator=generator)
        tally = metric_of(name, "regression").tally()
        tally.add(target + 0.5 * torch.randn(100, generator=generator), target, 100)
        values.append(tally.value())
        told.append(tally.standard_error())
    spread = float(torch.tensor(values).std())
    assert sum(told) / len(told) == pytest.approx(spread, rel=0.15)  # type: ignore[arg-type]


def test_a_metric_of_the_users_own_may_give_values_or_their_mean_or_gather_batches() -> None:
    quality = Quality("mine", lower_is_better=True)
    output, target = torch.arange(6.0), torch.zeros(6)

    class Greatest:
        def __init__(self, start: float = 0.0) -> None:
            self.found = start

        def update(self, output: Tensor, target: Tensor) -> None:
            self.found = max(self.found, float((output - target).max()))

        def compute(self) -> Tensor:
            return torch.tensor(self.found)

    def differences(output: Tensor, target: Tensor, scale: float) -> Tensor:
        return scale * (output - target)

    single = own_metric("m:d", differences, {"scale": 2.0}, quality)
    mean = own_metric("m:e", lambda output, target: float((output - target).mean()), {}, quality)
    assert value(single, output, target, 2) == 5.0
    assert value(mean, output, target, 2) == 2.5
    greatest = own_metric("m:Greatest", Greatest, {"start": 1.0}, quality)
    assert value(greatest, output, target, 2) == 5.0
    assert value(greatest, output[:1], target[:1]) == 1.0, "every set begins anew"
    for metric, known in ((single, True), (mean, False), (greatest, False)):
        tally = metric.tally()
        tally.add(output, target, 6)
        assert (tally.standard_error() is not None) == known
    with pytest.raises(UsageError, match="m:f gave 2 values for 6 samples"):
        value(own_metric("m:f", lambda output, target: output[:2], {}, quality), output, target)


@pytest.mark.parametrize(
    ("name", "task", "output", "target", "message"),
    [
        (
            "accuracy",
            "classification",
            torch.ones(4),
            torch.ones(4, dtype=torch.long),
            r"float32 \[4\] and targets int64 \[4\]",
        ),
        (
            "accuracy",
            "classification",
            SCORES,
            SCORES,
            r"float32 \[2, 3\] and targets float32 \[2, 3\].*integer targets",
        ),
        ("f1", "classification", SCORES, torch.tensor([[0], [1]]), r"targets int64 \[2, 1\]"),
        ("accuracy", "classification", None, torch.tensor([0]), "needs a tensor of scores"),
        ("accuracy", "binary", SCORES, torch.ones(2), "every target needs an output"),
        ("rmse", "regression", SCORES, torch.ones(2), "every target needs an output"),
    ],
)
def test_what_does_not_fit_is_one_line(
    name: str, task: TaskName, output: object, target: Tensor, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        metric_of(name, task).tally().add(output, target, len(target))
    assert "\n" not in str(refusal.value)


def test_every_named_metric_of_a_task_is_computed() -> None:
    for task, names in METRICS_OF_TASKS.items():
        for name in set(names) - {"loss"}:  # the loss is the recipe's
            assert metric_of(name, task).quality == METRICS[name]
