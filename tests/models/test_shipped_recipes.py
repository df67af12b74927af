"""Shipped recipes: all are valid and build their network; those that need no data run."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from growpipe.checks.measure.compare import run_model
from growpipe.cli import cli
from growpipe.data import idx
from growpipe.graph_ops.errors import UsageError
from growpipe.models import rbf
from growpipe.run.locate import shipped_recipes
from growpipe.run.recipe import load_recipe
from growpipe.seeding import seed_everything
from growpipe.training.evaluation import Objective
from growpipe.training.optimizers import make_optimizer
from growpipe.training.train import TrainingStage, train
from growpipe.user_code import load_reference

pytestmark = pytest.mark.slow

EVERYWHERE = ("chars", "digits", "rbf", "shapes", "shapes-pointnet")


def test_all_recipes_are_there() -> None:
    assert set(shipped_recipes()) >= {
        *EVERYWHERE,
        "cifar10",
        "cifar100",
        "fashion",
        "imagenet",
        "imagenet-v2",
        "modelnet40",
        "modelnet40-pointnet",
    }


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_builds_its_network(name: str) -> None:
    text = resources.files("growpipe.models").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    recipe, folder = load_recipe(name)
    assert recipe.name == name
    assert folder is None
    model = load_reference(recipe.model, None)(**recipe.model_options)
    assert isinstance(model, nn.Module)
    assert callable(load_reference(recipe.data, None))


@pytest.mark.parametrize("name", sorted(set(shipped_recipes()) - set(EVERYWHERE)))
def test_without_data_a_recipe_says_where_to_get_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GROWPIPE_DATA", raising=False)
    monkeypatch.setattr(idx, "DEBIAN_FOLDER", "/absent")
    recipe, _ = load_recipe(name)
    with pytest.raises(UsageError, match=r"from https://.* set GROWPIPE_DATA to the folder"):
        load_reference(recipe.data, None)(batch_size=4, seed=0, **recipe.data_options)


def test_a_short_run_from_a_shipped_recipe(tmp_path: Path) -> None:
    text = resources.files("growpipe.models").joinpath("rbf.toml").read_text(encoding="utf-8")
    settings = {"epochs": 1, "final_epochs": 1, "rounds": 1, "samples": 100}
    lines = [
        f"{key} = {settings[key]}" if (key := line.partition(" ")[0]) in settings else line
        for line in text.splitlines()
    ]
    (tmp_path / "short.toml").write_text("\n".join(lines))
    arguments = ["run", str(tmp_path / "short.toml"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    feed = {"x": np.linspace(-5, 5, 3, dtype=np.float32)[:, None]}
    (output,) = run_model(tmp_path / "run" / "final" / "model.onnx", feed).values()
    assert output.shape == (3, 1)
    assert np.isfinite(output).all()


@pytest.mark.parametrize("name", ["shapes", "shapes-pointnet"])
def test_the_shapes_can_be_learned(name: str) -> None:
    recipe, _ = load_recipe(name)
    seed_everything(0, name)
    model = load_reference(recipe.model, None)(**recipe.model_options)
    options = {**recipe.data_options, "points": 64, "train_samples": 640, "evaluation_samples": 100}
    parts = load_reference(recipe.data, None)(batch_size=32, seed=0, **options)
    history = train(
        model,
        make_optimizer(model, recipe.train),
        Objective(parts, nn.functional.cross_entropy),
        recipe.train,
        TrainingStage("test", 6),
    )
    assert history[-1].train_loss < 0.92 * np.log(10)


def test_the_rbf_teacher_is_one_of_fifteen_neurons() -> None:
    torch.manual_seed(1)
    first = rbf.teacher(0)
    torch.manual_seed(2)
    second = rbf.teacher(0)
    assert torch.equal(first.theta.weight, second.theta.weight)
    x = torch.linspace(-5, 5, 7)[:, None]
    a, b, w = first.theta.weight[:, 0], first.theta.weight[:, 1], first.mix.weight[0]
    expected = (w * torch.exp(-((a * x + b) ** 2) / 2)).sum(1, keepdim=True)
    assert len(w) == 15
    assert torch.allclose(first(x), expected, atol=1e-6)
    data = rbf.loaders(100, 0)
    points, target = next(iter(data.validation))
    assert torch.equal(target, first(points))
    assert not torch.equal(points, next(iter(data.test))[0])
