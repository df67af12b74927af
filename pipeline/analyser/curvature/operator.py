"""The splitting matrices of all channels as one linear operator: batches in, products S·v out.

    S = ∇²_θθ Σ_e ⟨g_e, e(θ; x)⟩,   g_e and every mixing producer's input held constant

Channels of one group do not meet in this scalar, so one Hessian-vector product gives S·v for every channel.
For a chain without sharing it is ``S = E_x[Φ'(σ(θ,x)) ∇²_θθ σ(θ,x)]`` (arXiv 2003.10392).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from growpipe.analyser.curvature.batch import Batch, Form
from growpipe.analyser.curvature.heap import give_back
from growpipe.analyser.curvature.keeping import Keeping
from growpipe.analyser.curvature.pairs import PairForm
from growpipe.analyser.curvature.visits import Visits
from growpipe.analyser.program.binding import BoundGroup
from growpipe.analyser.program.captured import Captured
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
_Product = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass
class SplittingProducts:
    """S of every channel of every group over a growing set of micro-batches.

    Attributes:
        program: the bound program.
        memory_limit: bytes kept between products; None for unlimited. What is not kept is computed again at
            every product, one chain at a time during the backward pass, so that it needs no more memory than
            that pass. See `Keeping`.
        storage: the floating type of what is kept between products, e.g. bfloat16; that of the model by
            default. All arithmetic is in the type of the model; factors are rounded if `Program.rounds`.
        closed_forms: use the closed forms of chains and bent paths, rather than a Hessian-vector product.
        reduce: sums a tensor over all processes; nothing by default.
        products: how often products were computed, each time of a block of vectors.
        done: is told of every micro-batch that products were computed over its samples, their share of what a
            block of vectors for all groups takes, and whether the batch was visited since it was not kept.
    """

    program: Program
    memory_limit: int | None = None
    storage: torch.dtype | None = None
    closed_forms: bool = True
    reduce: Callable[[Tensor], Tensor] | None = None
    done: Callable[[int, float, bool], None] | None = None
    products: int = field(default=0, init=False)
    _positions: list[int] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self._visits = Visits(self.program, self.closed_forms)
        self._keeping = Keeping(self._visits, self.memory_limit, self.storage)
        self._batches = self._keeping.batches

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
        with self.program.multiplying():
            found = self._keeping.add(batch)
        if found is not None:
            self._count_positions(found)

    def captured(self, index: int) -> Captured:
        """What a micro-batch leaves constant for all groups: kept, or by a forward pass without gradients."""
        batch = self._batches[index]
        if batch.kept is not None and self._visits.has_all(batch.kept.captured):
            return batch.kept.captured.cast(self._visits.dtype)
        with self.program.multiplying():
            captured = self._visits.observe(batch)
        self._count_positions(captured)
        return captured

    def _count_positions(self, captured: Captured) -> None:
        """By group how many positions a channel has per sample: pixels, tokens, points."""
        if not self._positions:
            for position, group in enumerate(self.groups):
                chain = self._visits.chains.get(position)
                nodes = [n for _, n in group.edges] if chain is None else [a for a, _ in chain.bends]
                entries = max(captured.sizes.get(node, 0) for node in nodes)
                self._positions.append(max(1, entries // (group.width * captured.samples)))

    @property
    def device(self) -> torch.device:
        """Where products are computed."""
        return self._visits.device

    @property
    def kept_bytes(self) -> int:
        """The memory of what is kept of the micro-batches between products, without runs of paths."""
        return sum(batch.kept.nbytes for batch in self._batches if batch.kept is not None)

    @property
    def keeps_all(self) -> bool:
        """Whether all processes keep all their micro-batches, so that products compute nothing again."""
        return self.serves(set(range(len(self.groups))))

    def serves(self, positions: AbstractSet[int], batches: int | None = None) -> bool:
        """Whether products of these groups compute nothing of the first micro-batches, or of all, again."""
        live = positions - self._visits.flat
        return self.total(sum(not batch.serves(live) for batch in self._batches[:batches])) == 0

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
        give_back(self.device)
        pairs = vectors.items() if isinstance(vectors, Mapping) else vectors
        directions = {position: [self._direction(position, v) for v in block] for position, block in pairs}
        share = self._share({i: len(block) for i, block in directions.items()})
        weights = torch.zeros(2, dtype=torch.float64, device=self.device)
        halves: tuple[_Sums, _Sums] = tuple(  # type: ignore[assignment]
            {
                position: [{n: torch.zeros_like(t) for n, t in d.items()} for d in block]
                for position, block in directions.items()
            }
            for _ in range(2)
        )
        chosen, live = self._batches[:batches], directions.keys() - self._visits.flat
        self._keeping.make_room(live, chosen)
        for batch in chosen:
            weights[batch.half] += batch.samples
            kept = batch.serves(live)
            if live:
                with self.program.multiplying():
                    self._accumulate(halves[batch.half], directions, batch, chosen)
                self._keeping.settle(batch, live)
            if self.done is not None:
                self.done(batch.samples, share, bool(live) and not kept)
        directions.clear()  # the sums alone are wanted now
        give_back(self.device)
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
            0 if i in self._visits.flat else positions[i] * group.width * (group.dimension + _ELEMENTWISE)
            for i, group in enumerate(self.groups)
        ]
        return sum(work[i] * count for i, count in vectors.items()) / (BLOCK * sum(work) or 1)

    def _direction(self, position: int, vectors: Tensor) -> dict[str, Tensor]:
        """One vector per channel as tensors, each of the shape of what is displaced of its parameter."""
        group = self.groups[position]
        direction: dict[str, Tensor] = {}
        for block, values in zip(group.blocks, split(group, vectors), strict=True):
            scattered = block.part(values)
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
        batches: Sequence[Batch],
    ) -> None:
        """Add the products of one of these micro-batches, times its number of samples."""
        positions = frozenset(directions.keys() - self._visits.flat)
        visits = self._visits

        def add(position: int, product: _Product) -> None:
            for total, direction in zip(totals[position], directions[position], strict=True):
                for name, result in product(direction).items():
                    total[name].add_(result, alpha=float(batch.samples))

        def take(position: int, form: Form, captured: Captured) -> None:
            add(position, self._product_of(position, form, captured))

        # One group after the other: what a product takes on the way is there for one group only.
        if batch.kept is not None and batch.serves(positions):
            captured = batch.kept.captured
            taken: AbstractSet[int] = positions & batch.kept.forms.keys()
            for position in taken:
                take(position, batch.kept.forms[position], captured)
        else:
            taken, captured = self._keeping.visited(batch, positions, take)
        for position in sorted(positions - taken):
            graph = batch.graphs.get(position)
            if graph is None:
                graph = visits.path(position, captured.cast(visits.dtype))
                self._keeping.keep_path(batch, position, graph, positions, batches)
            add(position, graph.product)

    def _product_of(self, position: int, form: Form, captured: Captured) -> _Product:
        """S·v of a group by name, from its form over one batch."""
        if isinstance(form, PairForm):
            return form.product
        inputs = self.program.value(self._visits.chains[position].inputs, captured)

        def product(direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
            ((name, v),) = direction.items()
            return {name: form.product(v, inputs)}

        return product

    def drop_graphs(self) -> None:
        """Free the runs of paths."""
        for batch in self._batches:
            batch.graphs.clear()
