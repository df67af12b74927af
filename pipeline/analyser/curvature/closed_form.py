"""S·v of a chain in closed form: a tangent forward, curvatures in between, and back; no double backward.

A chain is one mixing producer ``u_1 = p * W`` (convolution or matrix product, p its input patches), then
activations φ_1 … φ_K with batch normalisations in evaluation mode and depthwise convolutions between them,
and behind the last one whatever is linear. All steps act on each channel alone. With ``y_k`` the input and
``a_k = φ_k(y_k)`` the output of activation k and ``J_k = ∂y_k/∂θ``,

    S = Σ_k J_kᵀ diag(∂L/∂a_k · φ_k''(y_k)) J_k

summed over samples and positions: the scalar ``Σ_e ⟨g_e, e(θ)⟩`` bends at the activations only, and its
gradient at a_k is that of the loss, since every way from a_k to the loss leads through the group's own edges.
So S·v of all channels takes one run of the tangent along the chain, one run back, and a weight gradient at
the producer. For K = 1 it is the splitting matrix ``E[Φ'(σ) φ''(θᵀx) x xᵀ]`` of the neuron
``σ(θ, x) = φ(θᵀx)`` (arXiv 1910.02366 and 2003.10392, the definition of the splitting matrix).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from growpipe.analyser.program.activations import ACTIVATIONS
from growpipe.analyser.program.aten import CONVOLUTIONS, NORMS, aten, operator_name
from growpipe.analyser.program.binding import BoundGroup
from growpipe.analyser.program.captured import Captured
from growpipe.analyser.program.convolution import Convolution, blank
from growpipe.analyser.program.program import Program

__all__ = ["JOINTLY_LINEAR", "LINEAR", "Chain", "ClosedForm", "Skeleton", "find_chain"]


_PRODUCERS = {*CONVOLUTIONS, aten.linear.default}
# Linear in one varying argument; maxima select, which is linear almost everywhere.
LINEAR = {
    "_unsafe_view", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "amax", "batch_norm", "_native_batch_norm_legit_no_training", "cat", "clone",
    "constant_pad_nd", "contiguous", "conv1d", "conv2d", "conv3d", "div", "dropout", "expand", "flatten",
    "getitem", "masked_fill", "max_pool1d", "max_pool2d", "max_pool3d", "mean", "mul", "neg", "pad",
    "permute", "pixel_shuffle", "pixel_unshuffle", "repeat", "repeat_interleave", "reshape", "select",
    "slice", "split", "split_with_sizes", "squeeze", "sum", "sym_size", "transpose", "unflatten", "unsqueeze",
    "upsample_nearest2d", "view",
}  # fmt: skip
JOINTLY_LINEAR = {"add", "cat", "sub"}


@dataclass(frozen=True, eq=False)
class Chain:
    """A group that is a chain.

    Attributes:
        group: the group.
        producer: its mixing producer.
        steps: the batch normalisations, depthwise convolutions and activations behind it, in order; the last
            one is an activation.
    """

    group: BoundGroup
    producer: Node
    steps: tuple[Node, ...]

    @property
    def inputs(self) -> Node:
        """The node whose value the producer takes its patches from."""
        source = self.producer.args[0]
        assert isinstance(source, Node)
        return source

    @cached_property
    def constants(self) -> frozenset[Node]:
        """The nodes whose values the producer and the steps read as constants."""
        nodes = (self.producer, *self.steps)
        return frozenset(s for node in nodes for s in node.all_input_nodes if not self.group.varies(s, node))

    @cached_property
    def bends(self) -> tuple[tuple[Node, Node], ...]:
        """Every activation, and the node of its input y_k."""
        return tuple(
            (step, source)
            for step in self.steps
            if step.target in ACTIVATIONS
            for source in step.all_input_nodes
            if self.group.varies(source, step)
        )


def find_chain(group: BoundGroup) -> Chain | None:
    """The group as a chain, or None if it is something else."""
    if len(group.blocks) != 1 or len(group.cut) != 1 or len(group.parameters) != 1 or group.sums:
        return None
    (block,) = group.blocks
    (producer,) = group.cut
    if producer.target not in _PRODUCERS or not block.mixing or block.axis != 0:
        return None
    if producer.args[1] not in group.parameters or not isinstance(producer.args[0], Node):
        return None
    steps: list[Node] = []
    walked = {producer, *group.parameters}
    node = producer
    while True:
        if steps and steps[-1].target in ACTIVATIONS and _is_linear(group, group.path - walked):
            return Chain(group, producer, tuple(steps))
        users = [user for user in node.users if group.varies(node, user)]
        if len(users) != 1 or any(source is node for _, source in group.edges):
            return None
        (node,) = users
        walked.add(node)
        # A convolution that does not consume the group is depthwise; a filter of its own would be a block.
        if node.target in ACTIVATIONS or node.target in NORMS or node.target in CONVOLUTIONS:
            steps.append(node)
        elif not (operator_name(node) == "getitem" and steps and steps[-1].target in NORMS):
            return None


def _is_linear(group: BoundGroup, nodes: frozenset[Node]) -> bool:
    for node in nodes:
        varying = [source for source in node.all_input_nodes if group.varies(source, node)]
        name = operator_name(node)
        if name in JOINTLY_LINEAR:
            continue
        if len(varying) != 1 or name not in LINEAR:
            return False
        if node.args[0] is node.args[1] if name == "mul" else varying[0] is not node.args[0]:
            return False
    return True


@dataclass(frozen=True, eq=False)
class _Bend:
    """An activation, and the scale γ̂ of a normalisation that no weight before it could take up; in full size.

    Attributes:
        slope: ``γ̂ φ'(y)``; None for the last activation, whose slope is not needed.
        curvature: ``γ̂² (∂L/∂a) φ''(y)``.
    """

    slope: Tensor | None
    curvature: Tensor

    def cast(self, dtype: torch.dtype) -> _Bend:
        return _Bend(None if self.slope is None else self.slope.to(dtype), self.curvature.to(dtype))


@dataclass(frozen=True, eq=False)
class _Scale:
    """A normalisation before a depthwise convolution: γ̂, [1, width, 1, …]."""

    factor: Tensor


@dataclass(frozen=True, eq=False)
class _Filters:
    """A depthwise convolution, and the scale of a normalisation behind it in its filters."""

    convolution: Convolution
    weight: Tensor

    def scaled(self, factor: Tensor) -> _Filters:
        return replace(self, weight=self.weight * factor.reshape(-1, *[1] * (self.weight.ndim - 1)))


@dataclass(frozen=True, eq=False)
class Skeleton:
    """What of a chain's closed form is the same for every batch, see `ClosedForm`.

    Attributes:
        steps: an activation stands for its `_Bend`, with the scale of a normalisation before it.
    """

    convolution: Convolution | None
    gain: Tensor | None
    steps: tuple[tuple[Node, Tensor | None] | _Scale | _Filters, ...]

    @staticmethod
    def of(chain: Chain, program: Program, captured: Captured) -> Skeleton:
        """From the constants of a chain, and from the shapes in which they are used."""
        read = program.reader([chain.group], captured, captured.inner)
        steps: list[tuple[Node, Tensor | None] | _Scale | _Filters] = []
        (block,) = chain.group.blocks
        produced = program.tensor(block.tensor)
        axes = captured.inner[chain.bends[0][1]].ndim
        gain: Tensor | None = None
        scale: Tensor | None = None
        for step in chain.steps:
            if step.target in ACTIVATIONS:
                steps.append((step, scale))
                scale = None
                continue
            arguments: list[Any] = [
                _constant(a, step, chain, read) if isinstance(a, Node) else a for a in step.args
            ]
            if step.target in NORMS:
                factor = torch.rsqrt(arguments[4] + arguments[NORMS[step.target]])
                if arguments[1] is not None:
                    factor = factor * arguments[1]
                before = steps[-1] if steps else None
                # A normalisation is over axis 1: the channels of what has as many axes as its weight.
                if isinstance(before, _Filters) and before.weight.ndim == axes:
                    steps[-1] = before.scaled(factor)
                elif before is None and produced.ndim == axes:
                    factor = factor.reshape(-1, *[1] * (produced.ndim - 1))
                    gain = factor if gain is None else gain * factor
                else:
                    scale = factor if scale is None else scale * factor
            else:
                _, weight, *rest = arguments
                if scale is not None:
                    steps.append(_Scale(scale.reshape(1, -1, *[1] * (weight.ndim - 2))))
                    scale = None
                steps.append(_Filters(Convolution.of(weight, *rest[1:]), weight))
        linear = chain.producer.target is aten.linear.default
        geometry: tuple[Any, ...] = chain.producer.args[3:]
        convolution = None if linear else Convolution.of(produced, *geometry)
        if convolution is not None and block.window is not None:
            convolution = replace(convolution, padding=block.window.padding)
        return Skeleton(convolution, gain, tuple(steps))


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """What S·v of a chain needs from one batch, besides the producer's input.

    Attributes:
        convolution: the producer's geometry; None for a matrix product.
        steps: what the tangent goes through; the last one is a `_Bend`.
        gain: γ̂ of a normalisation right behind the producer, of its weight's rank with the channels on axis
            0; None for none.
    """

    convolution: Convolution | None
    steps: tuple[_Bend | _Scale | _Filters, ...]
    gain: Tensor | None = None

    @staticmethod
    def of(
        chain: Chain, program: Program, captured: Captured, skeleton: Skeleton | None = None
    ) -> ClosedForm:
        """From the inputs of the activations and the gradients at their outputs.

        Args:
            chain: the chain.
            program: the program.
            captured: what was taken down of the batch.
            skeleton: of an earlier batch, where the constants in it are the same for all.
        """
        with torch.no_grad():
            frame = Skeleton.of(chain, program, captured) if skeleton is None else skeleton
            sources = dict(chain.bends)
            last = chain.steps[-1]
            steps = tuple(
                _bend(chain, step[0], sources[step[0]], step[1], program, captured, step[0] is last)
                if isinstance(step, tuple)
                else step
                for step in frame.steps
            )
        return ClosedForm(frame.convolution, steps, frame.gain)

    def cast(self, dtype: torch.dtype) -> ClosedForm:
        """The same with what is large in another floating type."""
        return replace(self, steps=tuple(s.cast(dtype) if isinstance(s, _Bend) else s for s in self.steps))

    @property
    def entries(self) -> int:
        """The number of entries of the largest activation."""
        return max(s.curvature.numel() for s in self.steps if isinstance(s, _Bend))

    @property
    def nbytes(self) -> int:
        kept = [t for s in self.steps if isinstance(s, _Bend) for t in (s.slope, s.curvature)]
        return sum(t.numel() * t.element_size() for t in kept if t is not None)

    def product(self, direction: Tensor, inputs: Tensor) -> Tensor:
        """S·v of all channels, in the type of v.

        Args:
            direction: v, of the shape of what is displaced of the producer's weight.
            inputs: the producer's input of this batch.

        Returns:
            The sum over the batch, of the same shape.
        """
        with torch.no_grad():
            x = inputs.to(direction.dtype)
            if self.gain is not None:
                direction = direction * self.gain
            u = x @ direction.T if self.convolution is None else self.convolution.forward(x, direction)
            *between, last = self.steps
            tangents: list[Any] = []
            for step in between:
                if isinstance(step, _Filters):
                    tangents.append(u.shape)
                    u = step.convolution.forward(u, step.weight)
                elif isinstance(step, _Scale):
                    u = u * step.factor
                else:
                    assert step.slope is not None
                    tangents.append(u)
                    u = u * step.slope
            assert isinstance(last, _Bend)
            r = u.mul_(last.curvature)
            for step in reversed(between):
                if isinstance(step, _Filters):
                    r = step.convolution.backward(r, blank(r, tangents.pop()), step.weight, 0)
                elif isinstance(step, _Scale):
                    r = r.mul_(step.factor)
                else:
                    assert step.slope is not None
                    r = r.mul_(step.slope).addcmul_(tangents.pop(), step.curvature.to(r.dtype))
            if self.convolution is None:
                product = r.reshape(-1, r.shape[-1]).T @ x.reshape(-1, x.shape[-1])
            else:
                product = self.convolution.backward(r, x, direction, 1)
            return product if self.gain is None else product.mul_(self.gain)


def _constant(node: Node, user: Node, chain: Chain, read: Any) -> Any:
    """The value of an argument that does not vary; a varying one is not needed."""
    return None if chain.group.varies(node, user) else read(node, user)


def _bend(
    chain: Chain,
    node: Node,
    source: Node,
    scale: Tensor | None,
    program: Program,
    captured: Captured,
    last: bool,
) -> _Bend:
    read = program.reader([chain.group], captured, captured.inner)
    phi = ACTIVATIONS[node.target](
        *map_arg(node.args[1:], lambda n: read(n, node)), **map_arg(node.kwargs, lambda n: read(n, node))
    )
    y, gradient = captured.inner[source], captured.slopes[node]
    slope, curvature = phi.bend(y, gradient, program.surrogate, not last)
    if scale is not None:
        factor = scale.reshape(1, -1, *[1] * (y.ndim - 2))
        curvature.mul_(factor * factor)
        slope = slope if slope is None else slope.mul_(factor)
    return _Bend(slope, curvature)
