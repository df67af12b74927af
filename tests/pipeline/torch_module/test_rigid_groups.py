"""Modules whose forward spells out a length."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from growpipe import analyse
from growpipe.graph_ops.errors import NothingToSplit
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.rigid_groups import rigid_groups


class Literal(nn.Module):
    """The first hidden layer is reshaped to a literal width, the second is not."""

    def __init__(self, free: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 5)
        self.last = nn.Linear(5, 2)
        self.free = free

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x)).view(-1, 6)
        hidden = torch.tanh(self.second(hidden))
        return self.last(hidden if self.free else hidden.view(-1, 5))


def rigid(model: nn.Module, *inputs: torch.Tensor) -> dict[str, str]:
    graph = export_growth_form(model.eval(), inputs).graph
    return rigid_groups(model, graph, find_channel_groups(graph), inputs)


def test_a_group_that_is_spelt_out_is_found_and_the_others_are_not() -> None:
    found = rigid(Literal(), torch.randn(3, 4))
    assert found.keys() == {"first.weight"}
    assert "shape" in found["first.weight"]


def test_a_module_that_follows_has_none() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))
    assert rigid(model, torch.randn(2, 1, 4, 4)) == {}


def test_the_analyser_leaves_rigid_groups_alone() -> None:
    torch.manual_seed(0)
    inputs, target = torch.randn(256, 4), torch.randint(0, 2, (256,))
    batches = [(inputs, target)]
    plan = analyse(Literal(), nn.functional.cross_entropy, batches, (inputs[:2],), growth=0.5)
    assert set(plan.widths) == {"second.weight"}
    assert plan.notes["analysis"]["rigid"].keys() == {"first.weight"}
    with pytest.raises(NothingToSplit, match=r"hard-codes the channel count.*first\.weight"):
        analyse(Literal(free=False), nn.functional.cross_entropy, batches, (inputs[:2],))
