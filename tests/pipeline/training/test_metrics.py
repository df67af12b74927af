"""What counts as right, for every kind of target; targets that do not fit are one line."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from growpipe.graph_ops.errors import UsageError
from growpipe.training.metrics import Metric, binary_loss, samples_right

SCORES = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
STEPS = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])  # [samples, steps, classes]
PIXELS = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]])  # [samples, classes, pixels]


@pytest.mark.parametrize(
    ("metric", "output", "target", "right"),
    [
        ("classes", SCORES, torch.tensor([0, 1]), [1, 0]),
        ("classes", (SCORES, PIXELS), torch.tensor([0, 1]), [1, 0]),
        ("classes", {"scores": SCORES}, torch.tensor([0, 2]), [1, 1]),
        ("classes", PIXELS, torch.tensor([[0, 0], [0, 1]]), [0.5, 0.5]),
        ("classes", STEPS, torch.tensor([[0, 1, 0]]), [2 / 3]),
        ("labels", torch.tensor([1.0, -1.0, 3.0]), torch.tensor([1.0, 1.0, 1.0]), [1, 0, 1]),
        ("labels", torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 0]), [1, 1]),
        ("labels", torch.tensor([1.0, -1.0]), torch.tensor([[True], [True]]), [1, 0]),
        ("labels", SCORES - 0.5, torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]), [2 / 3, 1]),
    ],
)
def test_the_share_of_each_sample_is_counted(
    metric: Metric, output: object, target: Tensor, right: list[float]
) -> None:
    assert samples_right(metric, output, target).tolist() == pytest.approx(right)


@pytest.mark.parametrize(
    ("metric", "output", "target", "message"),
    [
        ("classes", torch.ones(4), torch.ones(4, dtype=torch.long), r"float32 \[4\] and targets int64 \[4\]"),
        ("classes", SCORES, SCORES, r"float32 \[2, 3\] and targets float32 \[2, 3\].*integer targets"),
        ("classes", SCORES, torch.tensor([[0], [1]]), r"targets int64 \[2, 1\]"),
        ("classes", None, torch.tensor([0]), "needs a tensor of scores"),
        ("labels", SCORES, torch.ones(2), "every target of 0 or 1 needs a score"),
    ],
)
def test_what_does_not_fit_is_one_line(metric: Metric, output: object, target: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        samples_right(metric, output, target)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3)])
def test_the_binary_loss_takes_scores_and_targets_of_any_alike_shape(shape: tuple[int, ...]) -> None:
    scores, target = torch.randn(shape), torch.randint(0, 2, shape)
    expected = -(target * scores.sigmoid().log() + (1 - target) * (1 - scores.sigmoid()).log()).mean()
    torch.testing.assert_close(binary_loss(scores, target), expected)
    torch.testing.assert_close(binary_loss(scores, target.reshape(-1, *shape[1:])), expected)
