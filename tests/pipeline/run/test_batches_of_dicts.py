"""Networks that take names and give objects: exported, judged in onnxruntime, and scored as in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.load_save import save_model
from growpipe.run.recipe import Recipe
from growpipe.run.rehearsal import rehearse
from growpipe.run.stages.score import score_on_test
from growpipe.run.store import Run
from growpipe.run.task import Task, load_task
from growpipe.training.evaluation import evaluate

NET = """
import torch
from torch import nn
from growpipe import Loaders

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(2, 3)
        self.head, self.aux = nn.Linear(3, 1), nn.Linear(3, 2)
    def forward(self, left, skipped=None, *, right):
        hidden = torch.tanh(self.left(left) + self.right(right))
        return {"y": self.head(hidden), "more": (self.aux(hidden),)}

def loaders(batch_size, seed, form):
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    def batch(i):
        part = x[i : i + 8]
        inputs, target = {"right": part[:, :2], "left": part}, {"y": part[:, :1], "more": part[:, :2]}
        return (inputs, target) if form == "pairs" else {**inputs, "labels": target, "name": "no tensor"}
    return Loaders(*([batch(i)] for i in (0, 8, 16)))

def both(output, target):
    (more,) = output["more"]
    return nn.functional.mse_loss(output["y"], target["y"]) + nn.functional.mse_loss(more, target["more"])

def difference(output, target):
    return (output["more"][0] - target["more"]).abs().mean(1)
"""


def task(folder: Path, form: str, **keys: Any) -> Task:
    (folder / "net.py").write_text(NET)
    given = {
        "name": "mine",
        "model": "net.py:Net",
        "data": "net.py:loaders",
        "data_options": {"form": form},
        "task": "regression",
        "loss": "net.py:both",
        "metric": "net.py:difference",
        "lower_is_better": True,
    }
    recipe = Recipe(**{**given, **keys})
    return load_task(Run(folder, recipe, folder, seed=0, device="cpu"))


def test_keys_are_arguments_and_outputs_keep_their_form(tmp_path: Path) -> None:
    made = task(tmp_path, "pairs")
    model = made.build_seed()
    rehearse(made, model)
    export = made.export(model)
    assert [value.name for value in export.graph.graph.inputs] == ["right", "left"]
    assert {group.width for group in export.groups().groups if group.splittable} == {3}
    file = tmp_path / "net.onnx"
    save_model(export.graph, file)
    score = score_on_test(made, file)
    expected = evaluate(model, made.objective.loaders.test, made.objective).score
    assert score.value == pytest.approx(expected, rel=1e-5)
    assert score.samples == 8
    assert score.quality.name == "difference"
    assert score.low is not None
    assert score.standard_error == pytest.approx((score.value - score.low) / 1.96, rel=1e-3)


def test_a_target_in_the_dict_is_named_by_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a dict with the keys \['labels', 'left'.*set target in the rec"):
        task(tmp_path, "whole")
    with pytest.raises(UsageError, match=r"a batch has no key 'label'; it has \['labels', 'left'"):
        task(tmp_path, "whole", target="label")
    # What is no tensor is no input.
    made = task(tmp_path, "whole", target="labels", metric="loss", lower_is_better=None)
    assert made.names == ("right", "left")
    rehearse(made, made.build_seed())


def test_batches_whose_keys_change_are_one_line(tmp_path: Path) -> None:
    from growpipe.data.loader_items import ByPosition

    loader = ByPosition([({"a": torch.ones(2)}, 1), ({"b": torch.ones(2)}, 1)], ("a",))
    with pytest.raises(UsageError, match="a batch has no key 'a'; it has \\['b'\\]"):
        list(loader)
