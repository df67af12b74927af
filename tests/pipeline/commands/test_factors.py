"""Whole factors on the command line: inspect, plan, grow."""

from __future__ import annotations

import json

import numpy as np
import pytest

from growpipe.cli import main
from growpipe.graph_ops.files.load_save import load_model, save_model
from growpipe.graph_ops.plan.split_plan import SplitPlan
from tests.helpers.growing import assert_same_function
from tests.helpers.text_models import text_model

NETWORK = """
    h = MatMul (x, stem)
    n = LayerNormalization (h, scale, shift) u = MatMul (n, up) r = Relu (u)
    d = MatMul (r, down) s = Add (h, d)
    y = MatMul (s, head)
"""
SHAPES = {"stem": (5, 4), "scale": (4,), "shift": (4,), "up": (4, 6), "down": (6, 4), "head": (4, 3)}


@pytest.fixture
def growpipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    save_model(text_model(NETWORK, "float[n,5] x", "float[n,3] y", **weights), tmp_path / "model.onnx")

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(args))
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run


def test_inspect_says_how_a_group_splits(growpipe):
    code, out, _ = growpipe("inspect", "model.onnx")
    assert code == 0
    assert "1 of 4 channel groups splittable, 1 more by whole factors" in out
    assert "splits by whole factors: LayerNormalization" in " ".join(out.split())
    _, out, _ = growpipe("inspect", "model.onnx", "--json")
    stream = next(group for group in json.loads(out)["groups"] if group["name"] == "stem")
    assert (stream["splittable"], stream["barrier"]) == (False, None)
    assert stream["whole_factor"]["because"]["reason"] == "it normalises over this axis by moments"
    assert stream["whole_factor"]["tied"] == []


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        (("--factor", "2"), {"stem": 8, "up": 9}),
        (("--factor", "2", "--growth", "0"), {"stem": 8}),
        (("--factor", "stem=3", "--factor", "up=2"), {"stem": 12, "up": 12}),
        ((), {"up": 9}),
    ],
    ids=["doubled", "nothing else", "by name", "no factor"],
)
@pytest.mark.parametrize("scheme", ["--random", "--net2net"])
def test_a_stream_grows_by_a_factor(growpipe, scheme, options, widths):
    growth = () if "--growth" in options else ("--growth", "0.5")
    assert growpipe("plan", "model.onnx", scheme, *growth, *options, "-o", "plan")[0] == 0
    assert SplitPlan.load("plan").widths == widths
    assert growpipe("grow", "model.onnx", "--plan", "plan", "-o", "wide.onnx")[0] == 0
    inputs = {"x": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)}
    assert_same_function(load_model("model.onnx"), load_model("wide.onnx"), [inputs])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--factor", "1"), "the factor of 'stem' is a number from 2 to 64, not 1"),
        (("--factor", "two"), "--factor is a whole number, or GROUP=NUMBER, not two"),
        (("--factor", "2", "--factor", "stem=3"), "--factor is given once for all groups"),
        (("--factor", "head=2"), "group 'head' cannot split: Output"),
        (("--factor", "nobody=2"), "no channel group is called 'nobody'"),
        (("--factor", "=2"), "--factor is a whole number, or GROUP=NUMBER, not =2"),
        (("--growth", "0"), "growth is the share of channels to add, above 0"),
    ],
)
def test_wrong_factors(growpipe, options, message):
    code, out, err = growpipe("plan", "model.onnx", "--random", *options, "-o", "plan")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
