"""What does not fit is said before anything is trained: one line that names what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from growpipe.graph_ops.errors import UsageError
from growpipe.run.recipe import Recipe
from growpipe.run.rehearsal import rehearse
from growpipe.run.store import Run
from growpipe.run.task import load_task

NET = """
import torch
from torch import nn
from growpipe import Loaders

class Net(nn.Module):
    def __init__(self, outputs=3, form="tensor"):
        super().__init__()
        self.form = form
        self.layer = nn.Linear(4, outputs)
    def forward(self, x):
        y = self.layer(x)
        return {"tensor": y, "tuple": (y, x), "dict": {"scores": y, "x": x}, "flat": y.flatten(),
                "softmax": y.softmax(1)}[self.form]

def loaders(batch_size, seed, target):
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    y = {
        "classes": torch.arange(16) % 3,
        "one-hot": torch.eye(3)[torch.arange(16) % 3],
        "numbers": x[:, :1],
        "flat": x[:, 0],
        "binary": (x[:, :1] > 0).float(),
        "multilabel": (x[:, :3] > 0).float(),
        "nan": x[:, :1] * float("nan"),
    }[target]
    batches = [(x[:8], y[:8]), (x[8:], y[8:])]
    return Loaders(batches, batches, batches)

def once(batch_size, seed):
    parts = loaders(batch_size, seed, "classes")
    return Loaders((batch for batch in parts.train), parts.validation, parts.test)

def summed(output, target):
    return nn.functional.cross_entropy(output, target, reduction="sum")

def first(output, target):
    scores = output["scores"] if isinstance(output, dict) else output[0]
    return nn.functional.cross_entropy(scores, target)
"""


def tried(folder: Path, target: str, **keys: Any) -> None:
    (folder / "net.py").write_text(NET)
    given = {"name": "mine", "model": "net.py:Net", "data": "net.py:loaders"}
    recipe = Recipe(**{**given, "data_options": {"target": target}, **keys})
    task = load_task(Run(folder, recipe, folder, seed=0, device="cpu"))
    rehearse(task, task.build_seed())


@pytest.mark.parametrize(
    ("target", "keys"),
    [
        ("classes", {}),
        ("classes", {"model_options": {"form": "tuple"}, "loss": "net.py:first"}),
        ("classes", {"model_options": {"form": "dict"}, "loss": "net.py:first"}),
        ("numbers", {"task": "regression", "model_options": {"outputs": 1}}),
        ("binary", {"task": "binary", "model_options": {"outputs": 1}}),
        ("binary", {"task": "binary", "model_options": {"outputs": 1, "form": "flat"}}),
        (
            "flat",
            {"task": "regression", "model_options": {"outputs": 1}, "loss": "HuberLoss", "metric": "r2"},
        ),
        ("classes", {"loss": "CrossEntropyLoss", "loss_options": {"weight": [1.0, 2.0, 1.0]}}),
        ("multilabel", {"task": "multilabel"}),
    ],
)
def test_tasks_that_fit_pass(
    target: str, keys: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried(tmp_path, target, **keys)
    assert capsys.readouterr().err == ""  # nothing is warned of


@pytest.mark.parametrize(
    ("target", "keys", "message"),
    [
        ("numbers", {}, 'set task = "regression" in the recipe'),
        ("flat", {"model_options": {"outputs": 1}}, 'set task = "regression" in the recipe'),
        ("binary", {"model_options": {"outputs": 1}}, 'set task = "binary" in the recipe'),
        ("multilabel", {}, 'set task = "multilabel" in the recipe'),
        ("one-hot", {}, 'integer targets.*set task = "multilabel"'),
        ("classes", {"model_options": {"form": "flat"}}, "1D input.*the first training batch has"),
        (
            "classes",
            {"model_options": {"form": "dict"}},
            r"gives 2 \(dict\).*inputs \[8, 4\] float32 and targets \[8\] int64",
        ),
        (
            "one-hot",
            {"loss": "CrossEntropyLoss"},
            'the metric accuracy does not fit: .*integer targets.*set metric = "loss"',
        ),
        (
            "numbers",
            {"task": "regression", "model_options": {"outputs": 2}},
            r"outputs float32 \[8, 2\] and targets float32 \[8, 1\] do not fit",
        ),
        ("classes", {"loss": "net.py:summed"}, "not a mean over samples.*reduction='mean'"),
        (
            "nan",
            {"task": "regression", "model_options": {"outputs": 1}},
            "the loss is nan on the first training batch; look at the data",
        ),
        ("classes", {"data": "net.py:once", "data_options": {}}, r"the train loader .* read only once \(gen"),
    ],
)
def test_tasks_that_do_not_fit_are_one_line(
    target: str, keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        tried(tmp_path, target, **keys)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("form", "warned"), [("softmax", True), ("tensor", False)])
def test_a_softmax_before_cross_entropy_is_told(
    form: str, warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried(tmp_path, "classes", model_options={"form": form})
    assert ("remove the network's last Softmax" in capsys.readouterr().err) == warned
