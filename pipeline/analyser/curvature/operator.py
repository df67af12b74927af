"""The splitting matrices of all channels as one linear operator: batches in, products S·v out.

    S = ∇²_θθ Σ_e ⟨g_e, e(θ; x)⟩,   g_e and every mixing producer's input held constant

Channels of one group do not meet in this scalar, so one Hessian-vector product gives S·v for every channel.
For a chain without sharing it is ``S = E_x[Φ'(σ(θ,x)) ∇²_θθ σ(θ,x)]`` (arXiv 2003.10392).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from growpipe.analyser.curvature.batch import Batch, Constants
from growpipe.analyser.curvature.bent_path import bends_of, path_products, producer_inputs
from growpipe.analyser.curvature.closed_form import ClosedForm, Skeleton, find_chain
from growpipe.analyser.program.binding import BoundGroup
from growpipe.analyser.program.captured import Captured, Recording
from growpipe.analyser.program.program import Program
from growpipe.torch_module.outputs import LossFunction

__all__ = ["BLOCK", "SplittingProducts", "Vectors", "join", "split"]

Vectors = list[Tensor]
"""One vector per channel: for every group a tensor [width, d]."""


def split(group: BoundGroup, values: Tensor) -> list[Tensor]:
    """[..., width, d] to one [..., width, d_block] per block."""
    return list(values.split(group.sizes, dim=-1))


def join(blocks: Sequence[Tensor]) -> Tensor:
    """The inverse of `split`."""
    return blocks[0] if len(blocks) == 1 else torch.cat(list(blocks), dim=-1)


BLOCK = 2
"""How many vectors per channel S is applied to at once, one for each end of the spectrum.

