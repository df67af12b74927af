"""Micro-batches of other sizes."""

from __future__ import annotations

import torch

from growpipe.analyser.samples import MicroBatch, resized


def batches(sizes: list[int]) -> list[MicroBatch]:
    """Micro-batches whose samples are numbered."""
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    return [
        MicroBatch(
            (torch.arange(start, start + size),), torch.arange(start, start + size), size, number, start, 9
        )
        for number, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]


def test_micro_batches_are_joined_and_cut_to_at_most_so_many_samples() -> None:
    for sizes, most, wanted in (
        ([4, 4, 4], 8, [8, 4]),
        ([4, 4], 4, [4, 4]),
        ([7, 1], 4, [4, 4]),
        ([5], 2, [2, 1, 2]),
        ([1, 1, 1], 1, [1, 1, 1]),
    ):
        found = resized(batches(sizes), most)
        assert [batch.samples for batch in found] == wanted
        assert torch.cat([batch.inputs[0] for batch in found]).tolist() == list(range(sum(sizes)))
        assert torch.cat([batch.target for batch in found]).tolist() == list(range(sum(sizes)))


def test_micro_batches_that_do_not_fit_together_stay_apart() -> None:
    first, second = batches([2, 2])
    other = MicroBatch((torch.zeros(2, 3),), second.target, 2, 1, 2, 2)
    assert [batch.samples for batch in resized([first, other], 8)] == [2, 2]
