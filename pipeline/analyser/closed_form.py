"""S·v of a plain chain in closed form: one forward convolution and one weight gradient, no double backward.

For ``u = p * W`` (convolution or matrix product), ``y = γ̂ u + b`` (batch normalisation in evaluation mode, or
nothing), ``a = φ(y)`` and whatever is linear in a behind it,

    S_c = Σ_n h p pᵀ,   h = (∂L/∂a) φ''(y) γ̂²

summed over samples and positions n, p the input patch. So S·v of all channels is the weight gradient for the
output gradient ``h ⊙ (p * v)``. Only p and h are kept. (For c = 1 neuron without batch normalisation this is
the splitting matrix as arXiv 1910.02366 writes it for ``σ(θᵀx)``.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from growpipe.analyser.binding import BoundGroup
from growpipe.analyser.curvature import ACTIVATIONS, Convolution
from growpipe.analyser.program import Captured, Program

__all__ = ["Chain", "ClosedForm", "plain_chain"]

aten = torch.ops.aten

_PRODUCERS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default}
_NORMS: dict[Any, int] = {aten._native_batch_norm_legit_no_training.default: 6, aten.batch_norm.default: 7}
# Linear in one varying argument; maxima select, which is linear almost everywhere.
_LINEAR = {
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "amax", "batch_norm", "_native_batch_norm_legit_no_training", "cat", "clone",
    "constant_pad_nd", "contiguous", "conv1d", "conv2d", "conv3d", "dropout", "expand", "flatten", "getitem",
    "max_pool1d", "max_pool2d", "max_pool3d", "mean", "mul", "pad", "permute", "reshape", "select", "slice",
    "split", "split_with_sizes", "squeeze", "sum", "sym_size", "transpose", "unflatten", "unsqueeze", "view",
    "pixel_shuffle", "pixel_unshuffle", "upsample_nearest2d",
}  # fmt: skip
_JOINTLY_LINEAR = {"add", "cat", "sub"}


@dataclass(frozen=True, eq=False)
class Chain:
    """A group that is a plain chain: its producer, its batch normalisation if any, its activation."""

    group: BoundGroup
    producer: Node
    norm: Node | None
    activation: Node


def _operator_name(node: Node) -> str:
    target: Any = node.target
    return str(getattr(getattr(target, "overloadpacket", target), "__name__", target))


def plain_chain(group: BoundGroup) -> Chain | None:
    """The group as a plain chain, or None where it is something else."""
    if len(group.blocks) != 1 or len(group.cut) != 1:
        return None
    (block,) = group.blocks
    (producer,) = group.cut
    if producer.target not in _PRODUCERS or not block.mixing or block.axis != 0 or len(group.parameters) != 1:
        return None
    if producer.args[1] not in group.parameters:
        return None
    norm: Node | None = None
    node = producer
    while True:
        users = [user for user in node.users if group.varies(node, user)]
        if len(users) != 1 or any(source is node for _, source in group.edges):
            return None
        node = users[0]
        if node.target in ACTIVATIONS:
            break
        if node.target in _NORMS and norm is None:
            norm = node
        elif not (_operator_name(node) == "getitem" and norm is not None):
            return None
    rest = group.path - group.parameters - {producer, node, norm}
    for other in rest:
        if norm is not None and other.all_input_nodes == [norm]:
            continue  # picks the value out of the normalisation's results
        varying = [s for s in other.all_input_nodes if group.varies(s, other)]
        name = _operator_name(other)
        if not (len(varying) == 1 and name in _LINEAR | _JOINTLY_LINEAR) and name not in _JOINTLY_LINEAR:
            return None
        if len(varying) == 1 and name in {"mul"} and other.args[0] is other.args[1]:
            return None
    return Chain(group, producer, norm, node)


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """What S·v needs from one batch.

    Attributes:
        inputs: x, the producer's input, of which the patches p are taken.
        convolution: the producer's geometry; None for a matrix product.
        curvature: h, of the producer's output shape.
    """

    inputs: Tensor
    convolution: Convolution | None
    curvature: Tensor

    @staticmethod
    def of(chain: Chain, program: Program, captured: Captured) -> ClosedForm:
        """h from one forward run along the chain and one backward run from the edges to the activation."""
        group = chain.group
        theta = {block.tensor: program.tensor(block.tensor) for block in group.blocks}
        with torch.no_grad():
            values = program.run_path([group], captured, theta)
        read = program.reader([group], captured, values)
        (source,) = [s for s in chain.activation.all_input_nodes if s in group.path]
        u: Tensor = values[source]
        behind = values[chain.activation].detach().requires_grad_()
        values[chain.activation] = behind
        with torch.enable_grad():
            for node in program.after(chain.activation, group):
                values[node] = program.evaluate(node, read)
            terms = [(captured.gradients[edge] * values[edge[1]]).sum() for edge in group.edges]
            (gradient,) = torch.autograd.grad(torch.stack(terms).sum(), [behind])
        phi = ACTIVATIONS[chain.activation.target](
            *map_arg(chain.activation.args[1:], lambda n: read(n, chain.activation)),
            **map_arg(chain.activation.kwargs, lambda n: read(n, chain.activation)),
        )
        with torch.no_grad():
            curvature = gradient * phi.second(u, program.surrogate)
            if chain.norm is not None:
                arguments: list[Any] = [
                    read(a, chain.norm) if isinstance(a, Node) else a for a in chain.norm.args
                ]
                scale = torch.rsqrt(arguments[4] + arguments[_NORMS[chain.norm.target]])
                if arguments[1] is not None:
                    scale = scale * arguments[1]
                curvature *= (scale * scale).reshape(1, -1, *[1] * (curvature.ndim - 2))
        own: list[Any] = [read(a, chain.producer) if isinstance(a, Node) else a for a in chain.producer.args]
        x, w, *rest = own
        linear = chain.producer.target is aten.linear.default
        return ClosedForm(x, None if linear else Convolution.of(w, *rest[1:]), curvature)

    def stored(self, dtype: torch.dtype) -> ClosedForm:
        """The same with what is kept in another floating type; products stay in the type of the vectors."""
        return ClosedForm(self.inputs.to(dtype), self.convolution, self.curvature.to(dtype))

    def product(self, direction: Tensor) -> Tensor:
        """The weight gradient for the output gradient ``h ⊙ (p * v)``; of the weight's shape."""
        with torch.no_grad():
            inputs = self.inputs.to(direction.dtype)
            if self.convolution is None:
                moved = self.curvature * (inputs @ direction.T)
                return moved.reshape(-1, moved.shape[-1]).T @ inputs.reshape(-1, inputs.shape[-1])
            moved = self.convolution.forward(inputs, direction).mul_(self.curvature)
            return self.convolution.backward(moved, inputs, direction, 1)
