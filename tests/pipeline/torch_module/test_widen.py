"""Networks of given widths, freshly initialised."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.models.digits import DigitsNet
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.widen import reinitialise, uniform_widths, with_widths


@pytest.fixture(scope="module")
def views() -> tuple:
    model = DigitsNet((2, 2, 3, 4)).eval()
    export = export_growth_form(model, (torch.rand(2, 1, 8, 8),))
    return model, export, find_channel_groups(export.graph)


def test_the_wider_network_is_the_one_built_at_those_widths(views: tuple) -> None:
    model, export, groups = views
    names = [group.name for group in groups.groups if group.splittable]
    wider = with_widths(model, export, groups, dict(zip(names, (5, 2, 7, 9), strict=True)))
    built = DigitsNet((5, 2, 7, 9))
    assert {n: p.shape for n, p in wider.named_parameters()} == {
        n: p.shape for n, p in built.named_parameters()
    }
    # Freshly drawn: no two filters are copies, batch norm is as new.
    filters = wider.features[0][0].weight.flatten(1)
    assert torch.pdist(filters).min() > 1e-3
    assert torch.equal(wider.features[2][1].weight, torch.ones(7))
    assert wider(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_a_network_does_not_shrink(views: tuple) -> None:
    model, export, groups = views
    with pytest.raises(UsageError, match=r"'hidden.weight' has 4 channels and cannot shrink to 3"):
        with_widths(model, export, groups, {"hidden.weight": 3})


def test_the_uniform_multiplier_meets_the_macs(views: tuple) -> None:
    _, _, groups = views
    widths = uniform_widths(groups, macs=20_000)
    assert groups.cost.macs(widths) <= 20_000
    own = {group.name: group.width for group in groups.groups if group.splittable}
    ratios = [widths[name] / own[name] for name in own]
    assert max(ratios) - min(ratios) < 0.5
    assert groups.cost.macs({name: width + 1 for name, width in widths.items()}) > 20_000
    with pytest.raises(UsageError, match="MACs already"):
        uniform_widths(groups, macs=10)


def test_parameters_that_cannot_be_drawn_anew_are_named() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(UsageError, match=r"Scaled.*no reset_parameters"):
        reinitialise(nn.Sequential(nn.Linear(3, 3), Scaled()))
