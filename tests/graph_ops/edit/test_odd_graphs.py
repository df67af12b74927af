"""Odd random graphs: growing and deploying them keeps the function, or is refused.

``GROWPIPE_HYPOTHESIS_EXAMPLES`` sets how many are tried; ``benchmarks.graph.odd_graphs`` tries thousands.
"""

from __future__ import annotations

import os

import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.helpers.odd_graphs import ODDITIES, changes_of_function, odd_graph

EXAMPLES = int(os.environ.get("GROWPIPE_HYPOTHESIS_EXAMPLES", "300"))

number = st.integers(0, 63)
steps = st.lists(st.tuples(number, number, number, number), min_size=1, max_size=7)
odd = st.lists(st.integers(0, len(ODDITIES) - 1), min_size=1, max_size=4)


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 300,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(steps, st.integers(0, 1000), odd)
def test_an_odd_graph_keeps_its_function(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[int, int, int, int]],
    seed: int,
    odd: list[int],
) -> None:
    source = tmp_path_factory.mktemp("odd") / "source.onnx"
    onnx.save(odd_graph(steps, seed, odd), source)
    changes = changes_of_function(source, seed)
    assume(changes is not None)
    assert changes is not None
    assert set(changes.values()) <= {"", "refused"}, changes
