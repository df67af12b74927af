"""Every family, grown twice by one plan: the torch mirror and the rewritten ONNX graph compute the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.data_free import random_plan
from growpipe.graph_ops.plan.joined_groups import joined_factors
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.grow_module import grow, plan_for_module
from growpipe.torch_module.module_fit import fit_module
from tests.helpers.networks import FAMILIES, seeded
from tests.helpers.text_models import ort_run

pytestmark = pytest.mark.slow

# Groups whose length these modules spell out in forward; the graph grows them, the module cannot.
RIGID: dict[str, set[str]] = {
    "resnet_padded": {"1.body.1.0.weight", "1.body.1.0.weight#2"},
    "SplitBranches": {"stem.0.weight", *(f"stem.0.weight#{part}" for part in (2, 3, 4, 5))},
    "VisionTransformer": {
        "blocks.0.attention.qkv.weight#2",
        "blocks.1.attention.qkv.weight#2",
        "blocks.1.attention.qkv.weight#3",
    },
    "PointNet": {"matrix.2.weight#2"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_module_and_the_graph_grow_in_lockstep(family: str) -> None:
    build, shape = FAMILIES[family]
    model = seeded(build).eval()
    inputs = torch.randn(7, *shape, generator=torch.Generator().manual_seed(1))
    graph = export_growth_form(model, (inputs[:2],)).graph
    groups = find_channel_groups(graph)
    factors = {group.name: 2 for group in groups.groups if group.whole_factor is not None}
    fit = fit_module(model, graph, groups, (inputs[:2],), factors)
    rigid = fit.rigid
    assert set(rigid) == RIGID.get(family, set())
    kept = {name: factor for name, factor in factors.items() if name not in rigid}
    factors = joined_factors(kept, fit.joined)
    growth = {
        group.name: max(1, group.width // 4)
        for group in groups.groups
        if group.splittable and group.name not in rigid.keys() | factors.keys()
    }
    plan = random_plan(groups, graph, growth=growth, epsilon=0.05, seed=3, factors=factors or None)
    plan = plan_for_module(plan, model, fit.sizes, fit.pairs, fit.joined)
    for epsilon in (0.0, plan.epsilon):
        at = plan.with_epsilon(epsilon)
        with torch.no_grad():
            grown = grow(model, at)(inputs).numpy()
        (name,) = (str(value.name) for value in graph.graph.inputs)
        (rewritten,) = ort_run(grow_graph(graph, at), {name: inputs.numpy()})
        scale = np.abs(grown).max()
        assert np.abs(grown - rewritten).max() <= 1e-5 * scale
        if epsilon == 0.0:
            with torch.no_grad():
                original = model(inputs).numpy()
            assert np.abs(grown - original).max() <= 1e-5 * scale
