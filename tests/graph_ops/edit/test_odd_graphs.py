"""Odd random graphs: growing and deploying them keeps the function, or is refused.

``GROWPIPE_HYPOTHESIS_EXAMPLES`` sets how many graphs are tried.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from growpipe.graph_ops.edit.deploy import deploy_form
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import CheckFailed, UsageError
from growpipe.graph_ops.files.load_save import load_model, save_model
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.data_free import random_plan
from tests.helpers.odd_graphs import ODDITIES, odd_graph
from tests.helpers.random_graphs import CHANNELS, LENGTH

EXAMPLES = int(os.environ.get("GROWPIPE_HYPOTHESIS_EXAMPLES", "300"))

number = st.integers(0, 63)
steps = st.lists(st.tuples(number, number, number, number), min_size=1, max_size=7)
odd = st.lists(st.integers(0, len(ODDITIES) - 1), min_size=1, max_size=4)


def run(path: Path, x: npt.NDArray, optimised: bool) -> dict[str, npt.NDArray] | None:
    """The outputs by name; None if onnxruntime refuses the model or its inputs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(None, {"x": x}), strict=True))
    except Exception as error:
        if "ONNXRuntimeError" not in str(error) and "NOT_IMPLEMENTED" not in str(error):
            raise
        return None


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
    folder = tmp_path_factory.mktemp("odd")
    source, form = folder / "source.onnx", folder / "form.onnx"
    onnx.save(odd_graph(steps, seed, odd), source)
    rng = np.random.default_rng(seed)
    batches = [rng.normal(size=(size, CHANNELS, LENGTH)).astype(np.float32) for size in (1, 3)]
    expected = [run(source, x, optimised) for x in batches for optimised in (False, True)]
    # onnxruntime believes some wrong declarations, and refuses some odd files.
    assume(any(outputs is not None for outputs in expected))
    model = load_model(source)
    groups = find_channel_groups(model)
    made = {"deployed": lambda: deploy_form(model)}
    if any(group.splittable for group in groups.groups):
        plan = random_plan(groups, model, growth=0.4, seed=seed)
        made["grown"] = lambda: grow_graph(model, plan)
    for what, make in made.items():
        try:
            save_model(make(), form)
        except (CheckFailed, UsageError):
            continue
        actual = [run(form, x, optimised) for x in batches for optimised in (False, True)]
        for before, after in zip(expected, actual, strict=True):
            if before is None:
                continue
            assert after is not None, f"{what}: it does not run"
            assert list(after) == list(before)
            for name, values in before.items():
                assert after[name].shape == values.shape, f"{what}: {name!r} has another shape"
                np.testing.assert_allclose(after[name], values, rtol=0, atol=2e-3, err_msg=what)
