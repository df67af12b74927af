"""S·v of a group whose path is linear but for activations and products: one pass forward, one pass back.

Let ẏ be the tangent of a value y on the path when θ moves along v. Where the path bends, at activations
``a = φ(y)`` and at products ``c = a · b`` of two values that both move, the scalar ``F = Σ_e ⟨g_e, e(θ)⟩``
has its only second derivatives. With its gradients ā and c̄ at what bends,

    q(v) = ½ vᵀ S v = Σ_activations ½ ⟨ā φ''(y), ẏ²⟩ + Σ_products ⟨c̄, ȧ ḃ⟩

summed over samples and positions. Tangents are linear in v: ẏ runs through linear operators as they are and
through activations as ``φ'(y) ẏ``. So ``S v = ∇_v q(v)`` takes one run of the tangent and one backward pass:
forward over reverse with the reverse pass already done. Residual streams with several producers,
concatenations, squeeze-excite and gated MLPs are such paths; a chain is the case of one producer
(`closed_form`). A path without bends has S = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from growpipe.analyser.curvature.closed_form import JOINTLY_LINEAR, LINEAR, operator_name
from growpipe.analyser.curvature.linearised import Linearised
from growpipe.analyser.program.activations import ACTIVATIONS
from growpipe.analyser.program.aten import CONVOLUTIONS, NORMS, aten
from growpipe.analyser.program.binding import BoundGroup
from growpipe.analyser.program.captured import Captured
from growpipe.analyser.program.program import Program

__all__ = ["Bends", "BentPath", "bends_of", "path_products"]

# By mixing producer the positions of its bias and of its weight.
_PRODUCERS: dict[Any, tuple[int | None, int]] = {
    **dict.fromkeys(CONVOLUTIONS, (2, 1)),
    aten.convolution.default: (2, 1),
    aten.linear.default: (2, 1),
    aten.matmul.default: (None, 1),
    aten.mm.default: (None, 1),
}
_RESHAPES = {
    "t",
    "transpose",
    "permute",
    "view",
    "reshape",
    "unsqueeze",
    "squeeze",
    "clone",
    "detach",
    "alias",
}
_BILINEAR = {"bmm", "matmul", "mul"}
_SELECTING = {"amax", "max_pool1d", "max_pool3d"}


@dataclass(frozen=True, eq=False)
class Bends:
    """Where a path bends.

    Attributes:
        activations: by activation the node of its input.
        products: by product of two values that move their nodes.
        needed: the nodes whose tangents reach a bend, in the order of the program.
    """

    activations: Mapping[Node, Node]
    products: Mapping[Node, tuple[Node, Node]]
    needed: tuple[Node, ...]


def bends_of(program: Program, group: BoundGroup) -> Bends | None:
    """Where the path of a group bends; None if it is more than linear pieces, activations and products."""
    activations: dict[Node, Node] = {}
    products: dict[Node, tuple[Node, Node]] = {}
    path = [node for node in program.nodes if node in group.path]
    for node in path:
        varying = [source for source in node.all_input_nodes if group.varies(source, node)]
        if node.target in ACTIVATIONS and varying == [node.args[0]]:
            activations[node] = varying[0]
        elif operator_name(node) == "mul" and len(varying) == 2:
            products[node] = (varying[0], varying[1])
        elif not _is_linear(node, varying, group):
            return None
    needed = _needed(path, {*activations.values()}.union(*products.values()), group)
    if any(operator_name(node) in _SELECTING for node in needed):
        return None
    return Bends(activations, products, needed)


def _needed(path: Sequence[Node], wanted: set[Node], group: BoundGroup) -> tuple[Node, ...]:
    """The nodes of a path whose values reach one of those that are wanted."""
    needed: list[Node] = []
    for node in reversed(path):
        if node in wanted:
            needed.append(node)
            wanted.update(s for s in node.all_input_nodes if group.varies(s, node))
    return tuple(reversed(needed))


def _is_linear(node: Node, varying: Sequence[Node], group: BoundGroup) -> bool:
    """Whether a node is linear in all that varies among its arguments."""
    name = operator_name(node)
    if node in group.parameters:
        return name in _RESHAPES
    if node in group.cut:
        known = node.target in _PRODUCERS and not node.kwargs
        return known and varying == [node.args[_PRODUCERS[node.target][1]]]
    if name in JOINTLY_LINEAR:
        return not node.kwargs
    if len(varying) != 1 or (name == "mul" and node.args[0] is node.args[1]):
        return False
    if name == "scaled_dot_product_attention":
        return varying[0] not in node.args[:2]
    return name in _BILINEAR or (name in LINEAR and varying[0] is node.args[0])


def path_products(
    program: Program, captured: Captured, group: BoundGroup, bends: Bends | None
) -> BentPath | Linearised:
    """S·v of a group that is no chain: by its bends, or by automatic differentiation if those are unknown."""
    if bends is None:
        return Linearised.of(program, captured, group)
    return BentPath.of(program, captured, group, bends)


@dataclass(frozen=True, eq=False)
class BentPath:
    """What S·v of a group needs from one batch.

    Attributes:
        program: the program.
        group: the group.
        bends: where its path bends.
        captured: what the batch leaves constant.
        slopes: φ' by activation whose tangent goes on.
        curvatures: ``ā φ''`` by activation, c̄ by product.
        values: the values that products multiply, by node; of a max pooling the positions it selects.
    """

    program: Program
    group: BoundGroup
    bends: Bends
    captured: Captured
    slopes: Mapping[Node, Tensor]
    curvatures: Mapping[Node, Tensor]
    values: Mapping[Node, Any]

    @staticmethod
    def of(program: Program, captured: Captured, group: BoundGroup, bends: Bends) -> BentPath:
        """From what a batch leaves constant: one run of the path and one backward pass."""
        at = [*bends.activations, *bends.products]
        if not at:
            return BentPath(program, group, bends, captured, {}, {}, {})
        names = dict.fromkeys(block.tensor for block in group.blocks)
        theta = {name: program.tensor(name).detach().requires_grad_() for name in names}
        with torch.enable_grad():
            values = program.run_path([group], captured, theta)
            edges = [(captured.gradients[edge], values[edge[1]]) for edge in group.edges]
            gradients = torch.autograd.grad(
                [value for _, value in edges],
                [values[node] for node in at],
                [gradient.to(value) for gradient, value in edges],
                allow_unused=True,
            )
        found = dict(zip(at, gradients, strict=True))
        read = program.reader([group], captured, values)
        slopes: dict[Node, Tensor] = {}
        curvatures: dict[Node, Tensor] = {}
        with torch.no_grad():
            for node, source in bends.activations.items():
                y = values[source].detach()
                phi, gradient = _activation(node, read), _or_zero(found[node], y)
                slope, curvatures[node] = phi.bend(y, gradient, program.surrogate, node in bends.needed)
                if slope is not None:
                    slopes[node] = slope
            for node in bends.products:
                curvatures[node] = _or_zero(found[node], values[node])
            factors = {source for pair in bends.products.values() for source in pair}
            kept = {source: values[source].detach() for source in factors}
            pools = [node for node in bends.needed if operator_name(node) == "max_pool2d"]
            kept |= {node: _selected(node, values) for node in pools}
        return BentPath(program, group, bends, captured, slopes, curvatures, kept)

    def product(self, direction: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
        """S·v by name, of the tensors' shapes; what is absent is zero.

        Args:
            direction: v, by name.
            keep: not used: nothing is lost by a product.
        """
        if not self.curvatures:
            return {}
        with torch.enable_grad():
            leaves = {name: v.detach().requires_grad_() for name, v in direction.items()}
            tangents = self._tangents(leaves)
            terms = [
                0.5 * torch.vdot((self.curvatures[node] * tangents[y]).reshape(-1), tangents[y].reshape(-1))
                for node, y in self.bends.activations.items()
            ]
            terms += [
                (self.curvatures[node] * tangents[a] * tangents[b]).sum()
                for node, (a, b) in self.bends.products.items()
            ]
            found = torch.autograd.grad(torch.stack(terms).sum(), list(leaves.values()), allow_unused=True)
        return {name: g for name, g in zip(leaves, found, strict=True) if g is not None}

    def _tangents(self, direction: Mapping[str, Tensor]) -> dict[Node, Any]:
        program = self.program
        tangents: dict[Node, Any] = {
            node: direction[name] for node, name in program.names.items() if name in direction
        }
        for node in self.bends.needed:
            if node not in tangents:
                tangents[node] = self._tangent(node, tangents)
        return tangents

    def _tangent(self, node: Node, tangents: Mapping[Node, Any]) -> Any:
        program, group = self.program, self.group

        def read(source: Node) -> Any:
            return tangents[source] if group.varies(source, node) else program.value(source, self.captured)

        if node in self.slopes:
            return self.slopes[node] * tangents[self.bends.activations[node]]
        if node in self.bends.products:
            a, b = self.bends.products[node]
            return tangents[a] * self.values[b] + self.values[a] * tangents[b]
        if node in group.cut or node.target in CONVOLUTIONS or node.target is aten.convolution.default:
            bias = _PRODUCERS[node.target][0]
            arguments = [None if k == bias else map_arg(a, read) for k, a in enumerate(node.args)]
            return program.apply(node, *arguments)
        if node.target in NORMS:
            return self._scaled(node, read)
        name = operator_name(node)
        if name == "max_pool2d":
            made = read(node.all_input_nodes[0]).flatten(2).gather(2, self.values[node].flatten(2))
            return made.reshape(self.values[node].shape)
        if name in JOINTLY_LINEAR:
            joined = _concatenated if name == "cat" else _summed
            return joined(node, read, lambda source: group.varies(source, node))
        return program.call(node, read)

    def _scaled(self, node: Node, read: Callable[[Node], Any]) -> Any:
        """The tangent behind a batch normalisation."""
        arguments: list[Any] = [read(a) if isinstance(a, Node) else a for a in node.args]
        x, weight, var = arguments[0], arguments[1], arguments[4]
        scale = torch.rsqrt(var + arguments[NORMS[node.target]])
        if weight is not None:
            scale = scale * weight
        made = x * scale.reshape(1, -1, *[1] * (x.ndim - 2))
        return made if node.target is aten.batch_norm.default else (made, None, None)


def _or_zero(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _activation(node: Node, read: Callable[[Node, Node], Any]) -> Any:
    return ACTIVATIONS[node.target](
        *map_arg(node.args[1:], lambda n: read(n, node)), **map_arg(node.kwargs, lambda n: read(n, node))
    )


def _selected(node: Node, values: Mapping[Node, Any]) -> Tensor:
    """The positions that a max pooling takes its values from, within the map."""
    arguments: list[Any] = list(node.args)
    arguments[0] = values[arguments[0]].detach()
    pooled = torch.nn.functional.max_pool2d_with_indices(*arguments)
    return pooled[1]


def _concatenated(node: Node, read: Callable[[Node], Any], varies: Callable[[Node], bool]) -> Tensor:
    """The tangent of a concatenation; that of a constant part is 0."""
    arguments: list[Any] = list(node.args)
    parts, *rest = arguments
    return torch.cat([read(s) if varies(s) else torch.zeros_like(read(s)) for s in parts], *rest)


def _summed(node: Node, read: Callable[[Node], Any], varies: Callable[[Node], bool]) -> Tensor:
    """The tangent of a sum or a difference."""
    first, second = node.args[:2]
    sign = -1.0 if operator_name(node) == "sub" else 1.0
    one: Any
    other: Any
    one, other = (read(s) if isinstance(s, Node) else s for s in (first, second))
    moving = [isinstance(s, Node) and varies(s) for s in (first, second)]
    if all(moving):
        both: Tensor = one + sign * other
        return both
    tangent, still, factor = (one, other, 1.0) if moving[0] else (other, one, sign)
    result: Tensor = factor * tangent
    if isinstance(still, Tensor):
        result = result.expand(torch.broadcast_shapes(result.shape, still.shape))
    return result
