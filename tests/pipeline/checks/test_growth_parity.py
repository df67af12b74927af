"""A grown model against its parent: the reference check is the proof of function preservation at ε = 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from growpipe.checks import CheckReport, run_checks
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.files.load_save import load_model, save_model
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.data_free import random_plan
from tests.helpers.good_models import cnn, save


def grown_report(folder: Path, epsilon: float, spoil: bool = False) -> CheckReport:
    parent = save(cnn(), folder, "parent.onnx")
    model = load_model(parent)
    plan = random_plan(find_channel_groups(model), model, growth=0.5, epsilon=epsilon, seed=1)
    child = grow_graph(model, plan)
    if spoil:
        value = child.graph.initializers["head_weight"]
        assert value.const_value is not None
        weight = value.const_value.numpy().copy()
        weight[:, -1] *= 1.001
        value.const_value = ir.tensor(weight, name=value.name)
    save_model(child, folder / "child.onnx")
    return run_checks(
        folder / "child.onnx", reference=parent, only=["structure", "numerics", "cost/parameters"]
    )


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_a_child_computes_what_its_parent_computes_at_epsilon_zero_alone(
    epsilon: float, tmp_path: Path
) -> None:
    report = grown_report(tmp_path, epsilon)
    assert report.of("structure/run").status == "passed"
    assert report.of("cost/parameters").measured["value"] > 659
    expected = "passed" if epsilon == 0.0 else "failed"
    assert report.of("numerics/reference").status == expected
    assert report.exit_code == (0 if epsilon == 0.0 else 1)


def test_a_coefficient_that_is_a_thousandth_off_is_found(tmp_path: Path) -> None:
    result = grown_report(tmp_path, 0.0, spoil=True).of("numerics/reference")
    assert result.status == "failed"
    assert result.measured["relative"] < 1e-2
    assert result.measured["limit"] < 2e-5
    assert result.findings[0].tensor == "logits"
    assert np.isfinite(result.measured["float64_noise"])
