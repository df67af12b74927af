"""The metric in which ‖δ‖ ≤ 1: euclidean, or what a displacement does to the pre-activation.

In the ``input`` metric ``‖δ‖² = δᵀ Σ δ`` with ``Σ = E[p pᵀ]`` over samples and positions, p the input patch
of the producer: a displacement of length ε moves the producer's output by ε in root mean square. The extreme
eigenpairs are then those of ``S v = λ Σ v``, which Lanczos finds as the ordinary ones of ``L⁻¹ S L⁻ᵀ`` with
``Σ = L Lᵀ``; every row of the splitting table holds for them unchanged.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from growpipe.analyser.curvature.operator import SplittingProducts, join, split
from growpipe.analyser.program.aten import CONVOLUTIONS, MATRIX_PRODUCTS, NORMS, aten
from growpipe.analyser.program.binding import Block, BoundGroup
from growpipe.analyser.program.captured import Captured
from growpipe.analyser.program.program import Program
from growpipe.graph_ops.errors import CheckFailed, UsageError

__all__ = ["METRICS", "Euclidean", "GrowingMetric", "InputMetric", "Metric", "make_metric"]

METRICS = ("euclidean", "input")


class Metric(ABC):
    """What length a displacement has, as a change of coordinates: whitened ones have ‖y‖² = Σ y_j².

    Every change of coordinates takes [..., width, d], one group's vectors.
    """

    name: str

    @abstractmethod
    def raw(self, position: int, vectors: Tensor) -> Tensor:
        """Displacements of one group in parameter coordinates, from whitened ones."""

    @abstractmethod
    def whitened(self, position: int, vectors: Tensor) -> Tensor:
        """Displacements of one group in whitened coordinates, the inverse of `raw`."""

    @abstractmethod
    def white(self, position: int, covectors: Tensor) -> Tensor:
        """Products S·v (gradients) of one group in whitened coordinates."""

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
    """‖δ‖² = δᵀ Σ δ, through the Cholesky factors L of the blocks of Σ.

    Attributes:
        groups: the bound groups, in the operator's order.
        factors: for every group and block L, [d, d] shared by the channels or [width, d, d].
    """

    groups: tuple[BoundGroup, ...]
    factors: tuple[tuple[Tensor, ...], ...]
    name = "input"

    def raw(self, position: int, vectors: Tensor) -> Tensor:
        """δ = L⁻ᵀ y."""
        return self._solve(position, vectors, transpose=True)

    def whitened(self, position: int, vectors: Tensor) -> Tensor:
        """y = Lᵀ δ."""
        parts = []
        blocks = split(self.groups[position], vectors)
        for factor, part in zip(self.factors[position], blocks, strict=True):
            # Several entries per channel see the same inputs: Σ is one block repeated.
            d = factor.shape[-1]
            entries = part.unflatten(-1, (-1, d)) if factor.ndim == 3 else part.reshape(-1, d)
            parts.append((entries @ factor).reshape(part.shape))
        return join(parts)

    def white(self, position: int, covectors: Tensor) -> Tensor:
        """L⁻¹ (S δ)."""
        return self._solve(position, covectors, transpose=False)

    def _solve(self, position: int, vectors: Tensor, transpose: bool) -> Tensor:
        parts = []
        blocks = split(self.groups[position], vectors)
        for factor, part in zip(self.factors[position], blocks, strict=True):
            matrix = factor.mT if transpose else factor
            d = factor.shape[-1]
            columns = part.unflatten(-1, (-1, d)).mT if factor.ndim == 3 else part.reshape(-1, d).T
            rows = torch.linalg.solve_triangular(matrix, columns, upper=transpose).mT
            parts.append(rows.reshape(part.shape))
        return join(parts)


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
        self._sums: dict[tuple[int, int], Tensor] = {}
        self._measured = 0

    def __call__(self, operator: SplittingProducts) -> Metric:
        """The metric over all batches of the operator, which has grown since the last call if it is not new.

        Raises:
            CheckFailed: a producer's inputs are all zero or not finite.
        """
        if self.name == "euclidean":
            return Euclidean()
        rows = max(256, PATCHES // operator.total(len(operator)))
        for index in range(self._measured, len(operator)):
            for key, moment in _batch_moments(operator, operator.captured(index), rows).items():
                held = self._sums.get(key)
                self._sums[key] = moment if held is None else held + moment
        self._measured = len(operator)
        total = operator.total(operator.samples)
        sums = self._sums
        if operator.reduce is not None:
            sums = {key: operator.reduce(moment) for key, moment in sums.items()}
        factors = tuple(
            tuple(
                _factor(group, block, sums[i, j] / total, self.damping).to(
                    operator.program.tensor(block.tensor).dtype
                )
                for j, block in enumerate(group.blocks)
            )
            for i, group in enumerate(operator.groups)
        )
        return InputMetric(operator.groups, factors)


def _factor(group: BoundGroup, block: Block, moment: Tensor, damping: float) -> Tensor:
    """The Cholesky factor of one damped block; float64 [d, d] or [width, d, d]."""
    d = moment.shape[-1]
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)
    overall = mean.mean()
    if not torch.isfinite(moment).all() or not overall > 0:
        raise CheckFailed(
            f"group {group.name!r}: the inputs of {block.tensor!r} are all zero or not finite on the "
            f"analysis batches; freeze the group or use the euclidean metric"
        )
    # A dead channel's own block may vanish: it is damped by the mean of the others.
    floor = torch.maximum(mean, 1e-6 * overall)
    eye = torch.eye(d, dtype=moment.dtype, device=moment.device)
    result: Tensor = torch.linalg.cholesky(moment + damping * floor[..., None, None] * eye)
    return result


def _batch_moments(operator: SplittingProducts, batch: Captured, rows: int) -> dict[tuple[int, int], Tensor]:
    """Σ of every block, times the number of samples, from one batch; float64."""
    program = operator.program
    result: dict[tuple[int, int], Tensor] = {}
    with torch.no_grad():
        for i, group in enumerate(operator.groups):
            theta = {block.tensor: program.tensor(block.tensor) for block in group.blocks}
            values = program.values_on_demand(group, batch, theta)
            read = program.reader([group], batch, values)
            for j, block in enumerate(group.blocks):
                moments = []
                for user, weight in program.users(group, block.tensor):
                    moment = _moment(user, weight, block, read, rows)
                    if moment is None:
                        moment = _response(program, group, batch, block, user, values)
                    moments.append(moment)
                result[i, j] = torch.stack(moments).mean(0) * batch.samples
    return result


PATCHES = 16384
"""About how many input patches a moment is averaged over; its dimension is at most a few thousand."""


def _moment(
    user: Node, weight: Node, block: Block, read: Callable[[Node, Node], Any], rows: int
) -> Tensor | None:
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
            return _second_moment(_sample(features.reshape(-1, features.shape[-1]), rows))
    if not block.mixing and block.dimension == 1:
        return _affine_moment(user.target, position, arguments, block)
    return None


def _affine_moment(
    target: Any, position: int | None, arguments: Sequence[Any], block: Block
) -> Tensor | None:
    """What multiplies a bias or an entry of a batch normalisation: 1, or the normalised input."""
    if position == 2 and (target in CONVOLUTIONS or target in NORMS or target is aten.linear.default):
        return torch.ones(1, 1, dtype=torch.float64, device=arguments[0].device)
    if position == 1 and target in NORMS:
        return _norm_moment(arguments, block, NORMS[target])
    return None


def _sample(patches: Tensor, rows: int) -> Tensor:
    """At most ``rows`` rows, the same ones in every run."""
    if len(patches) <= rows:
        return patches
    generator = torch.Generator().manual_seed(len(patches))
    return patches[torch.randperm(len(patches), generator=generator)[:rows].to(patches.device)]


def _second_moment(patches: Tensor) -> Tensor:
    """E[p pᵀ] of [..., rows, d], in float64: what it is divided by later may be a thousandth of it."""
    wide = patches.double()
    return wide.mT @ wide / wide.shape[-2]


def _convolution_moment(arguments: Sequence[Any], block: Block, rows: int, rank: int) -> Tensor | None:
    """The patches of a convolution: [d, d] shared by all channels, or [width, d, d] where it is grouped."""
    x, w = arguments[0], arguments[1]
    stride, padding, dilation, groups = [
        arguments[k] if len(arguments) > k else default for k, default in ((3, 1), (4, 0), (5, 1), (6, 1))
    ]
    if x.ndim != w.ndim:
        x = x.unsqueeze(0)
    if groups == 1 and block.mixing:
        return _second_moment(_sample(_patches(_some(x, rows), w, stride, padding, dilation, rank), rows))
    # Which of the convolution's groups each entry belongs to; all entries of a channel must see one input.
    inputs = block.rows // (w.shape[0] // groups)
    if not bool((inputs == inputs[:, :1]).all()):
        return None
    # [groups, rows, d]: every output channel sees the inputs of its own group.
    parts = _some(x, rows).unflatten(1, (groups, -1)).movedim(1, 0)
    stacked = torch.stack(
        [_sample(_patches(part, w, stride, padding, dilation, rank), rows) for part in parts]
    )
    return _second_moment(stacked)[inputs[:, 0].to(x.device)]


def _some(x: Tensor, rows: int) -> Tensor:
    """Evenly spaced samples, enough for ``rows`` patches but at least 8."""
    wanted = max(8, -(-4 * rows // max(1, x[0, 0].numel())))
    return x[:: max(1, len(x) // wanted)]


def _patches(x: Tensor, w: Tensor, stride: Any, padding: Any, dilation: Any, rank: int) -> Tensor:
    """The input patches of a convolution, [positions, d] in the order of a filter's entries."""

    def full(value: Any) -> list[int]:
        values = [value] if isinstance(value, int) else list(value)
        return values * rank if len(values) == 1 else values

    kernel, steps, pads, gaps = list(w.shape[2:]), full(stride), full(padding), full(dilation)
    x = torch.nn.functional.pad(x, [p for pad in reversed(pads) for p in (pad, pad)])
    for axis in range(rank):
        x = x.unfold(2 + axis, gaps[axis] * (kernel[axis] - 1) + 1, steps[axis])
    for axis in range(rank):
        x = x.index_select(2 + rank + axis, torch.arange(kernel[axis], device=x.device) * gaps[axis])
    # [batch, channel, *positions, *kernel] to [batch, *positions, channel, *kernel]
    x = x.movedim(1, 1 + rank)
    return x.reshape(-1, x.shape[1 + rank] * math.prod(kernel))


def _norm_moment(arguments: Sequence[Any], block: Block, eps_position: int) -> Tensor:
    """E[x̂²] of a batch normalisation's input, [width, 1, 1]."""
    x, mean, var = arguments[0], arguments[3], arguments[4]
    eps = float(arguments[eps_position])
    shape = (1, -1, *[1] * (x.ndim - 2))
    normed = (x - mean.reshape(shape)) * torch.rsqrt(var + eps).reshape(shape)
    moment = normed.double().square().transpose(0, 1).flatten(1).mean(1)
    result: Tensor = moment[block.rows[:, 0].to(x.device)][:, None, None]
    return result


def _response(
    program: Program,
    group: BoundGroup,
    batch: Captured,
    block: Block,
    user: Node,
    values: Mapping[Node, Any],
) -> Tensor:
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
    d = block.dimension // block.rows.shape[1] if block.mixing else block.dimension
    result: Tensor = square * torch.eye(d, dtype=torch.float64, device=tensor.device)
    return result
