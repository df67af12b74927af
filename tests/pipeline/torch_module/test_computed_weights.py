"""Modules whose weights are computed from parameters: weight norm, spectral norm, pruning masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.data_free import random_plan
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.grow_module import grow
from growpipe.torch_module.module_fit import fit_module
from tests.helpers.growing import session


def masked(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.3)
    return layer


WRAPPERS = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "pruning mask": masked,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_channels_of_a_computed_weight_grow_in_module_and_graph_alike(name: str) -> None:
    torch.manual_seed(0)
    layer = WRAPPERS[name](nn.Linear(10, 8))
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
    x = torch.randn(5, 10)
    with torch.no_grad():
        expected = model(x)
        graph = export_growth_form(model, (x,)).graph
        groups = find_channel_groups(graph)
        assert fit_module(model, graph, groups, (x,)).rigid == {}
        plan = random_plan(groups, graph, growth=0.5)
        assert {split.width for split in plan.groups} == {8, 6}
        grown = grow(model, plan)
        torch.testing.assert_close(grown(x), expected, atol=1e-5, rtol=1e-5)
    assert grown[0].out_features == 12
    assert grown[2].in_features == 12
    assert layer.out_features == 8
    (found,) = session(grow_graph(graph, plan)).run(None, {graph.graph.inputs[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