What is not kept of a micro-batch is computed again once per block. That costs more than a product."""

_ELEMENTWISE = 64
"""What the activations of a channel take at one position, in multiply-adds of a product."""

_Sums = dict[int, list[dict[str, Tensor]]]
_Take = Callable[[int, ClosedForm, Captured], None]


@dataclass
class SplittingProducts:
    """S of every channel of every group over a growing set of micro-batches.

    Attributes:
        program: the bound program.
        memory_limit: bytes kept between products; None for unlimited. Micro-batches are cached in order until
            the limit. First closed forms and linearised paths are kept; once those no longer fit, closed
            forms only; then nothing. What is not kept is recomputed at every product, one chain at a time
            during the backward pass, so that it needs no more memory than that pass.
        storage: the floating type of what is kept between products, e.g. bfloat16; that of the model by
            default. All arithmetic is in the type of the model.
        closed_forms: use the closed forms of chains and bent paths, rather than a Hessian-vector product.
        reduce: sums a tensor over all processes; nothing by default.
        products: how often products were computed, each time of a block of vectors.
        done: is told the samples of every micro-batch that products were computed over; if it is kept, times
            their share of the products of a block of vectors for all groups.
    """

    program: Program
    memory_limit: int | None = None
    storage: torch.dtype | None = None
    closed_forms: bool = True
    reduce: Callable[[Tensor], Tensor] | None = None
    done: Callable[[float], None] | None = None
    products: int = field(default=0, init=False)
    _batches: list[Batch] = field(default_factory=list, init=False, repr=False)
    _used: int = field(default=0, init=False, repr=False)
    _bytes_per_sample: float = field(default=0.0, init=False, repr=False)
    _positions: list[int] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        found = [find_chain(group) if self.closed_forms else None for group in self.groups]
        self._chains = {i: chain for i, chain in enumerate(found) if chain is not None}
        paths = [i for i in range(len(self.groups)) if self.closed_forms and i not in self._chains]
        self._bends = {i: bends_of(self.program, self.groups[i]) for i in paths}
        self._flat = {i for i, bends in self._bends.items() if bends and not bends.sources}  # of S = 0
        self._recordings: dict[frozenset[int], Recording] = {}
        self._skeletons: dict[int, Skeleton] = {}

    def _recording(self, positions: Iterable[int]) -> Recording:
        """What products of these groups need of a batch."""
        wanted = frozenset(positions)
        if wanted not in self._recordings:
            chains = [chain for i, chain in self._chains.items() if i in wanted]
            bends = [pair for chain in chains for pair in chain.bends]
            flat = [producer_inputs(self.groups[i]) for i in wanted & self._flat]
            self._recordings[wanted] = self.program.recording(
                [self.groups[i] for i in sorted(wanted - self._chains.keys() - self._flat)],
                slopes=[activation for activation, _ in bends],
                inner=[source for _, source in bends],
                constants=set().union(*(chain.constants for chain in chains), *flat),
            )
        return self._recordings[wanted]

    def add(self, inputs: Any, target: Any, loss_fn: LossFunction, half: int | None = None) -> None:
        """Take one more micro-batch into the analysis set.

        Args:
            inputs: its inputs.
            target: its target.
            loss_fn: the mean loss.
            half: to which half of the data it belongs, 0 or 1; in turn by default.

        Raises:
            CheckFailed: its loss or a gradient is not finite. What is not kept is checked when it is used.
        """
        half = len(self._batches) % 2 if half is None else half
        batch = Batch(inputs, target, loss_fn, self.program.samples(inputs), half)
        self._batches.append(batch)
        left = math.inf if self.memory_limit is None else self.memory_limit - self._used
        if 0 < left < math.inf and not self._bytes_per_sample:
            # To find out by keeping it would take more memory than there may be.
            self._bytes_per_sample = self._expected_bytes(batch) / batch.samples
        if left <= 0 or self._bytes_per_sample * batch.samples > left:
            return
        closed: dict[int, ClosedForm] = {}

        def take(position: int, form: ClosedForm, captured: Captured) -> None:
            closed[position] = form if self.storage is None else form.cast(self.storage)

        captured = self._visit(batch, range(len(self.groups)), take, keep=True)
        self._count_positions(captured)
        constants = Constants(captured if self.storage is None else captured.cast(self.storage), closed)
        # A linearised path holds about as much again for the forward and for the backward run.
        paths = 0 if len(self._chains) == len(self.groups) else 2 * constants.captured.nbytes
        self._bytes_per_sample = max(self._bytes_per_sample, constants.nbytes / batch.samples)
        if constants.nbytes > left:
            return
        batch.kept = constants
        # With another type to store in autograd would still keep its own copies in the model's.
        batch.keeps_graphs = constants.nbytes + paths <= left and self.storage is None
        self._used += constants.nbytes + paths * batch.keeps_graphs

    def _expected_bytes(self, batch: Batch) -> int:
        """What keeping a batch would take without linearised paths, from one forward pass."""
        captured = self._observe(batch)
        entries = sum(
            captured.sizes[activation] * (1 if activation is chain.steps[-1] else 2)
            for chain in self._chains.values()
            for activation, _ in chain.bends
        )
        edges = self._recording(range(len(self.groups))).edges
        entries += sum(captured.sizes[source] for _, source in edges)
        dtype = self.storage or self._dtype
        return captured.cast(dtype).nbytes + entries * dtype.itemsize

    def _observe(self, batch: Batch) -> Captured:
        recording = self._recording(range(len(self.groups)))
        captured = self.program.observe(batch.inputs, batch.target, batch.loss_fn, recording)
        self._count_positions(captured)
        return captured

    def _visit(self, batch: Batch, positions: Iterable[int], take: _Take, keep: bool) -> Captured:
        """One forward and one backward pass over a batch.

        Args:
            batch: the batch.
            positions: of the groups that it is for.
            take: called for every chain among them, with its position, its closed form and what was captured,
                as soon as the backward pass has reached its first activation.
            keep: whether constants that only chains read are to stay.

        Returns:
            The constants, and the gradients of groups that are not chains.
        """
        recording = self._recording(positions)
        chains = {i: self._chains[i] for i in positions if i in self._chains}
        missing = {i: {activation for activation, _ in chain.bends} for i, chain in chains.items()}
        paths = self._recording(i for i in positions if i not in chains)
        # Two groups share an activation where a depthwise convolution makes channels of its own.
        readers = Counter(pair for chain in chains.values() for pair in chain.bends)
        constants = Counter(node for chain in chains.values() for node in chain.constants)
        constants.update(paths.constants)

        def arrived(captured: Captured, place: Any) -> None:
            for position in [i for i, activations in missing.items() if place in activations]:
                missing[position].discard(place)
                if missing[position]:
                    continue
                chain = chains[position]
                take(position, self._closed_form(position, captured), captured)
                for pair in chain.bends:
                    readers[pair] -= 1
                    if readers[pair] == 0:
                        activation, source = pair
                        del captured.slopes[activation], captured.inner[source]
                constants.subtract(chain.constants)
                for node in () if keep else chain.constants:
                    if constants[node] == 0:
                        captured.constants.pop(node, None)

        return self.program.capture(batch.inputs, batch.target, batch.loss_fn, recording, arrived)

    def _closed_form(self, position: int, captured: Captured) -> ClosedForm:
        chain = self._chains[position]
        skeleton = self._skeletons.get(position)
        if skeleton is None and self.program.is_state(chain.constants - {chain.inputs}):
            skeleton = self._skeletons[position] = Skeleton.of(chain, self.program, captured)
        return ClosedForm.of(chain, self.program, captured, skeleton)

    def captured(self, index: int) -> Captured:
        """What a micro-batch leaves constant: kept, or without gradients from a forward pass."""
        batch = self._batches[index]
        if batch.kept is not None:
            return batch.kept.captured.cast(self._dtype)
        return self._observe(batch)

    def _count_positions(self, captured: Captured) -> None:
        """By group how many positions a channel has per sample: pixels, tokens, points."""
        if not self._positions:
            for position, group in enumerate(self.groups):
                chain = self._chains.get(position)
                nodes = [n for _, n in group.edges] if chain is None else [a for a, _ in chain.bends]
                entries = max(captured.sizes.get(node, 0) for node in nodes)
                self._positions.append(max(1, entries // (group.width * captured.samples)))

    @property
    def _device(self) -> torch.device:
        return self.program.tensor(self.groups[0].blocks[0].tensor).device

    @property
    def _dtype(self) -> torch.dtype:
        return self.program.tensor(self.groups[0].blocks[0].tensor).dtype

    @property
    def kept_bytes(self) -> int:
        """The memory of what is kept of the micro-batches between products, without linearised paths."""
        return sum(batch.kept.nbytes for batch in self._batches if batch.kept is not None)

    @property
    def keeps_all(self) -> bool:
        """Whether all processes keep all their micro-batches, so that products compute nothing again."""
        return self.total(sum(batch.kept is None for batch in self._batches)) == 0

    def kept(self) -> list[Captured]:
        """What is kept of the micro-batches between products."""
        return [batch.kept.captured for batch in self._batches if batch.kept is not None]

    def __len__(self) -> int:
        """The number of micro-batches."""
        return len(self._batches)

    @property
    def groups(self) -> tuple[BoundGroup, ...]:
        return self.program.groups

    @property
    def samples(self) -> int:
        return sum(batch.samples for batch in self._batches)

    def total(self, number: int) -> int:
        """The sum of a number over all processes."""
        if self.reduce is None:
            return number
        return int(self.reduce(torch.tensor(number, device=self.zeros()[0].device)))

    def work(self) -> list[float]:
        """By group about how many multiply-adds one product over all data takes per channel.

        The same in every process: a forward and a weight gradient at the producer, d each for every position.
        """
        if not self._positions and self._batches:
            self.captured(0)
        return [
            2.0 * self.total(self._positions[i] * self.samples if self._batches else 0) * group.dimension
            for i, group in enumerate(self.groups)
        ]

    def zeros(self, dtype: torch.dtype | None = None) -> Vectors:
        """A zero vector for every channel."""
        return [
            torch.zeros(g.width, g.dimension, dtype=dtype or reference.dtype, device=reference.device)
            for g in self.groups
            for reference in [self.program.tensor(g.blocks[0].tensor)]
        ]

    def apply(self, vectors: Sequence[Tensor]) -> Vectors:
        """S·v for every channel, S that of the mean loss over all samples: for every group [width, d]."""
        whole, _ = self.apply_halves({position: v[None] for position, v in enumerate(vectors)})
        return [whole[position][0] for position in range(len(vectors))]

    def apply_halves(
        self, vectors: Mapping[int, Tensor] | Iterable[tuple[int, Tensor]], batches: int | None = None
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """S·v over all samples, and (S₁ − S₂)·v for two disjoint halves of them, at the price of one product.

        Args:
            vectors: by position of the group [block, width, d], any number of vectors per channel; groups
                that are left out cost nothing. What is not kept of a micro-batch is computed again once.
                As pairs they are taken one after the other, and need not all be there at once.
            batches: over how many micro-batches, those added first; over all by default.

        Returns:
            Twice, by position of the group [block, width, d]; the second is zero where a half is empty.
        """
        self.products += 1
        pairs = vectors.items() if isinstance(vectors, Mapping) else vectors
        directions = {position: [self._direction(position, v) for v in block] for position, block in pairs}
        share = self._share({i: len(block) for i, block in directions.items()})
        weights = torch.zeros(2, dtype=torch.float64, device=self._device)
        halves: tuple[_Sums, _Sums] = tuple(  # type: ignore[assignment]
            {
                position: [{n: torch.zeros_like(t) for n, t in d.items()} for d in block]
                for position, block in directions.items()
            }
            for _ in range(2)
        )
        for batch in self._batches[:batches]:
            weights[batch.half] += batch.samples
            self._accumulate(halves[batch.half], directions, batch)
            if self.done is not None:
                self.done(batch.samples * (1.0 if batch.kept is None else share))
        directions.clear()  # the sums alone are wanted now
        if self.reduce is not None:
            weights = self.reduce(weights)
        first, second = (float(w) for w in weights)
        whole: dict[int, Tensor] = {}
        difference: dict[int, Tensor] = {}
        for position in list(halves[0]):
            one, other = (self._gathered(position, half.pop(position)) for half in halves)
            if self.reduce is not None:
                one, other = self.reduce(one), self.reduce(other)
            whole[position] = (one + other).div_(first + second)
            if first == 0 or second == 0:
                difference[position] = one.zero_()
            else:
                difference[position] = one.div_(first).sub_(other.div_(second))
        return whole, difference

    def _share(self, vectors: Mapping[int, int]) -> float:
        """About which share these products have of those of a block of vectors for all groups.

        Args:
            vectors: by position of the group the number of vectors per channel.
        """
        positions = self._positions or [1] * len(self.groups)
        work = [
            0 if i in self._flat else positions[i] * group.width * (group.dimension + _ELEMENTWISE)
            for i, group in enumerate(self.groups)
        ]
        return sum(work[i] * count for i, count in vectors.items()) / (BLOCK * sum(work) or 1)

    def _direction(self, position: int, vectors: Tensor) -> dict[str, Tensor]:
        """One vector per channel as tensors of the parameters' shapes."""
        group = self.groups[position]
        direction: dict[str, Tensor] = {}
        for block, values in zip(group.blocks, split(group, vectors), strict=True):
            scattered = block.scatter(values)
            held = direction.get(block.tensor)
            direction[block.tensor] = scattered if held is None else held + scattered
        return direction

    def _gathered(self, position: int, sums: Sequence[Mapping[str, Tensor]]) -> Tensor:
        blocks = self.groups[position].blocks
        return torch.stack([join([block.gather(t[block.tensor]) for block in blocks]) for t in sums])

    def _accumulate(
        self,
        totals: _Sums,
        directions: Mapping[int, Sequence[Mapping[str, Tensor]]],
        batch: Batch,
    ) -> None:
        """Add the products of one micro-batch, times its number of samples."""

        def add(total: dict[str, Tensor], results: Mapping[str, Tensor]) -> None:
            for name, result in results.items():
                total[name].add_(result, alpha=float(batch.samples))

        def take(position: int, form: ClosedForm, captured: Captured) -> None:
            inputs = self.program.value(self._chains[position].inputs, captured)
            for total, direction in zip(totals[position], directions[position], strict=True):
                ((name, v),) = direction.items()
                add(total, {name: form.product(v, inputs)})

        if self._flat.issuperset(directions):
            return
        # One group after the other: what a product takes on the way is there for one group only.
        if batch.kept is None:
            captured = self._visit(batch, directions, take, keep=False)
        else:
            captured = batch.kept.captured
            for position in directions:
                if position in self._chains:
                    take(position, batch.kept.closed[position], captured)
        paths = [i for i in directions if i not in self._chains and i not in self._flat]
        if any(position not in batch.graphs for position in paths):
            captured = captured.cast(self._dtype)
        for position in paths:
            graph = batch.graphs.get(position)
            if graph is None:
                graph = path_products(
                    self.program, captured, self.groups[position], self._bends.get(position)
                )
                if batch.keeps_graphs:
                    batch.graphs[position] = graph
            left = len(directions[position])
            for total, direction in zip(totals[position], directions[position], strict=True):
                left -= 1
                add(total, graph.product(direction, keep=batch.keeps_graphs or left > 0))

    def drop_graphs(self) -> None:
        """Free the linearised paths."""
        for batch in self._batches:
            batch.graphs.clear()
