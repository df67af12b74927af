"""The splitting matrices of all channels as one linear operator: batches in, products S·v out.

    S = ∇²_θθ Σ_e ⟨g_e, e(θ; x)⟩,   g_e and every mixing producer's input held constant

Channels of one group do not meet in this scalar, so one Hessian-vector product gives S·v for every channel.
For a chain without sharing it is ``S = E_x[Φ'(σ(θ,x)) ∇²_θθ σ(θ,x)]`` (arXiv 2003.10392).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from growpipe.analyser.binding import BoundGroup
from growpipe.analyser.closed_form import ClosedForm, find_chain
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

    def product(self, direction: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
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
    """One micro-batch: how to capture it, and what is kept of it between products.

    Attributes:
        samples: the number of samples.
        loss: the mean loss over them.
        half: to which half of the data it belongs, 0 or 1.
        positions: by group how many positions a channel has per sample.
        capture: all that products need, from one forward and one backward pass.
        kept: what `capture` returned, where there is memory for it.
        keeps_graphs: whether there is memory for linearised paths, too.
        graphs: those, by position of the group.
    """

    samples: int
    loss: float
    half: int
    positions: Sequence[int]
    capture: Callable[[], _Constants]
    kept: _Constants | None
    keeps_graphs: bool
    graphs: dict[int, _Linearised] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Constants:
    """What is held constant while θ moves: of paths as it was captured, of chains what products need."""

    captured: Captured
    closed: Mapping[int, ClosedForm]

    @property
    def nbytes(self) -> int:
        return self.captured.nbytes + sum(form.nbytes for form in self.closed.values())


@dataclass
class SplittingOperator:
    """S of every channel of every group over a growing set of micro-batches.

    Attributes:
        program: the bound program.
        memory_limit: bytes to keep between products, None for no limit. Batches that fit keep the closed
            forms of their chains and the linearised paths of other groups, further ones all but those paths;
            what is left is captured anew at every product.
        storage: the floating type of what is kept between products, e.g. bfloat16; that of the model by
            default. All arithmetic is in the type of the model.
        closed_forms: use the closed form for chains, rather than a Hessian-vector product.
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

    def __post_init__(self) -> None:
        found = [find_chain(group) if self.closed_forms else None for group in self.groups]
        self._chains = {i: chain for i, chain in enumerate(found) if chain is not None}
        self._last_use = {a: i for i, chain in self._chains.items() for a, _ in chain.bends()}
        bends = [pair for chain in self._chains.values() for pair in chain.bends()]
        self._recording = self.program.recording(
            [group for i, group in enumerate(self.groups) if i not in self._chains],
            slopes=[activation for activation, _ in bends],
            inner=[source for _, source in bends],
            constants=set().union(*(chain.constants for chain in self._chains.values())),
        )

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

        def capture() -> _Constants:
            return self._constants(self.program.capture(inputs, target, loss_fn, self._recording))

        constants = capture()
        left = math.inf if self.memory_limit is None else self.memory_limit - self._used
        # A linearised path holds about as much again for the forward and for the backward run.
        paths = 0 if len(self._chains) == len(self.groups) else 2 * constants.captured.nbytes
        keep, keep_graphs = constants.nbytes <= left, constants.nbytes + paths <= left
        if self.storage is not None:
            keep_graphs = False  # autograd would keep its own copies in the model's type
        self._used += constants.nbytes * keep + paths * keep_graphs
        self._batches.append(
            _Batch(
                constants.captured.samples,
                constants.captured.loss,
                len(self._batches) % 2 if half is None else half,
                [self._positions(i, constants) for i in range(len(self.groups))],
                capture,
                constants if keep else None,
                keep_graphs,
            )
        )

    def _constants(self, captured: Captured) -> _Constants:
        closed = {}
        for position, chain in self._chains.items():
            form = ClosedForm.of(chain, self.program, captured)
            closed[position] = form if self.storage is None else form.cast(self.storage)
            # Two groups share an activation where a depthwise convolution makes channels of its own.
            for activation, source in chain.bends():
                if self._last_use[activation] == position:
                    del captured.slopes[activation], captured.inner[source]
        return _Constants(captured if self.storage is None else captured.cast(self.storage), closed)

    def _positions(self, position: int, constants: _Constants) -> int:
        """How many positions a channel has per sample: pixels, tokens, points."""
        group = self.groups[position]
        if position in constants.closed:
            entries = constants.closed[position].entries
        else:
            entries = max(constants.captured.gradients[edge].numel() for edge in group.edges)
        return max(1, entries // (group.width * constants.captured.samples))

    def captured(self, index: int) -> Captured:
        """What a micro-batch leaves constant, kept or captured anew."""
        batch = self._batches[index]
        return (batch.kept or batch.capture()).captured.cast(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return self.program.tensor(self.groups[0].blocks[0].tensor).dtype

    @property
    def kept_bytes(self) -> int:
        """The memory of what is kept of the micro-batches between products, without linearised paths."""
        return sum(batch.kept.nbytes for batch in self._batches if batch.kept is not None)

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

    @property
    def loss(self) -> float:
        """The mean loss over all samples of this process."""
        return sum(batch.loss * batch.samples for batch in self._batches) / self.samples

    def total(self, number: int) -> int:
        """The sum of a number over all processes."""
        if self.reduce is None:
            return number
        return int(self.reduce(torch.tensor(number, device=self.zeros()[0].device)))

    def work(self) -> list[float]:
        """By group about how many multiply-adds one product over all data takes per channel.

        The same in every process: a forward and a weight gradient at the producer, d each for every position.
        """
        return [
            2.0 * self.total(sum(batch.positions[i] * batch.samples for batch in self._batches)) * g.dimension
            for i, g in enumerate(self.groups)
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
        whole, _ = self.apply_halves(dict(enumerate(vectors)))
        return [whole[position] for position in range(len(vectors))]

    def apply_halves(self, vectors: Mapping[int, Tensor]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """S·v over all samples, and (S₁ − S₂)·v for two disjoint halves of them, at the price of one product.

        Args:
            vectors: by position of the group [width, d]; groups that are left out cost nothing.

        Returns:
            Twice, by position of the group [width, d]; the second is zero where a half is empty.
        """
        self.products += 1
        device = next(iter(vectors.values())).device
        weights = torch.zeros(2, dtype=torch.float64, device=device)
        directions = {position: self._direction(position, v) for position, v in vectors.items()}
        sums = [
            {position: {n: torch.zeros_like(t) for n, t in d.items()} for position, d in directions.items()}
            for _ in range(2)
        ]
        for batch in self._batches:
            weights[batch.half] += batch.samples
            self._accumulate(sums[batch.half], directions, batch)
        halves = [
            {position: self._gathered(position, tensors) for position, tensors in half.items()}
            for half in sums
        ]
        if self.reduce is not None:
            weights = self.reduce(weights)
            halves = [{position: self.reduce(v) for position, v in half.items()} for half in halves]
        first, second = (float(w) for w in weights)
        whole = {position: (v + halves[1][position]) / (first + second) for position, v in halves[0].items()}
        if first == 0 or second == 0:
            return whole, {position: torch.zeros_like(v) for position, v in whole.items()}
        difference = {position: v / first - halves[1][position] / second for position, v in halves[0].items()}
        return whole, difference

    def _direction(self, position: int, vectors: Tensor) -> dict[str, Tensor]:
        """One vector per channel as tensors of the parameters' shapes."""
        group = self.groups[position]
        direction: dict[str, Tensor] = {}
        for block, values in zip(group.blocks, split(group, vectors), strict=True):
            scattered = block.scatter(values)
            held = direction.get(block.tensor)
            direction[block.tensor] = scattered if held is None else held + scattered
        return direction

    def _gathered(self, position: int, tensors: Mapping[str, Tensor]) -> Tensor:
        return join([block.gather(tensors[block.tensor]) for block in self.groups[position].blocks])

    def _accumulate(
        self,
        totals: Mapping[int, dict[str, Tensor]],
        directions: Mapping[int, Mapping[str, Tensor]],
        batch: _Batch,
    ) -> None:
        """Add the products of one micro-batch, times its number of samples."""
        constants = batch.kept or batch.capture()
        restored: Captured | None = None
        # One group after the other: what a product takes on the way is there for one group only.
        for position, direction in directions.items():
            if position in self._chains:
                inputs = self.program.value(self._chains[position].inputs, constants.captured)
                ((name, v),) = direction.items()
                results = {name: constants.closed[position].product(v, inputs)}
            else:
                graph = batch.graphs.get(position)
                if graph is None:
                    restored = restored or constants.captured.cast(self._dtype)
                    graph = self._linearise(restored, self.groups[position])
                    if batch.keeps_graphs:
                        batch.graphs[position] = graph
                results = graph.product(direction, keep=batch.keeps_graphs)
            for name, result in results.items():
                totals[position][name].add_(result, alpha=float(batch.samples))

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
        for batch in self._batches:
            batch.graphs.clear()
