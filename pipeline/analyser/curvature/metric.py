"""The metric in which ‖δ‖ ≤ 1: euclidean, or what a displacement does to the pre-activation.

In the ``input`` metric ``‖δ‖² = δᵀ Σ δ`` with ``Σ = E[p pᵀ]`` over samples and positions, p the input patch
of the producer: a displacement of length ε moves the producer's output by ε in root mean square. The extreme
eigenpairs are then those of ``S v = λ Σ v``, which Lanczos finds as the ordinary ones of ``R⁻¹ S R⁻ᵀ`` with
``Σ = R Rᵀ`` (see `factors`); every row of the splitting table holds for them unchanged.

A group with several displaced tensors (several producers of a residual stream, a filter bank and the
depthwise filter behind it) has a block-diagonal Σ, one block per tensor: ``‖δ‖²`` is the sum of what each
tensor's displacement does to its own output. All channels of a producer share its block; a depthwise filter
has one block per channel. Displaced biases and affine entries have the second moment of what they multiply.
A producer whose input patches are not known to this module has ``Σ = s² I``, s² the mean squared response of
its output to random unit displacements.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from growpipe.analyser.curvature.factors import Root, root_of
from growpipe.analyser.curvature.moments import Matrix, Moment, Patches, added, restricted
from growpipe.analyser.curvature.operator import SplittingProducts, split
from growpipe.analyser.program.aten import CONVOLUTIONS, MATRIX_PRODUCTS, NORMS, aten
from growpipe.analyser.program.binding import BoundGroup
from growpipe.analyser.program.block import Block
from growpipe.analyser.program.captured import Captured
from growpipe.analyser.program.convolution import Convolution
from growpipe.analyser.program.patches import input_patches
from growpipe.analyser.program.program import Program
from growpipe.graph_ops.errors import CheckFailed, UsageError

__all__ = ["METRICS", "Euclidean", "GrowingMetric", "InputMetric", "Metric", "make_metric"]

METRICS = ("euclidean", "input")


class Metric(ABC):
    """What length a displacement has, as a change of coordinates: whitened ones have ‖y‖² = Σ y_j².

    Every change of coordinates takes [..., width, d], one group's vectors.
    """

    name: str
    sketched: tuple[str, ...] = ()
    """The tensors whose Σ keeps the leading eigenpairs only, as a matrix is too large for memory."""

    @abstractmethod
    def raw(self, position: int, vectors: Tensor) -> Tensor:
        """Displacements of one group in parameter coordinates, from whitened ones."""

    @abstractmethod
    def whitened(self, position: int, vectors: Tensor) -> Tensor:
        """Displacements of one group in whitened coordinates, the inverse of `raw`."""

    @abstractmethod
    def white(self, position: int, covectors: Tensor) -> Tensor:
        """Products S·v (gradients) of one group in whitened coordinates."""

    def settle(self, position: int) -> None:  # noqa: B027 - not every metric keeps something
        """Free what `whitened` of one group alone needs; a later one computes it again."""

    def release(self, position: int) -> None:  # noqa: B027
        """Free what changes of coordinates of one group need; a later one computes it again."""

    def to_raw(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """`raw` for every group."""
        return [self.raw(i, v) for i, v in enumerate(vectors)]

    def from_raw(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """`whitened` for every group."""
        return [self.whitened(i, v) for i, v in enumerate(vectors)]


class Euclidean(Metric):
    """‖δ‖² = Σ δ_j²: displacements are measured in the parameters' own units."""

    name = "euclidean"

    def raw(self, position: int, vectors: Tensor) -> Tensor:
        return vectors

    def whitened(self, position: int, vectors: Tensor) -> Tensor:
        return vectors

    def white(self, position: int, covectors: Tensor) -> Tensor:
        return covectors


