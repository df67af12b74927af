"""Losses of tasks, of torch.nn by name, and of the user; shapes that torch would broadcast are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from growpipe.graph_ops.errors import UsageError
from growpipe.quality import TaskName
from growpipe.training.losses import loss_of


def loss(task: TaskName, reference: str | None = None, folder: Path | None = None, **options: Any) -> Any:
    return loss_of(task, reference, options, folder, "cpu")


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3)])
@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_the_binary_loss_takes_scores_and_targets_of_any_alike_shape(
    task: TaskName, shape: tuple[int, ...]
) -> None:
    scores, target = torch.randn(shape), torch.randint(0, 2, shape)
    expected = -(target * scores.sigmoid().log() + (1 - target) * (1 - scores.sigmoid()).log()).mean()
    torch.testing.assert_close(loss(task)(scores, target), expected)
    torch.testing.assert_close(loss(task)(scores.reshape(5, -1, 1), target), expected)


def test_outputs_get_the_shape_of_the_targets_and_are_never_broadcast() -> None:
    output, target = torch.randn(6, 1), torch.randn(6)
    expected = (output[:, 0] - target).square().mean()
    torch.testing.assert_close(loss("regression")(output, target), expected)
    torch.testing.assert_close(loss("regression")({"y": output}, target), expected)
    with pytest.raises(UsageError, match=r"outputs float32 \[6, 1\] and targets float32 \[6, 2\]"):
        loss("regression")(output, torch.randn(6, 2))


def test_scores_may_have_the_classes_on_axis_1_or_last() -> None:
    scores, target = torch.randn(4, 5, 3), torch.randint(0, 3, (4, 5))
    expected = nn.functional.cross_entropy(scores.flatten(0, 1), target.flatten())
    torch.testing.assert_close(loss("classification")(scores, target), expected)
    torch.testing.assert_close(loss("classification")(scores.movedim(-1, 1), target), expected)


def test_a_loss_of_torch_is_found_by_its_name_and_takes_its_options() -> None:
    output, target = torch.randn(4), torch.randn(4)
    found = loss("regression", "smoothl1loss", beta=0.5)(output, target)
    torch.testing.assert_close(found, nn.functional.smooth_l1_loss(output, target, beta=0.5))
    scores, classes = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    found = loss("classification", "CrossEntropyLoss", weight=[1.0, 3.0])(scores, classes)
    torch.testing.assert_close(found, nn.functional.cross_entropy(scores, classes, torch.tensor([1.0, 3.0])))
    with pytest.raises(UsageError, match="no loss 'HuberLos'; did you mean 'HuberLoss'"):
        loss("regression", "HuberLos")
    with pytest.raises(UsageError, match=r"loss_options do not fit HuberLoss: .*'dleta'"):
        loss("regression", "HuberLoss", dleta=1.0)


def test_a_loss_of_the_user_is_a_function_or_a_class_and_takes_what_the_network_gives(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").write_text(
        "def both(output, target, scale=1.0):\n"
        "    return scale * (output['a'] + output['b'] - target).abs().mean()\n"
        "class Both:\n"
        "    def __init__(self, scale):\n"
        "        self.scale = scale\n"
        "    def __call__(self, output, target):\n"
        "        return both(output, target, self.scale)\n"
    )
    output, target = {"a": torch.ones(2), "b": torch.ones(2)}, torch.zeros(2)
    assert loss("regression", "mine.py:both", tmp_path)(output, target) == 2.0
    for name in ("both", "Both"):
        assert loss("regression", f"mine.py:{name}", tmp_path, scale=3.0)(output, target) == 6.0
    with pytest.raises(UsageError, match=r'and the network gives 2 \(dict\); set loss = "file.py:name"'):
        loss("regression")(output, target)
