"""Grown networks that ship: they pass the project's own export check and are what their recipe describes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnxruntime import InferenceSession

from growpipe.cli import cli
from growpipe.graph_ops.files.load_save import load_model
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.run.recipe import load_recipe

pytestmark = pytest.mark.slow

ARTIFACTS = Path(__file__).parents[2] / "models" / "artifacts"
MODELS = sorted(ARTIFACTS.glob("*.onnx"))


def test_there_are_artifacts() -> None:
    assert MODELS


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_an_artifact_passes_the_check(path: Path) -> None:
    result = CliRunner().invoke(cli, ["check", str(path), "--skip", "latency"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_an_artifact_is_what_its_recipe_describes(path: Path) -> None:
    recipe, _ = load_recipe(path.stem)
    model = load_model(path)
    assert tuple(value.name for value in model.graph.inputs) == recipe.inputs
    assert tuple(value.name for value in model.graph.outputs) == recipe.outputs
    assert "BatchNormalization" not in {node.op_type for node in model.graph}
    assert recipe.budget.macs is not None
    cost = find_channel_groups(model).cost
    assert 0.9 * recipe.budget.macs < cost.macs() <= recipe.budget.macs
    assert f"{cost.macs():,}" in (ARTIFACTS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_an_image_has_the_same_logits_in_any_batch(path: Path) -> None:
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).random((16, 3, 32, 32), dtype=np.float32)
    (logits,) = session.run(["logits"], {"image": images})
    assert logits.shape == (16, 10)
    assert np.isfinite(logits).all()
    one_by_one = np.concatenate([session.run(["logits"], {"image": image[None]})[0] for image in images])
    np.testing.assert_allclose(one_by_one, logits, atol=1e-4 * np.abs(logits).max())
