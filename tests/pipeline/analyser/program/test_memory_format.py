"""Channels-last images: who is given them, and that nobody sees them in an output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from growpipe.analyser.options import GrowthOptions
from growpipe.analyser.preparation import prepare
from growpipe.analyser.program.values import module_takes_channels_last, run_module


class Net(nn.Module):
    """A convolution, and its map as one axis."""

    def __init__(self, flat: str) -> None:
        super().__init__()
        self.conv, self.head, self.flat = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 2), flat

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.flat == "view":
            flat = x.view(len(x), -1)
        elif self.flat == "unflatten":
            flat = x.unflatten(1, (2, 2)).flatten(1)
        else:
            flat = x.flatten(1)
        made: Tensor = self.head(flat)
        return made


@pytest.mark.parametrize(("flat", "takes"), [("flatten", True), ("view", False), ("unflatten", False)])
def test_a_module_that_asks_for_views_is_given_contiguous_images(flat: str, takes: bool) -> None:
    nodes = torch.export.export(Net(flat).eval(), (torch.randn(2, 3, 8, 8),)).graph.nodes
    assert module_takes_channels_last(nodes) == takes


def test_a_loss_may_ask_an_output_for_views() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval().double()
    x, y = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randn(4, 2, 4, 4, dtype=torch.float64)
    program = prepare(module, (x,), GrowthOptions(), torch.device("cpu")).program

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output.view(-1) - target.view(-1)).square().mean()

    with torch.no_grad():
        wanted = float(loss(module(x), y))
        assert program.loss((x,), y, loss) == pytest.approx(wanted, rel=1e-12)
        assert float(loss(run_module(module, (x,), True), y)) == pytest.approx(wanted, rel=1e-12)
