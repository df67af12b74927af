"""The toy of arXiv 2003.10392: y = Σ_i w_i exp(−(a_i x + b_i)² / 2), fitted to a teacher of 15 neurons."""

from __future__ import annotations

import torch
from torch import nn

from growpipe.data import Loaders
from growpipe.data.array_batches import Batches
from growpipe.graph_ops.errors import UsageError

__all__ = ["RBFNet", "build", "loaders", "teacher"]

TEACHER_NEURONS = 15
SAMPLES = 1000
_RANGE = 5.0
_EVALUATION_SEED = 20200311


class RBFNet(nn.Module):
    """x float32 [N, 1] to y [N, 1].

    A neuron is θ_i = (a_i, b_i), a row of ``theta.weight``, with the outgoing weight w_i; θ_i is displaced
    as a whole since the layer sees (x, 1).
    """

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.theta = nn.Linear(2, neurons, bias=False)
        self.mix = nn.Linear(neurons, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = self.theta(torch.cat([x, torch.ones_like(x)], dim=1))
        values: torch.Tensor = self.mix(torch.exp(-0.5 * u.square()))
        return values


def build(neurons: int = 2) -> RBFNet:
    """A network of so many neurons, at least two: with one there is no axis of channels to grow.

    All a_i, b_i and w_i are drawn from N(0, 1) by torch's generator.
    """
    if neurons < 2:
        raise UsageError(f"an RBF network has at least two neurons, not {neurons}")
    model = RBFNet(neurons)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def teacher(seed: int) -> RBFNet:
    """15 neurons with a_i and b_i from N(0, 3) (variance 3) and w_i from N(0, 1); they depend on the seed
    alone, whatever torch's generator is at."""
    generator = torch.Generator().manual_seed(seed)
    model = RBFNet(TEACHER_NEURONS)
    with torch.no_grad():
        for parameter, variance in ((model.theta.weight, 3.0), (model.mix.weight, 1.0)):
            parameter.copy_(variance**0.5 * torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(False)


def loaders(batch_size: int, seed: int, teacher_seed: int = 0) -> Loaders:
    """The teacher on 1,000 points uniform in [−5, 5] for training; as many others for validation and test.

    Args:
        batch_size: of the training batches; 1,000 is the full batch.
        seed: not used: the data never change; their order comes from torch's generator.
        teacher_seed: of the teacher.

    Returns:
        Batches of x float32 [N, 1] and y [N, 1].
    """
    del seed
    network = teacher(teacher_seed)
    generator = torch.Generator().manual_seed(_EVALUATION_SEED + teacher_seed)

    def part(size: int, shuffle: bool) -> Batches:
        x = _RANGE * (2.0 * torch.rand(SAMPLES, 1, generator=generator) - 1.0)
        return Batches(x, network(x), size, shuffle=shuffle)

    return Loaders(part(batch_size, True), part(SAMPLES, False), part(SAMPLES, False))
