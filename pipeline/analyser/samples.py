"""The analysis set: micro-batches of real data on the device, and the checks of the loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from growpipe.analyser.options import MIN_SAMPLES
from growpipe.data.loader_items import as_tuple, described, joined_samples, length_of, pairs, samples_of
from growpipe.graph_ops.errors import CheckFailed, UsageError
from growpipe.torch_module.outputs import to_autograd
from growpipe.user_code import call_user_code

__all__ = ["MicroBatch", "Samples", "check_mean_loss", "collect", "resized"]


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Inputs and target of some samples, on the device.

    Attributes:
        number: its place among the micro-batches of all processes.
        start: how many samples those before it hold.
        count: how many micro-batches all processes have.
    """

    inputs: tuple[Any, ...]
    target: Any
    samples: int
    number: int
    start: int
    count: int

    def halves(self) -> tuple[MicroBatch, MicroBatch]:
        """Its first samples and its others; twice the same if it has one sample only."""
        if self.samples < 2:
            return self, self
        middle = self.samples // 2
        return self._part(0, middle), self._part(middle, self.samples)

    def first(self, samples: int) -> MicroBatch:
        """Its first so many samples, or itself if it has no more."""
        return self if samples >= self.samples else self._part(0, samples)

    def parts(self, most: int) -> list[MicroBatch]:
        """Its samples in as few equal parts as have at most ``most`` each."""
        count = -(-self.samples // most)
        bounds = [round(k * self.samples / count) for k in range(count + 1)]
        return [self] if count == 1 else [self._part(*bound) for bound in itertools.pairwise(bounds)]

    def joined(self, other: MicroBatch) -> MicroBatch | None:
        """The samples of both in one; None if they do not fit together."""
        counts = self.samples, other.samples
        inputs = joined_samples(self.inputs, other.inputs, counts)
        target = joined_samples(self.target, other.target, counts)
        if inputs is None or target is None:
            return None
        return replace(self, inputs=inputs, target=target, samples=sum(counts))

    def _part(self, start: int, stop: int) -> MicroBatch:
        return replace(
            self,
            inputs=samples_of(self.inputs, start, stop, self.samples),
            target=samples_of(self.target, start, stop, self.samples),
            samples=stop - start,
        )


@dataclass(frozen=True, eq=False)
class Samples:
    """The micro-batches of this process.

    Attributes:
        data: what the spectra see.
        held_out: what they do not see.
        count: the samples in ``data``, over all processes.
        held_out_count: the samples in ``held_out``, over all processes.
        seconds: about what one sample of a training step takes.
    """

    data: list[MicroBatch]
    held_out: list[MicroBatch]
    count: int
    held_out_count: int
    seconds: float

    @property
    def judged(self) -> list[MicroBatch]:
        """What the finished plan is judged on."""
        return self.held_out or self.data

    def fresh(self, samples: int) -> list[MicroBatch]:
        """So many of those that judge a plan."""
        return _first(self.judged, samples)

    def mixed(self, samples: int, most: int) -> list[MicroBatch]:
        """Those of both `halves`, in micro-batches of at most ``most`` samples."""
        return resized(itertools.chain(*self.halves(samples)), most)

    def halves(self, samples: int) -> list[list[MicroBatch]]:
        """So many, as many unseen as seen: those promise too little, these as much too much."""
        if not self.held_out_count:
            return [_first(self.data, samples)]
        share = min(self.held_out_count, -(-samples // 2))
        return [_first(part, share) for part in (self.held_out, self.data)]


def _first(batches: Sequence[MicroBatch], samples: int) -> list[MicroBatch]:
    """Those among the first ``samples`` samples of all processes that are in this one."""
    return [batch.first(samples - batch.start) for batch in batches if batch.start < samples]


def resized(batches: Iterable[MicroBatch], most: int) -> list[MicroBatch]:
    """The same samples in as few micro-batches as fit together, of at most ``most`` samples each."""
    found: list[MicroBatch] = []
    for batch in itertools.chain.from_iterable(batch.parts(most) for batch in batches):
        one = found[-1].joined(batch) if found and found[-1].samples + batch.samples <= most else None
        if one is None:
            found.append(batch)
        else:
            found[-1] = one
    return found


def _cast(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = to_autograd(value)
    return value.to(device=device, dtype=dtype) if value.is_floating_point() else value.to(device)


def collect(
    batches: Iterable[Any],
    *,
    max_samples: int,
    micro_batch: int,
    device: torch.device,
    dtype: torch.dtype,
    shard: tuple[int, int] = (0, 1),
    held_out: int = 0,
) -> tuple[list[MicroBatch], list[MicroBatch]]:
    """Samples of ``batches`` in micro-batches: to analyse, and held out.

    Args:
        batches: gives ``(inputs, target)`` pairs; axis 0 of every tensor is the batch.
        max_samples: how many to analyse at most, the first ones, over all processes.
        micro_batch: the largest number of samples worked on at once.
        device: where they go.
        dtype: of floating inputs and targets.
        shard: (rank, world size): the process keeps every world-size-th micro-batch.
        held_out: how many to hold out at most, of those that come next. Where there are too few, the last
            quarter of all is held out, but never so many that fewer than `MIN_SAMPLES` are left.

    Returns:
        The micro-batches of this process, numbered separately in the two parts.

    Raises:
        UsageError: nothing to iterate over, no pairs, a loader that fails, or fewer samples than
            `MIN_SAMPLES` in all.
    """
    taken = 0
    pieces: list[tuple[Any, Any, int]] = []
    for own_inputs, target in pairs(batches):
        inputs = as_tuple(own_inputs)
        length = length_of(inputs)
        if length == 0:
            raise UsageError(
                "a batch has no samples: its inputs hold no tensor with a batch axis of at least 1"
            )
        use = min(length, max_samples + held_out - taken)
        for start in range(0, use, micro_batch):
            stop = min(start + micro_batch, use)
            pieces.append(
                (
                    samples_of(inputs, start, stop, length),
                    samples_of(target, start, stop, length),
                    stop - start,
                )
            )
        taken += use
        if taken >= max_samples + held_out:
            break
    if taken == 0:
        raise UsageError("batches is empty; give a loader with data that can be iterated again")
    if taken < MIN_SAMPLES:
        raise UsageError(
            f"the analysis set has {taken} samples, fewer than the {MIN_SAMPLES} that two halves need; "
            f"give more batches"
        )
    rank, world = shard
    unseen = min(held_out, max(taken - max_samples, min(taken // 4, taken - MIN_SAMPLES)))
    # The cut is one of samples, so that it is the same for any number of processes.
    kept, trials = _cut(pieces, taken - unseen)
    # Two halves, and something to grow by, in every process.
    if len(kept) < max(4, 2 * world):
        kept = _finer(kept, max(4, 2 * world))
    # What a trial shows has a standard error, from the differences between micro-batches.
    if trials and len(trials) < max(4, world):
        trials = _finer(trials, max(4, world))

    def part(chosen: Sequence[tuple[Any, Any, int]]) -> list[MicroBatch]:
        starts = [0, *itertools.accumulate(samples for *_, samples in chosen)]
        return [
            MicroBatch(
                pytree.tree_map(lambda leaf: _cast(leaf, device, dtype), inputs),
                pytree.tree_map(lambda leaf: _cast(leaf, device, dtype), target),
                samples,
                number,
                starts[number],
                len(chosen),
            )
            for number, (inputs, target, samples) in list(enumerate(chosen))[rank::world]
        ]

    return part(kept), part(trials)


def _cut(
    pieces: Sequence[tuple[Any, Any, int]], samples: int
) -> tuple[list[tuple[Any, Any, int]], list[tuple[Any, Any, int]]]:
    """The first ``samples`` samples, and the others."""
    first: list[tuple[Any, Any, int]] = []
    rest: list[tuple[Any, Any, int]] = []
    for inputs, target, count in pieces:
        here = max(0, min(count, samples))
        samples -= here
        for part, start, stop in ((first, 0, here), (rest, here, count)):
            if stop > start:
                part.append(
                    (
                        samples_of(inputs, start, stop, count),
                        samples_of(target, start, stop, count),
                        stop - start,
                    )
                )
    return first, rest


def _finer(pieces: Sequence[tuple[Any, Any, int]], wanted: int) -> list[tuple[Any, Any, int]]:
    """The same samples in at least ``wanted`` pieces."""
    share = math.ceil(sum(samples for *_, samples in pieces) / wanted)
    finer = []
    for inputs, target, samples in pieces:
        parts = max(1, math.ceil(samples / share))
        bounds = [round(k * samples / parts) for k in range(parts + 1)]
        for start, stop in itertools.pairwise(bounds):
            finer.append(
                (
                    samples_of(inputs, start, stop, samples),
                    samples_of(target, start, stop, samples),
                    stop - start,
                )
            )
    return finer


def check_mean_loss(loss: Callable[[Any, Any], float], batch: MicroBatch) -> None:
    """Refuse a loss that is not a mean over samples: a batch and the same batch twice must have one loss.

    Args:
        loss: ``(inputs, target) →`` the loss.
        batch: any batch.

    Raises:
        CheckFailed: the loss is not finite.
        UsageError: the two differ, or there is no loss of the batch at all.
    """

    def twice(leaf: Any) -> Any:
        own = isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == batch.samples
        return torch.cat([leaf, leaf]) if own else leaf

    def measured(inputs: Any, target: Any) -> float:
        where = f"inputs {described(inputs)}, target {described(target)} (axis 0 is the batch)"
        value: float = call_user_code(f"the model or the loss on a batch, {where},", loss, inputs, target)
        return value

    once = measured(batch.inputs, batch.target)
    if not math.isfinite(once):
        raise CheckFailed(f"the loss of an analysis batch is {once}; analyse a trained model on finite data")
    doubled = measured(pytree.tree_map(twice, batch.inputs), pytree.tree_map(twice, batch.target))
    if abs(doubled - once) > 1e-3 * max(abs(once), abs(doubled), 1e-6):
        raise UsageError(
            f"loss_fn is not a mean over samples: {once:.6g} on a batch, {doubled:.6g} on the same batch "
            f"twice; use reduction='mean'"
        )
