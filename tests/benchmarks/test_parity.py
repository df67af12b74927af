"""The judge of the wild corpus: it accepts a form that computes the same, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from benchmarks.graph.parity import Feed, compare, probe
from tests.helpers.text_models import text_model

pytestmark = pytest.mark.slow

BODY = "h = MatMul (x, w) r = Relu (h) y = MatMul (r, v)"


def saved(folder: Path, name: str, body: str = BODY, signature: str = "float[N,4] x", **weights) -> Path:
    random = np.random.default_rng(0)
    drawn = {"w": random.standard_normal((4, 6)), "v": random.standard_normal((6, 2))}
    arrays = {k: np.asarray(w, np.float32) for k, w in (drawn | weights).items()}
    path = folder / name
    onnx.save(ir.to_proto(text_model(body, signature, **arrays)), path)
    return path


def test_a_model_is_the_same_as_itself(tmp_path):
    model = saved(tmp_path, "a.onnx")
    feeds = probe(model)
    assert {feed.sizes["N"] for feed in feeds} == {1, 3}
    assert compare(model, model, feeds) == {"same": True, "what": "", "excess": 0.0, "relative": 0.0}


def test_channels_in_another_order_are_the_same(tmp_path):
    random = np.random.default_rng(0)
    w, v = random.standard_normal((4, 6)), random.standard_normal((6, 2))
    form = saved(tmp_path, "b.onnx", w=w[:, ::-1], v=v[::-1])
    model = saved(tmp_path, "a.onnx", w=w, v=v)
    assert compare(model, form, probe(model))["same"]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("h = MatMul (x, w) r = Relu (h) s = MatMul (r, v) y = Relu (s)", "is off by"),
        ("h = MatMul (x, w) y = Relu (h)", "had shape"),
        (f"{BODY.replace('y =', 's =')} y = Cast <to = 11> (s)", "onnxruntime does not load it"),
    ],
)
def test_another_function_is_told(tmp_path, body, what):
    model = saved(tmp_path, "a.onnx")
    verdict = compare(model, saved(tmp_path, "b.onnx", body), probe(model))
    assert not verdict["same"]
    assert what in verdict["what"]


def test_a_weight_that_is_off_by_a_thousandth_is_told(tmp_path):
    w = np.random.default_rng(1).standard_normal((4, 6))
    model = saved(tmp_path, "a.onnx", w=w)
    verdict = compare(model, saved(tmp_path, "b.onnx", w=w * 1.001), probe(model))
    assert not verdict["same"]
    assert 5e-4 < verdict["relative"] < 2e-3


def test_a_batch_that_became_fixed_is_told(tmp_path):
    model = saved(tmp_path, "a.onnx")
    body = f"s = Constant <value_ints = [1, 6]> () {BODY.replace('Relu (h)', 'Reshape (k, s)')}"
    body = body.replace("r =", "k = Relu (h) r =")
    verdict = compare(model, saved(tmp_path, "b.onnx", body), probe(model))
    assert not verdict["same"]
    assert "it does not run" in verdict["what"]


def test_sizes_that_fit_are_found(tmp_path):
    body = "s = Constant <value_ints = [0, -1, 16]> () r = Reshape (x, s) y = ReduceSum <keepdims = 0> (r)"
    path = saved(tmp_path, "a.onnx", body, "float[N,L] x")
    feeds = probe(path)
    assert feeds[0] == Feed({"N": 1, "L": 64}, 0, "normal", 256, 16000)
    assert all(feed.sizes["L"] % 16 == 0 for feed in feeds)


@pytest.mark.parametrize("entries", [5, 90, 160, 250])
def test_a_model_runs_on_every_feed_that_is_found(tmp_path, entries):
    model = saved(tmp_path, "a.onnx", "y = Gather (e, i)", "int64[N] i", e=np.ones((entries, 3)))
    feeds = probe(model)
    assert len(feeds) >= 4
    assert compare(model, model, feeds)["same"]
