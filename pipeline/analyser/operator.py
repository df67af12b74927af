"""The splitting matrices of all channels as one linear operator: batches in, products S·v out.

    S = ∇²_θθ Σ_e ⟨g_e, e(θ; x)⟩,   g_e and every mixing producer's input held constant

Channels of one group do not meet in this scalar, so one Hessian-vector product gives S·v for every channel.
For a chain without sharing it is ``S = E_x[Φ'(σ(θ,x)) ∇²_θθ σ(θ,x)]`` (arXiv 2003.10392).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from growpipe.analyser.binding import BoundGroup
from growpipe.analyser.closed_form import ClosedForm, plain_chain
from growpipe.analyser.program import Captured, Loss, Program

__all__ = ["SplittingOperator", "Vectors", "join", "split"]

Vectors = list[Tensor]
"""One vector per channel: for every group a tensor [width, d]."""


def split(group: BoundGroup, values: Tensor) -> list[Tensor]:
    """[width, d] to one [width, d_block] per block."""
    return list(values.split(group.sizes, dim=1))


def join(blocks: Sequence[Tensor]) -> Tensor:
    """The inverse of `split`."""
    return torch.cat(list(blocks), dim=1)


@dataclass
class _Linearised:
    """∇_θ of the scalar of one batch and group, as a graph that can be differentiated again and again."""

    theta: dict[str, Tensor]
    names: list[str]
    gradients: list[Tensor]

    def product(self, direction: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
        pairs = [(g, direction[name]) for name, g in zip(self.names, self.gradients, strict=True)]
        live = [(g, v) for g, v in pairs if g.requires_grad]
        if not live:
            return {}
        results = torch.autograd.grad(
            [g for g, _ in live],
            [self.theta[name] for name in self.names],
            [v for _, v in live],
            retain_graph=keep,
            allow_unused=True,
        )
        return {name: r for name, r in zip(self.names, results, strict=True) if r is not None}


@dataclass
class _Batch:
    """One micro-batch: how to capture it, and what is kept of it between products."""

    samples: int
    loss: float
    capture: Callable[[], Captured]
    kept: Captured | None
    keep_graphs: bool
    half: int


@dataclass
class SplittingOperator:
    """S of every channel of every group over a growing set of micro-batches.

    Attributes:
        program: the bound program.
        memory_limit: bytes to keep between products, None for no limit. Batches that fit keep their
            linearised paths, further ones what was captured of them; the rest is captured at every product.
        storage: the floating type of what is kept between products, e.g. bfloat16; that of the model by
            default. All arithmetic is in the type of the model.
        closed_forms: use the closed form for plain chains, rather than a Hessian-vector product.
        reduce: sums a tensor over all processes; nothing by default.
        products: how many products were computed.
    """

    program: Program
    memory_limit: int | None = None
    storage: torch.dtype | None = None
    closed_forms: bool = True
    reduce: Callable[[Tensor], Tensor] | None = None
    products: int = field(default=0, init=False)
    _batches: list[_Batch] = field(default_factory=list, init=False, repr=False)
    _used: int = field(default=0, init=False, repr=False)
    _graphs: dict[tuple[int, int], _Linearised] = field(default_factory=dict, init=False, repr=False)
    _closed: dict[tuple[int, int], ClosedForm] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        found = [plain_chain(group) if self.closed_forms else None for group in self.program.groups]
        self._chains = [chain for chain in found if chain is not None]
        self._paths = [g for g, chain in zip(self.groups, found, strict=True) if chain is None]
        self._positions = {id(group): position for position, group in enumerate(self.groups)}

    def add(self, inputs: Any, target: Any, loss_fn: Loss, half: int | None = None) -> None:
        """Take one more micro-batch into the analysis set.

        Args:
            inputs: its inputs.
            target: its target.
            loss_fn: the mean loss.
            half: to which half of the data it belongs, 0 or 1; in turn by default.

        Raises:
            CheckFailed: its loss or a gradient is not finite.
        """

        def capture() -> Captured:
            return self.program.capture(inputs, target, loss_fn)

        captured = capture()
        if self.storage is not None:
            captured = captured.stored(self.storage)
        left = math.inf if self.memory_limit is None else self.memory_limit - self._used
        # A linearised path holds about as much again for the forward and for the backward run.
        keep_graphs, keep = 3 * captured.nbytes <= left, captured.nbytes <= left
        if self.storage is not None and self._paths:
            keep_graphs = False  # autograd would keep its own copies in the model's type
        self._used += captured.nbytes * (3 if keep_graphs else 1 if keep else 0)
        self._batches.append(
            _Batch(
                captured.samples,
                captured.loss,
                capture,
                captured if keep else None,
                keep_graphs,
                len(self._batches) % 2 if half is None else half,
            )
        )

    def captured(self, index: int) -> Captured:
        """What a micro-batch leaves constant, kept or captured anew."""
        batch = self._batches[index]
        if batch.kept is None:
            return batch.capture()
        return batch.kept if self.storage is None else batch.kept.stored(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return self.program.tensor(self.groups[0].blocks[0].tensor).dtype

    def kept(self) -> list[Captured]:
        """What is kept of the micro-batches between products."""
        return [batch.kept for batch in self._batches if batch.kept is not None]

    def __len__(self) -> int:
        """The number of micro-batches."""
        return len(self._batches)

    @property
    def groups(self) -> tuple[BoundGroup, ...]:
        return self.program.groups

    @property
    def samples(self) -> int:
        return sum(batch.samples for batch in self._batches)

    @property
    def loss(self) -> float:
        """The mean loss over all samples of this process."""
        return sum(batch.loss * batch.samples for batch in self._batches) / self.samples

    def total(self, number: int) -> int:
        """The sum of a number over all processes."""
        if self.reduce is None:
            return number
        return int(self.reduce(torch.tensor(number, device=self.zeros()[0].device)))

    def zeros(self, dtype: torch.dtype | None = None) -> Vectors:
        """A zero vector for every channel."""
        return [
            torch.zeros(g.width, g.dimension, dtype=dtype or reference.dtype, device=reference.device)
            for g in self.groups
            for reference in [self.program.tensor(g.blocks[0].tensor)]
        ]

    def apply(self, vectors: Sequence[Tensor]) -> Vectors:
        """S·v for every channel, S that of the mean loss over all samples: for every group [width, d]."""
        return self.apply_halves(vectors)[0]

    def apply_halves(self, vectors: Sequence[Tensor]) -> tuple[Vectors, Vectors]:
        """S·v over all samples, and (S₁ − S₂)·v for two disjoint halves of them, at the price of one product.

        Args:
            vectors: for every group [width, d].

        Returns:
            Twice, for every group [width, d]; the second is zero where a half is empty.
        """
        self.products += 1
        device = vectors[0].device
        halves = [[torch.zeros_like(v) for v in vectors] for _ in range(2)]
        weights = torch.zeros(2, dtype=torch.float64, device=device)
        for index, batch in enumerate(self._batches):
            weights[batch.half] += batch.samples
            self._accumulate(halves[batch.half], vectors, index)
        if self.reduce is not None:
            weights = self.reduce(weights)
            halves = [[self.reduce(total) for total in half] for half in halves]
        first, second = (float(w) for w in weights)
        whole = [(a + b) / (first + second) for a, b in zip(*halves, strict=True)]
        if first == 0 or second == 0:
            return whole, [torch.zeros_like(v) for v in vectors]
        return whole, [a / first - b / second for a, b in zip(*halves, strict=True)]

    def _accumulate(self, totals: Vectors, vectors: Sequence[Tensor], index: int) -> None:
        """Add the products of one micro-batch, times its number of samples."""
        batch = self._batches[index]
        captured: list[Captured] = []

        def constants() -> Captured:
            if not captured:
                captured.append(self.captured(index))
            return captured[0]

        for number, chain in enumerate(self._chains):
            closed = self._closed.get((index, number)) or ClosedForm.of(chain, self.program, constants())
            if batch.keep_graphs:
                closed = self._closed[index, number] = closed.stored(self.storage or self._dtype)
            position = self._positions[id(chain.group)]
            (block,) = chain.group.blocks
            product = closed.product(block.scatter(vectors[position]))
            totals[position].add_(block.gather(product), alpha=float(batch.samples))
        # One group after the other: what linearising a path takes on the way is there for one path only.
        for number, group in enumerate(self._paths):
            graph = self._graphs.get((index, number)) or self._linearise(constants(), group)
            if batch.keep_graphs:
                self._graphs[index, number] = graph
            self._accumulate_group(totals, vectors, graph, group, batch)

    def _accumulate_group(
        self,
        totals: Vectors,
        vectors: Sequence[Tensor],
        graph: _Linearised,
        group: BoundGroup,
        batch: _Batch,
    ) -> None:
        direction: dict[str, Tensor] = {}
        position = self._positions[id(group)]
        for block, values in zip(group.blocks, split(group, vectors[position]), strict=True):
            scattered = block.scatter(values)
            held = direction.get(block.tensor)
            direction[block.tensor] = scattered if held is None else held + scattered
        results = graph.product(direction, keep=batch.keep_graphs)
        parts = [
            block.gather(results[block.tensor])
            if block.tensor in results
            else direction[block.tensor].new_zeros(block.width, block.dimension)
            for block in group.blocks
        ]
        totals[position].add_(join(parts), alpha=float(batch.samples))

    def _linearise(self, batch: Captured, group: BoundGroup) -> _Linearised:
        names = list(dict.fromkeys(block.tensor for block in group.blocks))
        theta = {name: self.program.tensor(name).detach().clone().requires_grad_() for name in names}
        with torch.enable_grad():
            scalar = self.program.scalar([group], batch, theta)
            gradients = torch.autograd.grad(
                scalar, list(theta.values()), create_graph=True, allow_unused=True
            )
        filled = [
            torch.zeros_like(theta[name]) if g is None else g
            for name, g in zip(names, gradients, strict=True)
        ]
        return _Linearised(theta, names, filled)

    def drop_graphs(self) -> None:
        """Free the linearised paths."""
        self._graphs.clear()
        self._closed.clear()