@dataclass(frozen=True, eq=False)
class InputMetric(Metric):
    """‖δ‖² = δᵀ Σ δ, through roots R of the blocks of Σ.

    Attributes:
        groups: the bound groups, in the operator's order.
        roots_of: by position of a group computes R of every block, shared by the channels or one for each.
        sketched: see `Metric`.
    """

    groups: tuple[BoundGroup, ...]
    roots_of: Callable[[int], tuple[Root, ...]]
    sketched: tuple[str, ...] = ()
    name = "input"
    _roots: dict[int, tuple[Root, ...]] = field(default_factory=dict, init=False, repr=False)
    _settled: set[int] = field(default_factory=set, init=False, repr=False)

    def roots(self, position: int) -> tuple[Root, ...]:
        """R of every block of one group; kept until they are released.

        Raises:
            CheckFailed: a producer's inputs are not finite.
        """
        if position not in self._roots:
            self._roots[position] = self.roots_of(position)
        return self._roots[position]

    def settle(self, position: int) -> None:
        self._roots[position] = tuple(root.settled() for root in self.roots(position))
        self._settled.add(position)

    def release(self, position: int) -> None:
        self._roots.pop(position, None)
        self._settled.discard(position)

    def raw(self, position: int, vectors: Tensor) -> Tensor:
        """δ = R⁻ᵀ y."""
        return self._blockwise(position, vectors, "raw")

    def whitened(self, position: int, vectors: Tensor) -> Tensor:
        """y = Rᵀ δ."""
        if position in self._settled:
            self.release(position)
        return self._blockwise(position, vectors, "whitened")

    def white(self, position: int, covectors: Tensor) -> Tensor:
        """R⁻¹ (S δ)."""
        return self._blockwise(position, covectors, "white")

    def _blockwise(self, position: int, vectors: Tensor, change: str) -> Tensor:
        changed = torch.empty_like(vectors, memory_format=torch.contiguous_format)
        group, start = self.groups[position], 0
        for root, part in zip(self.roots(position), split(group, vectors), strict=True):
            # Several entries per channel see the same inputs: Σ is one block repeated.
            entries = part.unflatten(-1, (-1, root.dimension))
            stop = start + part.shape[-1]
            changed[..., start:stop] = getattr(root, change)(entries).flatten(-2)
            start = stop
        return changed


def _entries(block: Block) -> int:
    """The length of the patches that a block's entries multiply."""
    return block.dimension // block.rows.shape[1] if block.mixing else block.dimension


def make_metric(name: str, operator: SplittingProducts, damping: float = 1e-3) -> Metric:
    """The metric of a name, measured on the operator's batches; see `GrowingMetric`."""
    return GrowingMetric(name, damping)(operator)


