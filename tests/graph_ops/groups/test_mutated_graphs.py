"""Finding the groups of damaged graphs: it always ends, with groups or barriers, and never with an exception.

``GROWPIPE_HYPOTHESIS_EXAMPLES`` sets how many graphs are tried.
"""

from __future__ import annotations

import os

import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from tests.helpers.mutated_graphs import mutate
from tests.helpers.random_graphs import build_graph

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
@given(steps, st.integers(0, 1000), st.integers(0, 1 << 30))
def test_groups_of_a_damaged_graph_are_found_or_declined(steps, seed, damage):
    groups = find_channel_groups(ir.from_proto(mutate(build_graph(steps, seed), damage)))
    for group in groups.groups:
        assert group.width > 0
        assert group.barrier is None or group.barrier.reason
    assert groups.cost.macs() >= 0
