"""Plans that need no data: random signed splits and exact duplication."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest

from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.edit.history import HISTORY_KEY, read_history
from growpipe.graph_ops.errors import UnsafeModel, UsageError
from growpipe.graph_ops.files.load_save import load_model, save_model
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.onnx_tools.width_check import check_structure
from growpipe.graph_ops.plan.data_free import net2net_plan, random_plan
from growpipe.graph_ops.plan.split_plan import SplitPlan
from tests.helpers.text_models import ort_run, text_model

BODY = """
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    n = BatchNormalization(a, scale, bias, mean, var)
    r = Relu(n)
    d = Conv<group=6, pads=[1,1,1,1]>(r, w2)
    s = Sigmoid(d)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    h = Gemm<transB=1>(f, w3, b3)
    t = Tanh(h)
    y = Gemm<transB=1>(t, w4)
"""


@pytest.fixture
def model() -> ir.Model:
    rng = np.random.default_rng(0)
    shapes = {"w1": (6, 3, 3, 3), "b1": 6, "scale": 6, "bias": 6, "mean": 6, "var": 6}
    shapes |= {"w2": (6, 1, 3, 3), "w3": (5, 6), "b3": 5, "w4": (4, 5)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    weights["var"] = np.abs(weights["var"]) + 0.5
    return text_model(BODY, "float[N,3,8,8] x", "float[N,4] y", **weights)


def make(model: ir.Model, **options) -> SplitPlan:
    return random_plan(find_channel_groups(model), model, **options)


@pytest.mark.parametrize("growth", [0.01, 0.3, 1.0, 2.5])
def test_a_random_plan_keeps_the_function(model, growth):
    plan = make(model, growth=growth, seed=3)
    assert plan.widths == {
        "w1": 6 + max(1, round(6 * growth)),
        "w3": 5 + max(1, round(5 * growth)),
    }
    grown = grow_graph(model, plan)
    assert check_structure(grown) == []
    _assert_same(model, grown)


def _assert_same(model: ir.Model, grown: ir.Model) -> None:
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 3, 8, 8)).astype(np.float32)}
    for optimised in (False, True):
        (before,), (after,) = ort_run(model, feeds), ort_run(grown, feeds, optimised=optimised)
        assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()


def test_coefficients_are_signed_and_bounded(model):
    plan = make(model, growth=3.0, max_coefficient=1.5)
    coefficients = np.concatenate([split.coefficient for split in plan.groups])
    assert np.abs(coefficients).max() <= 1.5
    assert (coefficients < 0).any()
    for split in plan.groups:
        totals = np.bincount(split.source, weights=split.coefficient)
        np.testing.assert_allclose(totals, 1.0, rtol=0, atol=1e-12)
        # Every channel is copied before any is copied twice more than another.
        copies = np.bincount(split.source)
        assert copies.max() - copies.min() <= 1


def test_the_seed_decides(model):
    assert make(model, growth=0.5, seed=1).content_hash == make(model, growth=0.5, seed=1).content_hash
    assert make(model, growth=0.5, seed=1).content_hash != make(model, growth=0.5, seed=2).content_hash


def test_directions_are_balanced_and_of_unit_length(model):
    plan = make(model, growth=1.5, epsilon=0.1, seed=5)
    for split in plan.groups:
        displaced = split.displacements[split.group]
        assert set(displaced.channels) == set(np.flatnonzero(np.bincount(split.source)[split.source] > 1))
        flat = displaced.values.reshape(len(displaced.channels), -1).astype(np.float64)
        for channel in range(split.width):
            rows = split.source[displaced.channels] == channel
            if not rows.any():
                continue
            weights = split.coefficient[displaced.channels[rows]]
            np.testing.assert_allclose(weights @ flat[rows], 0.0, atol=1e-5)
            np.testing.assert_allclose(np.linalg.norm(flat[rows], axis=1).max(), 1.0, rtol=1e-5)


def test_displacement_moves_the_function_by_the_square_of_epsilon(model):
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 3, 8, 8)).astype(np.float32)}
    (before,) = ort_run(model, feeds)
    plan = make(model, growth=0.5, epsilon=0.4, seed=2)
    moved = {
        epsilon: np.abs(ort_run(grow_graph(model, plan.with_epsilon(epsilon)), feeds)[0] - before).max()
        for epsilon in (0.4, 0.2)
    }
    assert moved[0.2] > 1e-5
    # Quadratic: half the step, a quarter of the drift; the cubic term is what the margin is for.
    assert moved[0.4] / moved[0.2] == pytest.approx(4.0, rel=0.5)


def test_net2net_duplicates(model):
    plan = net2net_plan(find_channel_groups(model), model, growth=1.5, seed=0)
    assert plan.epsilon == 0.0
    for split in plan.groups:
        copies = np.bincount(split.source)[split.source]
        np.testing.assert_array_equal(split.coefficient, 1.0 / copies)
    _assert_same(model, grow_graph(model, plan))


def test_frozen_tensors_are_never_touched(model):
    plan = random_plan(find_channel_groups(model, ["w4"]), model, growth=0.5)
    assert plan.widths == {"w1": 9}
    grown = grow_graph(model, plan)
    assert grown.graph.initializers["w4"].const_value is model.graph.initializers["w4"].const_value
    _assert_same(model, grown)
    with pytest.raises(UsageError, match="no channel group"):
        random_plan(find_channel_groups(model, ["w*"]), model, growth=0.5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"growth": 0.0}, "growth"),
        ({"growth": -1.0}, "growth"),
        ({"growth": float("nan")}, "growth"),
        ({"growth": 0.5, "max_coefficient": 0.5}, "max_coefficient"),
        ({"growth": 0.5, "epsilon": -1.0}, "epsilon"),
        ({"growth": 0.5, "epsilon": float("nan")}, "epsilon"),
    ],
)
def test_arguments_out_of_range(model, options, match):
    with pytest.raises(UsageError, match=match):
        make(model, **options)


class TestHistory:
    def test_every_growth_is_journalled(self, model, tmp_path):
        assert read_history(model) == ()
        first = make(model, growth=0.5, seed=1)
        grown = grow_graph(model, first)
        second = make(grown, growth=0.5, seed=2)
        save_model(grow_graph(grown, second), tmp_path / "twice.onnx")
        one, two = read_history(load_model(tmp_path / "twice.onnx"))
        assert (one.plan_hash, two.plan_hash) == (first.content_hash, second.content_hash)
        assert one.parent_hash == find_channel_groups(model).graph_hash
        assert two.parent_hash == find_channel_groups(grown).graph_hash
        assert one.widths == {"w1": (6, 9), "w3": (5, 7)}
        assert two.widths == {"w1": (9, 13), "w3": (7, 11)}
        assert (one.scheme, one.epsilon, one.parameters_hash) == ("random", 0.0, first.parameters_hash)
        assert read_history(model) == ()

    @pytest.mark.parametrize("text", ["", "{}x", "[1]", '[{"epsilon": 1}]', "[" * 100_000])
    def test_a_damaged_history_is_refused(self, model, text):
        self.assert_refused(model, text)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("epsilon", "1" * 5000),
            ("epsilon", "1e400"),
            ("epsilon", "NaN"),
            ("predicted_change", "-Infinity"),
            ("realised_change", "NaN"),
            ("widths", '{"a": [1e400, 2]}'),
            ("widths", '{"a": [NaN, 2]}'),
        ],
    )
    def test_a_history_with_an_impossible_number_is_refused(self, model, key, value):
        grown = grow_graph(model, make(model, growth=0.5, seed=1))
        step = json.loads(grown.metadata_props[HISTORY_KEY])[0]
        written = ", ".join(f'"{k}": {value if k == key else json.dumps(v)}' for k, v in step.items())
        self.assert_refused(model, f"[{{{written}}}]")

    def assert_refused(self, model, text):
        model.metadata_props[HISTORY_KEY] = text
        with pytest.raises(UnsafeModel, match="history"):
            read_history(model)
