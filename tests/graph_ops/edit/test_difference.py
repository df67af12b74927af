"""What changed between two models: nothing is left out, and equal models have no difference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from growpipe.cli import cli
from growpipe.graph_ops.edit.difference import Change, WidthChange, difference_of
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.files.load_save import save_model
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.data_free import net2net_plan
from tests.helpers.text_models import text_model

A, B = np.arange(12, dtype=np.float32).reshape(4, 3), np.ones((3, 2), np.float32)


def model(activation: str = "Relu", a: np.ndarray = A, inputs: str = "float[N,4] x") -> ir.Model:
    body = f"h = MatMul(x, a) r = {activation}(h) y = MatMul(r, b)"
    return text_model(body, inputs, "float[N,2] y", a=a, b=B)


def grown() -> ir.Model:
    return grow_graph(model(), net2net_plan(find_channel_groups(model()), model(), growth=0.4))


def test_equal_models_have_no_difference() -> None:
    found = difference_of(model(), model())
    assert found.is_empty
    assert found.summary == "Nothing changed."
    assert found.unchanged == 2
    assert found.widths == (WidthChange("a", 3, 3),)


def test_growth_is_told_by_widths_costs_parameters_and_history() -> None:
    found = difference_of(model(), grown())
    assert found.widths == (WidthChange("a", 3, 4),)
    assert found.parameters == (18, 24)
    assert found.macs == (18, 24)
    assert [(t.name, t.kind, t.before, t.after) for t in found.tensors] == [
        ("a", "shape", "float [4, 3]", "float [4, 4]"),
        ("b", "shape", "float [3, 2]", "float [4, 2]"),
    ]
    assert [step.widths for step in found.growth] == [{"a": (3, 4)}]
    assert found.summary == (
        "1 channel group is wider, parameters 18 → 24, MACs 18 → 24, 2 of 2 parameter tensors changed."
    )
    back = difference_of(grown(), model())
    assert back.widths == (WidthChange("a", 4, 3),)
    assert back.growth == ()
    assert "1 channel group is narrower" in back.summary


def test_a_group_that_grows_by_whole_factors_is_told() -> None:
    before = text_model(
        "h = MatMul(x, a) r = LayerNormalization(h, s) y = MatMul(r, b)",
        "float[N,4] x",
        "float[N,2] y",
        a=A,
        b=B,
        s=np.ones(3, np.float32),
    )
    groups = find_channel_groups(before)
    after = grow_graph(before, net2net_plan(groups, before, growth=0, factors=2))
    found = difference_of(before, after)
    assert found.widths == (WidthChange("a", 3, 6),)
    assert found.summary.startswith("1 channel group is wider")
    assert "<td>a</td><td>3</td><td>3</td><td>splits by whole factors:" in groups._repr_html_()


def test_operators_inputs_and_values_are_told() -> None:
    found = difference_of(model(), model("Tanh", A + np.float32(0.5), "float[7,4] x"))
    assert found.operators == (Change("Relu", "1", ""), Change("Tanh", "", "1"))
    assert found.values == (Change("input x", "float [N, 4]", "float [7, 4]"),)
    (tensor,) = found.tensors
    assert (tensor.kind, tensor.largest, found.unchanged) == ("values", 0.5, 1)


def test_types_and_names_are_told() -> None:
    found = difference_of(model(), text_model("y = MatMul(x, c)", "float[N,4] x", "float[N,3] y", c=A))
    assert [(t.name, t.kind) for t in found.tensors] == [("a", "removed"), ("b", "removed"), ("c", "added")]
    assert found.widths[0] == WidthChange("a", 3, None)
    half = text_model("y = MatMul(x, a)", "float16[N,4] x", "float16[N,3] y", a=A.astype(np.float16))
    assert {t.name: t.kind for t in difference_of(model(), half).tensors}["a"] == "type"


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    save_model(model(), tmp_path / "parent.onnx")
    save_model(grown(), tmp_path / "child.onnx")
    return str(tmp_path / "parent.onnx"), str(tmp_path / "child.onnx")


def test_the_command_prints_a_table_or_json_or_writes_a_page(files: tuple[str, str], tmp_path: Path) -> None:
    text = CliRunner().invoke(cli, ["diff", *files], standalone_mode=False)
    assert text.exception is None, text.exception
    assert "1 channel group is wider" in text.output
    assert "float [4, 3]" in text.output
    document = json.loads(CliRunner().invoke(cli, ["diff", *files, "--json"], standalone_mode=False).output)
    assert document["widths"] == [{"group": "a", "before": 3, "after": 4}]
    page = tmp_path / "page.html"
    done = CliRunner().invoke(cli, ["diff", *files, "--html", str(page)], standalone_mode=False)
    assert done.output.strip() == str(page)
    assert "1 channel group is wider" in page.read_text()