class GrowingMetric:
    """Measures a metric on growing analysis sets, every batch once.

    Args:
        name: one of `METRICS`.
        damping: ``damping · tr(Σ)/d`` is added to the diagonal of every block, so that directions the inputs
            hardly have do not get unbounded displacements.

    Raises:
        UsageError: unknown name, or a damping that is not positive.
    """

    def __init__(self, name: str, damping: float = 1e-3) -> None:
        if name not in METRICS:
            raise UsageError(f"unknown metric {name!r}; choose one of {', '.join(METRICS)}")
        if name == "input" and not damping > 0:
            raise UsageError(f"the damping of the input metric must be positive, not {damping}")
        self.name, self.damping = name, damping
        self._sums: dict[tuple[int, int], Moment] = {}
        self._measured = 0

    def __call__(self, operator: SplittingProducts) -> Metric:
        """The metric over all batches of the operator, which has grown since the last call if it is not new.

        Its roots are computed group by group, when they are wanted.

        Raises:
            CheckFailed: a producer's inputs are not finite.
        """
        if self.name == "euclidean":
            return Euclidean()
        rows = max(256, PATCHES // operator.total(len(operator)))
        limit = math.inf if operator.memory_limit is None else max(operator.memory_limit, LEAST_LIMIT)
        for index in range(self._measured, len(operator)):
            for key, moment in _batch_moments(operator, operator.captured(index), rows, limit):
                self._sums[key] = added(self._sums.get(key), moment, limit)
        self._measured = len(operator)
        sums = self._everywhere(operator)
        for (i, j), moment in sums.items():
            if not moment.finite:
                group = operator.groups[i]
                raise CheckFailed(
                    f"group {group.name!r}: the inputs of {group.blocks[j].tensor!r} are not finite on the "
                    "analysis batches; check the data"
                )
        total = operator.total(operator.samples)

        def roots_of(i: int) -> tuple[Root, ...]:
            blocks = range(len(operator.groups[i].blocks))
            return tuple(_root(operator, i, j, sums[i, j], total, self.damping) for j in blocks)

        sketched = [key for key, moment in sums.items() if moment.spread]
        names = tuple(operator.groups[i].blocks[j].tensor for i, j in sketched)
        return InputMetric(operator.groups, roots_of, names)

    def _everywhere(self, operator: SplittingProducts) -> dict[tuple[int, int], Moment]:
        """The sums over all processes."""
        if operator.reduce is None:
            return dict(self._sums)
        return {
            key: restricted(Matrix(operator.reduce(moment.matrix().values)))
            for key, moment in self._sums.items()
        }


LEAST_LIMIT = 2**28
"""The bytes that one matrix of the metric may take in any case: d = 5,792."""

FARTHEST = 100.0
"""The length of a displacement of length 1 in the metric, at most, in those of the tensor's filters."""


def _root(operator: SplittingProducts, i: int, j: int, moment: Moment, samples: int, damping: float) -> Root:
    """The root of the damped block j of group i."""
    group = operator.groups[i]
    block = group.blocks[j]
    mean = moment.mean(samples)
    # A dead channel's own block may vanish: it is damped by the mean of the others.
    floor = damping * torch.maximum(mean, 1e-6 * mean.mean())
    tensor = operator.program.tensor(block.tensor)
    length = block.whole().gather(tensor).double().square().sum(1).mean() / block.rows.shape[1]
    # Inputs that are numerically zero would give displacements without bound.
    scale = torch.where(length > 0, length, torch.ones_like(length))
    floor = torch.maximum(floor, 1 / (FARTHEST**2 * scale))
    return root_of(moment, samples, floor, tensor.dtype)


def _batch_moments(
    operator: SplittingProducts, batch: Captured, rows: int, limit: float
) -> Iterator[tuple[tuple[int, int], Moment]]:
    """Σ of every block, times the number of samples, from one batch."""
    program = operator.program
    for i, group in enumerate(operator.groups):
        theta = {block.tensor: program.tensor(block.tensor) for block in group.blocks}
        values = program.values_on_demand(group, batch, theta)
        read = program.reader([group], batch, values)
        for j, block in enumerate(group.blocks):
            users = program.users(group, block.tensor)
            share = batch.samples / len(users)
            total: Moment | None = None
            for user, weight in users:
                with torch.no_grad():
                    moment = _moment(user, weight, block, read, rows)
                    if moment is None:
                        moment = _response(program, group, batch, block, user, values)
                moment = moment.scaled(share)
                total = moment if total is None else added(total, moment, limit)
            if total is not None:
                yield (i, j), total


PATCHES = 16384
"""About how many input patches a moment is averaged over; its dimension is at most a few thousand."""


def _moment(
    user: Node, weight: Node, block: Block, read: Callable[[Node, Node], Any], rows: int
) -> Moment | None:
    """E[p pᵀ] of what multiplies the block at one use, or None if this module does not know it.

    Args:
        user: the node that uses the block's tensor.
        weight: the node from which it reads that tensor.
        block: the block.
        read: the value of a node as another one sees it.
        rows: how many patches are enough.
    """
    arguments: list[Any] = [read(a, user) if isinstance(a, Node) else a for a in user.args]
    position = next((k for k, a in enumerate(user.args) if a is weight), None)
    if user.target in CONVOLUTIONS and position == 1 and weight.op == "placeholder" and block.axis == 0:
        return _convolution_moment(arguments, block, rows, CONVOLUTIONS[user.target])
    if user.target in MATRIX_PRODUCTS and position == MATRIX_PRODUCTS[user.target][1]:
        features = arguments[MATRIX_PRODUCTS[user.target][0]]
        if block.mixing and block.others == (features.shape[-1],):
            return _second_moment(_sample(features, rows, features.ndim - 1))
    if not block.mixing and block.dimension == 1:
        return _affine_moment(user.target, position, arguments, block)
    return None


def _affine_moment(
    target: Any, position: int | None, arguments: Sequence[Any], block: Block
) -> Moment | None:
    """What multiplies a bias or an entry of a batch normalisation: 1, or the normalised input."""
    if position == 2 and (target in CONVOLUTIONS or target in NORMS or target is aten.linear.default):
        return Matrix(torch.ones(1, 1, dtype=torch.float64, device=arguments[0].device))
    if position == 1 and target in NORMS:
        return _norm_moment(arguments, block, NORMS[target])
    return None


def _sample(patches: Tensor, rows: int, axes: int = 1) -> Tensor:
    """At most ``rows`` patches in the order of a filter's entries, [rows, d]; the same ones in every run.

    Args:
        patches: all of them; those that are taken are the only ones that are copied.
        rows: how many at most.
        axes: how many of the first axes are those of patches.
    """
    shape = patches.shape[:axes]
    count = math.prod(shape)
    if count <= rows:
        return patches.reshape(count, -1)
    generator = torch.Generator().manual_seed(count)
    chosen = torch.randperm(count, generator=generator)[:rows].to(patches.device)
    return patches[torch.unravel_index(chosen, shape)].reshape(rows, -1)


def _second_moment(patches: Tensor) -> Moment:
    """E[p pᵀ] of [rows, d]."""
    return restricted(Patches(patches / math.sqrt(len(patches))))


def _convolution_moment(arguments: Sequence[Any], block: Block, rows: int, rank: int) -> Moment | None:
    """The patches of a convolution: [d, d] shared by all channels, or [width, d, d] where it is grouped."""
    x, w = arguments[0], arguments[1]
    shape = Convolution.of(w, *arguments[3:])
    if x.ndim != w.ndim:
        x = x.unsqueeze(0)

    def patches_of(some: Tensor) -> Tensor:
        return input_patches(some, w.shape[2:], shape.stride, shape.padding, shape.dilation)

    if shape.groups == 1 and block.mixing:
        patches = patches_of(_some(x, rows))
        if block.window is not None:
            patches = block.window.of(patches)
        return _second_moment(_sample(patches, rows, 1 + rank))
    # Which of the convolution's groups each entry belongs to; all entries of a channel must see one input.
    inputs = block.rows // (w.shape[0] // shape.groups)
    if not bool((inputs == inputs[:, :1]).all()):
        return None
    # [groups, rows, d]: every output channel sees the inputs of its own group.
    parts = _some(x, rows).unflatten(1, (shape.groups, -1)).movedim(1, 0)
    stacked = torch.stack([_sample(patches_of(part), rows, 1 + rank) for part in parts])
    wide = stacked.double()
    moments = wide.mT @ wide / wide.shape[-2]
    return Matrix(moments[inputs[:, 0].to(x.device)])


def _some(x: Tensor, rows: int) -> Tensor:
    """Evenly spaced samples, enough for ``rows`` patches but at least 8."""
    wanted = max(8, -(-4 * rows // max(1, x[0, 0].numel())))
    return x[:: max(1, len(x) // wanted)]


def _norm_moment(arguments: Sequence[Any], block: Block, eps_position: int) -> Matrix:
    """E[x̂²] of a batch normalisation's input, [width, 1, 1]."""
    x, mean, var = arguments[0], arguments[3], arguments[4]
    eps = float(arguments[eps_position])
    shape = (1, -1, *[1] * (x.ndim - 2))
    normed = (x - mean.reshape(shape)) * torch.rsqrt(var + eps).reshape(shape)
    moment = normed.double().square().transpose(0, 1).flatten(1).mean(1)
    return Matrix(moment[block.rows[:, 0].to(x.device)][:, None, None])


def _response(
    program: Program,
    group: BoundGroup,
    batch: Captured,
    block: Block,
    user: Node,
    values: Mapping[Node, Any],
) -> Matrix:
    """``s² I`` with s² the mean square by which a random unit displacement moves the output of ``user``."""
    tensor = program.tensor(block.tensor)
    generator = torch.Generator().manual_seed(block.dimension)
    delta = torch.randn(block.width, block.dimension, generator=generator, dtype=torch.float64)
    delta = (delta / torch.linalg.vector_norm(delta, dim=1, keepdim=True)).to(tensor)
    theta = {b.tensor: program.tensor(b.tensor) for b in group.blocks}
    theta[block.tensor] = tensor + block.scatter(delta)
    moved = program.values_on_demand(group, batch, theta)[user]
    change = (moved[0] if isinstance(moved, tuple) else moved) - (
        values[user][0] if isinstance(values[user], tuple) else values[user]
    )
    share = block.rows.numel() / block.shape[block.axis]
    # Summed over the entries of a channel, as everywhere in this metric.
    square = change.double().square().mean() / share * block.rows.shape[1]
    return Matrix(square * torch.eye(_entries(block), dtype=torch.float64, device=tensor.device))
