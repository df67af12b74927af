"""What a notebook shows of plans and channel groups."""

from __future__ import annotations

import numpy as np

from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.notebook import html_table
from growpipe.graph_ops.plan.data_free import net2net_plan
from tests.helpers.text_models import text_model


def test_plans_and_groups_are_tables() -> None:
    weights = {"a": np.ones((4, 3), np.float32), "b": np.ones((3, 2), np.float32)}
    model = text_model(
        "h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)", "float[N,4] x", "float[N,2] y", **weights
    )
    groups = find_channel_groups(model)
    shown = groups._repr_html_()
    assert "1 of 3 channel groups can split, 18 parameters, 18 MACs" in shown
    assert "<tr><td>a</td><td>3</td><td>2</td><td>yes</td></tr>" in shown
    shown = net2net_plan(groups, model, growth=0.5)._repr_html_()
    assert "<tr><td>a</td><td>3</td><td>5</td><td></td></tr>" in shown


def test_names_are_shown_and_never_obeyed() -> None:
    shown = html_table("<b>", ["a&b"], [["<script>x</script>", "\x1b[31m\n"]] * 100)
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert "\x1b" not in shown
    assert "(the first 60 of 100)" in shown
    assert shown.count("<tr>") == 61
