"""Split plans: validated, written and read back, and tied to the model they were made for."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from growpipe.graph_ops.axes.dims import Atom, Fixed, Product
from growpipe.graph_ops.axes.layouts import AxisLayout, TensorLayout
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.plan.grow_tensor import Displacement
from growpipe.graph_ops.plan.split_plan import GroupSplit, SplitPlan, hash_parameters

LAYOUTS = {
    "a.weight": TensorLayout((AxisLayout(Atom("a.weight", 2), "copied"), AxisLayout(Fixed(3), "copied"))),
    "b.weight": TensorLayout(
        (AxisLayout(Fixed(1), "copied"), AxisLayout(Product((Atom("a.weight", 2), Fixed(2))), "mixed"))
    ),
}
TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.weight": np.ones((1, 4), np.float32),
}


def split(**changes) -> GroupSplit:
    fields = {
        "group": "a.weight",
        "width": 2,
        "source": np.array([0, 1, 1]),
        "coefficient": np.array([1.0, 1.5, -0.5]),
        "displacements": {"a.weight": Displacement(0, np.array([2]), np.ones((1, 1, 3), np.float32))},
        "predicted_change": -0.25,
    }
    return GroupSplit(**{**fields, **changes})


def plan(**changes) -> SplitPlan:
    fields = {
        "groups": (split(),),
        "layouts": LAYOUTS,
        "epsilon": 0.5,
        "graph_hash": "hash",
        "parameters_hash": hash_parameters(LAYOUTS, TENSORS.__getitem__),
        "scheme": "m2",
        "c": 3.0,
        "predicted_change": -0.25,
        "realised_change": -0.2,
        "notes": {"seed": 1},
    }
    return SplitPlan(**{**fields, **changes})


def test_a_plan_survives_the_disk(tmp_path):
    plan().save(tmp_path / "plan")
    read = SplitPlan.load(tmp_path / "plan")
    assert read.content_hash == plan().content_hash
    assert read.layouts == LAYOUTS
    assert (read.epsilon, read.c, read.scheme, dict(read.notes)) == (0.5, 3.0, "m2", {"seed": 1})
    np.testing.assert_array_equal(read.groups[0].source, [0, 1, 1])
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(read.grow_parameter(name, array), plan().grow_parameter(name, array))


def test_grown_parameters():
    np.testing.assert_array_equal(
        plan().grow_parameter("a.weight", TENSORS["a.weight"]), [[0, 1, 2], [3, 4, 5], [3.5, 4.5, 5.5]]
    )
    np.testing.assert_array_equal(
        plan().grow_parameter("b.weight", TENSORS["b.weight"]), [[1, 1, 1.5, 1.5, -0.5, -0.5]]
    )
    other = np.ones(3)
    assert plan().grow_parameter("c.weight", other) is other


def test_saving_replaces_a_plan_and_nothing_else(tmp_path):
    plan().save(tmp_path / "plan")
    plan(epsilon=0.25).save(tmp_path / "plan")
    assert SplitPlan.load(tmp_path / "plan").epsilon == 0.25
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]
    (tmp_path / "empty").mkdir()
    plan().save(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "plan.json").write_text('{"format_version": 1}')  # of another program
    for place, file in (("plan", "README.md"), ("plan", ".git"), ("other", "notes.txt")):
        (tmp_path / place / file).write_text("mine")
        with pytest.raises(UsageError, match="growpipe did not write"):
            plan().save(tmp_path / place)
        assert (tmp_path / place / file).read_text() == "mine"
        assert (tmp_path / place / "plan.json").is_file()
        (tmp_path / place / file).unlink()
    with pytest.raises(UsageError, match=r"plan\.json"):
        plan().save(tmp_path / "other")


def test_a_plan_is_shown_in_one_line():
    shown = repr(plan())
    assert shown.startswith("SplitPlan(m2, ε = 0.5, predicted change -0.25")
    assert f"{plan().groups[0].group} 2 → 3" in shown
    assert "array" not in shown
    assert repr(plan().groups[0]) == "GroupSplit('a.weight', 2 → 3, predicted change -0.25)"
    many = SplitPlan(tuple(split(group=f"g{i}", displacements={}) for i in range(40)), {}, 0.0, "", "", "m2")
    assert "34 more" in repr(many)
    assert len(repr(many)) < 200


def test_another_epsilon_scales_predictions():
    scaled = plan().with_epsilon(0.25)
    assert scaled.predicted_change == scaled.groups[0].predicted_change == -0.0625
    assert scaled.realised_change is None
    assert plan().with_epsilon(0.0).predicted_change == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": np.array([0, 1])}, "must be vectors of one length"),
        ({"source": np.array([1, 0, 1])}, "must begin with 0..1"),
        ({"source": np.array([0, 1, 2])}, "must begin with 0..1"),
        ({"coefficient": np.array([1.0, 1.5, 0.5])}, "channel 1 sum to 2.0"),
        ({"displacements": {"a.weight": Displacement(0, np.array([3]), np.ones((1, 1, 3)))}}, "do not exist"),
    ],
)
def test_half_built_splits_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        split(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": (split(), split())}, "splits a group twice"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"c": 0.5}, "at least 1"),
        ({"layouts": {}}, "whose layout the plan lacks"),
    ],
)
def test_half_built_plans_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        plan(**changes)


def test_a_plan_belongs_to_the_parameters_it_was_made_for():
    plan().check_belongs(TENSORS.__getitem__, "the model")
    with pytest.raises(UsageError, match=r"it has no parameter 'a.weight'"):
        plan().check_belongs({}.__getitem__, "the model")
    wider = {**TENSORS, "a.weight": np.zeros((3, 3), np.float32)}
    with pytest.raises(UsageError, match=r"'a.weight' is \(3, 3\), not \(2, 3\)"):
        plan().check_belongs(wider.__getitem__, "the model")
    other = {**TENSORS, "a.weight": TENSORS["a.weight"] + 1}
    with pytest.raises(UsageError, match="parameter values differ"):
        plan().check_belongs(other.__getitem__, "the model")


def test_damaged_plans_are_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no plan"):
        SplitPlan.load(tmp_path)
    plan().save(tmp_path / "plan")
    document = json.loads((tmp_path / "plan" / "plan.json").read_text())
    (tmp_path / "plan" / "plan.json").write_text(json.dumps({**document, "format_version": 99}))
    with pytest.raises(UsageError, match="format version 99"):
        SplitPlan.load(tmp_path / "plan")
    del document["groups"]
    (tmp_path / "plan" / "plan.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="damaged"):
        SplitPlan.load(tmp_path / "plan")
    (tmp_path / "plan" / "plan.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        SplitPlan.load(tmp_path / "plan")


def stored(dtype: str, shape: list[int], size: int, *, length: int | None = None) -> bytes:
    """A safetensors file that claims one tensor of that type and shape, and holds ``size`` bytes."""
    header = json.dumps(
        {"0.coefficients": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}
    ).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + bytes(size)


@pytest.mark.parametrize(
    "content",
    [
        stored("BF16", [5], 10),
        stored("F8_E4M3", [5], 5),
        stored("F8_E5M2", [5], 5),
        stored("F4", [4], 2),
        stored("F64", [2**40], 40),
        stored("F64", [-5], 40),
        stored("F64", [5], 40, length=2**60),
        stored("F64", [5], 40, length=3),
        stored("F64", [5], 40)[:-1],
        b"[" * 10_000,
        b"",
    ],
)
def test_tensors_of_a_plan_that_numpy_does_not_hold_or_that_are_damaged_are_refused(tmp_path, content):
    plan().save(tmp_path / "plan")
    (tmp_path / "plan" / "plan.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match=r"the plan .* cannot be read|is damaged") as told:
        SplitPlan.load(tmp_path / "plan")
    assert len(str(told.value).splitlines()) == 1


def test_what_is_added_to_a_parameter_survives_the_disk(tmp_path):
    layouts = {name: replace(layout, offset=0.5) for name, layout in LAYOUTS.items()}
    shifted = plan(layouts=layouts)
    shifted.save(tmp_path / "plan")
    read = SplitPlan.load(tmp_path / "plan")
    assert read.layouts == layouts
    assert read.content_hash == shifted.content_hash != plan().content_hash
