"""Growth on random graphs: it preserves the function or declines.

``GROWPIPE_HYPOTHESIS_EXAMPLES`` sets how many graphs are tried.
"""

from __future__ import annotations

import os

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.onnx_tools.width_check import check_widths
from tests.helpers.growing import session, signed_plan
from tests.helpers.random_graphs import CHANNELS, LENGTH, build_graph

EXAMPLES = int(os.environ.get("GROWPIPE_HYPOTHESIS_EXAMPLES", "300"))

number = st.integers(0, 63)
steps = st.lists(st.tuples(number, number, number, number), min_size=1, max_size=9)


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 300,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(steps, st.integers(0, 1000))
def test_growth_of_a_random_graph_keeps_its_function(steps, seed):
    proto = build_graph(steps, seed)
    model = ir.from_proto(proto)
    plan = signed_plan(model, seed=seed, some=True)
    wider = grow_graph(model, plan)
    for batch in (1, 3):
        x = np.random.default_rng(seed).normal(size=(batch, CHANNELS, LENGTH)).astype(np.float32)
        (before,) = session(model, optimised=False).run(None, {"x": x})
        (after,) = session(wider, optimised=False).run(None, {"x": x})
        assert before.shape == after.shape
        np.testing.assert_allclose(after, before, rtol=0, atol=2e-3)
    assert check_widths(wider) == []
