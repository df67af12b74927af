"""The values of two copies, and their gradients, against the plain formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from growpipe.analyser.program.copies import Pair, displaced, mixed

SHAPES = {
    "rows": (torch.contiguous_format, (3, 4)),
    "images": (torch.contiguous_format, (2, 4, 3, 5)),
    "images, channels innermost": (torch.channels_last, (2, 4, 3, 5)),
}


def tensors(name: str, number: int) -> list[Tensor]:
    memory, shape = SHAPES[name]
    generator = torch.Generator().manual_seed(number)
    made = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(number))
    return [one.contiguous(memory_format=memory).requires_grad_() for one in made]


def by_channel(name: str) -> Tensor:
    """Other than those of means."""
    values = torch.tensor([-1.0, 9.0, -1.0, 3.0], dtype=torch.float64)
    return values if name == "rows" else values[:, None, None]


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_displaced_copies(name: str, uniform: bool) -> None:
    still, moved = tensors(name, 2)
    step = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    ratio = None if uniform else by_channel(name)
    first, second = displaced(still, moved, step, 0.3, ratio)
    factor = -1.0 if ratio is None else ratio
    torch.testing.assert_close(first, still + 0.3 * moved)
    torch.testing.assert_close(second, still + 0.3 * factor * moved)
    assert torch.autograd.gradcheck(
        lambda u, m, s: displaced(u, m, s, float(s.detach()), ratio), (still, moved, step)
    )


def test_the_first_displaced_copies_want_the_step_alone() -> None:
    still, moved = (one.detach() for one in tensors("rows", 2))
    step = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    first, second = displaced(still, moved, step, 0.3, None)
    (slope,) = torch.autograd.grad((first * first + second).sum(), step)
    torch.testing.assert_close(slope, (2 * first.detach() * moved - moved).sum())


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_what_a_consumer_reads(name: str, uniform: bool) -> None:
    first, second = tensors(name, 2)
    share = None if uniform else 1 / (1 - by_channel(name))
    weight = 0.5 if share is None else share
    torch.testing.assert_close(mixed(first, second, share), (1 - weight) * first + weight * second)
    assert torch.autograd.gradcheck(lambda a, b: mixed(a, b, share), (first, second))


def test_the_displacements_of_a_pair_cancel() -> None:
    weights = torch.tensor([[0.5, 1.125, 0.9], [0.5, -0.125, 0.1]], dtype=torch.float64)
    pair = Pair(weights, torch.ones(3, 2, dtype=torch.float64))
    torch.testing.assert_close(weights[0] + weights[1] * pair.ratio, torch.zeros(3, dtype=torch.float64))
    halved = pair.halved()
    assert (pair.uniform, halved.uniform) == (False, True)
    assert halved.displacement.tolist() == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
