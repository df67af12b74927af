"""Which entries a split added, on axes of every make, and the gradient that they have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from growpipe.graph_ops.plan.data_free import net2net_plan
from growpipe.torch_module.added_copies import added_entries, gradient_ratio
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.grow_module import grow


class Flattened(nn.Module):
    """Two channels of four pixels each, flattened pixel by pixel or channel by channel."""

    def __init__(self, pixels_first: bool) -> None:
        super().__init__()
        self.pixels_first = pixels_first
        self.conv, self.head = nn.Conv2d(1, 2, 1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.conv(x))
        hidden = hidden.permute(0, 2, 3, 1) if self.pixels_first else hidden
        scores: torch.Tensor = self.head(hidden.flatten(1))
        return scores


@pytest.mark.parametrize("pixels_first", [True, False])
def test_added_entries_lie_where_the_copies_are(pixels_first: bool) -> None:
    torch.manual_seed(0)
    model, images = Flattened(pixels_first).eval(), torch.randn(16, 1, 2, 2)
    export = export_growth_form(model, (images[:2],))
    plan = net2net_plan(export.groups(), export.graph, growth={"conv.weight": 1}, seed=0)
    grown = grow(model, plan)
    added = {name: added_entries(grown, plan).get(p) for name, p in grown.named_parameters()}
    conv, head = added["conv.weight"], added["head.weight"]
    assert conv is not None
    assert head is not None
    assert conv.flatten().tolist() == [False, False, True]
    channel = torch.arange(12) % 3 if pixels_first else torch.arange(12) // 4
    assert head[0].tolist() == (channel == 2).tolist()

    def loss(network: nn.Module) -> torch.Tensor:
        value: torch.Tensor = network(images.double()).square().mean()
        return value

    grown.double()
    loss(grown).backward()
    gradients = {name: p.grad.clone() for name, p in grown.named_parameters() if p.grad is not None}
    new = torch.cat([gradients[name][added[name]] for name in ("conv.weight", "head.weight")])
    old = torch.cat([gradients[name][~added[name]] for name in ("conv.weight", "head.weight")])  # type: ignore[operator]
    expected = new.square().mean().sqrt() / old.square().mean().sqrt()
    assert gradient_ratio(grown, plan, loss) == pytest.approx(float(expected))
    assert all(p.grad is None for p in grown.parameters())
