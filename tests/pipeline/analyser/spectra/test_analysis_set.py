"""Which samples an analysis sees, set by set."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from growpipe.analyser.samples import MicroBatch
from growpipe.analyser.spectra.analysis_set import COARSE, GrowingSet


class Taken:
    """Stands in for an operator: the first value of every sample, by half."""

    def __init__(self) -> None:
        self.halves: tuple[list[float], list[float]] = [], []
        self.batches: list[int] = []

    def add(self, inputs, target, loss_fn, half):
        self.halves[half].extend(inputs[0][:, 0].tolist())
        self.batches.append(len(target))


class Peers:
    """Several processes that say the same."""

    def __init__(self, world: int) -> None:
        self.world = world

    def totals(self, *values, device):
        return [value * self.world for value in values]


def sets(samples: int, count: int, rank: int = 0, world: int = 1) -> tuple[GrowingSet, Taken]:
    """The sets of one process; micro-batch k holds samples of value k."""
    data = [
        MicroBatch(
            (torch.full((samples, 1), float(k)),), torch.zeros(samples), samples, k, k * samples, count
        )
        for k in range(rank, count, world)
    ]
    operator = Taken()
    subject = SimpleNamespace(loss_fn=cross_entropy, peers=Peers(world), device=torch.device("cpu"))
    return GrowingSet(operator, data, subject), operator


def test_a_coarse_set_is_a_part_of_those_after_it() -> None:
    found, operator = sets(2 * COARSE, 16)
    assert found.begin() is operator
    assert found.is_coarse
    assert operator.halves == ([0.0] * COARSE, [1.0] * COARSE)
    assert found.grow(0) is operator
    assert not found.is_coarse
    assert operator.batches == [COARSE] * 4 + [2 * COARSE] * 2
    assert sorted(operator.halves[0]) == [0.0] * 2 * COARSE + [2.0] * 2 * COARSE
    assert sorted(operator.halves[1]) == [1.0] * 2 * COARSE + [3.0] * 2 * COARSE
    found.grow(16 * 2 * COARSE)
    for half in (0, 1):
        assert sorted(operator.halves[half]) == [
            float(k) for k in range(half, 16, 2) for _ in range(2 * COARSE)
        ]
    assert found.grow(10**9) is None


@pytest.mark.parametrize("world", [2, 4])
def test_every_process_has_a_part_of_a_coarse_set(world: int) -> None:
    union: list[float] = []
    for rank in range(world):
        found, operator = sets(2 * COARSE, 16, rank, world)
        found.begin()
        assert found.is_coarse
        assert sum(operator.batches) == COARSE
        union += operator.halves[0] + operator.halves[1]
    assert sorted(union) == [float(k) for k in range(world) for _ in range(COARSE)]


def test_few_samples_make_no_coarse_set() -> None:
    found, operator = sets(2 * COARSE - 1, 16)
    found.begin()
    assert not found.is_coarse
    assert operator.batches == [2 * COARSE - 1] * 4


def test_sets_grow_by_what_is_asked_for() -> None:
    found, operator = sets(32, 32)
    found.begin()
    assert sum(operator.batches) == 4 * 32
    found.grow(6 * 32)
    assert sum(operator.batches) == 8 * 32
    found.grow(0)
    assert sum(operator.batches) == 12 * 32
    found.grow(10**9)
    assert sum(operator.batches) == 32 * 32
    assert found.grow(0) is None


@pytest.mark.parametrize(("asked", "taken"), [(12, 12), (15, 32), (16, 32), (24, 32)])
def test_a_set_of_half_of_the_data_or_more_is_all_of_them(asked: int, taken: int) -> None:
    found, operator = sets(32, 32)
    found.begin()
    found.grow(asked * 32)
    assert len(operator.batches) == taken
