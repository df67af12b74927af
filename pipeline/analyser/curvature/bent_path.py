"""S·v of a group by its bends: one pass forward, one pass back, and no double backward of the path.

Let ẏ be the tangent of a value y on the path when θ moves along v. The scalar ``F = Σ_e ⟨g_e, e(θ)⟩`` has its
only second derivatives where the path bends: at activations, at products of two values that both move, at
softmax and at other operators that are not linear in what moves. With the gradient ē at the output of each

    q(v) = ½ vᵀ S v = Σ_bends ½ ⟨ē, D²e[ẏ, ẏ]⟩

summed over samples and positions. For an activation ``a = φ(y)`` a term is ``½ ⟨ā φ''(y), ẏ²⟩``, for a
product ``c = a · b`` it is ``⟨c̄, ȧ ḃ⟩``; `bends` has the rules. Tangents are linear in v: ẏ runs through
linear operators as they are, and through bends by their first derivative. So ``S v = ∇_v q(v)`` takes one run
of the tangent, the rule of every bend, and one backward pass of the tangent: forward over reverse with the
reverse pass already done. Residual streams with several producers, concatenations, squeeze-excite, gated MLPs
and attention are such paths; a chain is the case of one producer (`closed_form`). A path without bends has
S = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from growpipe.analyser.curvature.bends import (
    POINTWISE,
    Bend,
    MatrixProduct,
    Pointwise,
    Product,
    Smooth,
    Softmax,
    is_differentiable,
    pointwise,
)
from growpipe.analyser.curvature.closed_form import JOINTLY_LINEAR, LINEAR
from growpipe.analyser.curvature.linearised import Linearised
from growpipe.analyser.program.activations import ACTIVATIONS
from growpipe.analyser.program.aten import CONVOLUTIONS, NORMS, REINDEXING, aten, operator_name
from growpipe.analyser.program.binding import BoundGroup
from growpipe.analyser.program.captured import Captured
from growpipe.analyser.program.fold_norms import FoldedNorm, scaled
from growpipe.analyser.program.kernel_window import KernelWindow
from growpipe.analyser.program.program import Program
from growpipe.analyser.program.values import storage_of, tensors_in

__all__ = ["Bends", "BentPath", "PathProducts", "bends_of", "path_products", "producer_inputs"]

# By mixing producer the positions of its bias and of its weight.
_PRODUCERS: dict[Any, tuple[int | None, int]] = {
    **dict.fromkeys(CONVOLUTIONS, (2, 1)),
    aten.addmm.default: (0, 2),
    aten.convolution.default: (2, 1),
    aten.linear.default: (2, 1),
    aten.matmul.default: (None, 1),
    aten.mm.default: (None, 1),
}
_BILINEAR = {"bmm", "matmul", "mul"}
# Of what fills in a constant, whose tangent is 0: how many arguments come before it, and what stands for it.
_FILLING: dict[str, tuple[int, tuple[float, ...]]] = {
    "constant_pad_nd": (2, (0.0,)),
    "masked_fill": (2, (0.0,)),
    "pad": (3, ()),
}
PathProducts: TypeAlias = "BentPath | Linearised"
"""S·v of a group without a closed form, over one micro-batch."""

_SOFTMAX = {"_softmax", "softmax"}
_SELECTING = {"amax", "max_pool1d", "max_pool3d"}


@dataclass(frozen=True, eq=False)
class Bends:
    """Where a path bends.

    Attributes:
        sources: by node that bends what moves among its arguments.
        needed: the nodes whose tangents reach a bend, in the order of the program.
        folded: by mixing producer whose weight alone moves the normalisation behind it, if they can be one.
    """

    sources: Mapping[Node, tuple[Node, ...]]
    needed: tuple[Node, ...]
    folded: Mapping[Node, FoldedNorm]


def bends_of(program: Program, group: BoundGroup) -> Bends | None:
    """Where the path of a group bends; None if that cannot be told of an operator."""
    sources: dict[Node, tuple[Node, ...]] = {}
    path = [node for node in program.nodes if node in group.path]
    for node in path:
        varying = [source for source in node.all_input_nodes if group.varies(source, node)]
        if _is_linear(node, varying, group):
            continue
        if node in group.cut or not is_differentiable(node):
            return None
        sources[node] = tuple(varying)
    needed = _needed(path, set().union(*sources.values()), group)
    if any(operator_name(node) in _SELECTING for node in needed):
        return None
    folded = program.folded_norms(lambda made, norm: _may_fold(made, norm, group))
    return Bends(sources, needed, {one.made: one for one in folded})


def _may_fold(made: Node, norm: Node, group: BoundGroup) -> bool:
    """Whether the weight of a mixing producer is all that moves of it and of the normalisation behind it."""
    moving = [s for node in (made, norm) for s in node.all_input_nodes if group.varies(s, node)]
    return made in group.cut and moving == [made.args[1], made]


def producer_inputs(group: BoundGroup) -> set[Node]:
    """What the mixing producers of a group take, all held constant."""
    return {s for node in group.cut for s in node.all_input_nodes if not group.varies(s, node)}


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
    if node in group.parameters and name in REINDEXING:
        return True
    if node in group.cut:
        if node.target not in _PRODUCERS or node.kwargs:
            return False
        parameters = [node.args[k] for k in _PRODUCERS[node.target] if k is not None and k < len(node.args)]
        return all(source in parameters for source in varying)
    if name in JOINTLY_LINEAR:
        return not node.kwargs
    if len(varying) != 1 or (name in _BILINEAR and node.args[0] is node.args[1]):
        return False
    if name == "scaled_dot_product_attention":
        return varying[0] not in node.args[:2]
    return name in _BILINEAR or (name in LINEAR and varying[0] is node.args[0])


def path_products(
    program: Program, captured: Captured, group: BoundGroup, bends: Bends | None
) -> PathProducts:
    """S·v of a group without a closed form: by its bends, or by autograd if those are unknown."""
    if bends is None:
        return Linearised.of(program, captured, group)
    return BentPath.of(program, captured, group, bends)


@dataclass(frozen=True, eq=False)
class BentPath:
    """What S·v of a group needs from one batch.

    Attributes:
        program: the program.
        group: the group.
        path: where it bends.
        captured: what the batch leaves constant.
        bends: by node that bends what moves among its arguments, and the rule.
        selected: by max pooling the positions that it takes its values from.
    """

    program: Program
    group: BoundGroup
    path: Bends
    captured: Captured
    bends: Mapping[Node, tuple[tuple[Node, ...], Bend]]
    selected: Mapping[Node, Tensor]

    @staticmethod
    def of(program: Program, captured: Captured, group: BoundGroup, bends: Bends) -> BentPath:
        """From what a batch leaves constant: one run of the path and one backward pass."""
        at = list(bends.sources)
        if not at:
            return BentPath(program, group, bends, captured, {}, {})
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
        values = {n: v.detach() if isinstance(v, Tensor) else v for n, v in values.items()}
        read = program.reader([group], captured, values)
        with torch.no_grad():
            rules: dict[Node, tuple[tuple[Node, ...], Bend]] = {}
            for node, gradient in zip(at, gradients, strict=True):
                sources = bends.sources[node]
                e = torch.zeros_like(values[node]) if gradient is None else gradient
                rule = _rule(program, node, sources, read, values, e, node in bends.needed)
                rules[node] = sources, rule
            pools = [node for node in bends.needed if operator_name(node) == "max_pool2d"]
            selected = {node: _selected(node, values) for node in pools}
        return BentPath(program, group, bends, captured, rules, selected)

    @cached_property
    def nbytes(self) -> int:
        """Its memory besides what the batch leaves constant."""
        given = {storage_of(t) for t in tensors_in([self.captured.constants, self.captured.gradients])}
        own: dict[int, int] = {}
        for rule in [*(rule for _, rule in self.bends.values()), *self.selected.values()]:
            # The graph of an operator holds about as much again as its values.
            times = 2 if isinstance(rule, Smooth) else 1
            held = tensors_in([rule] if isinstance(rule, Tensor) else list(vars(rule).values()))
            own.update({storage_of(t): times * t.untyped_storage().nbytes() for t in held})
        return sum(size for place, size in own.items() if place not in given)

    def product(self, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """S·v by name, of the tensors' shapes, from v by name; what is absent is zero."""
        if not self.bends:
            return {}
        leaves = {name: v.detach().requires_grad_() for name, v in direction.items()}
        with torch.enable_grad():
            tangents = self._tangents(leaves)
        ends: list[Tensor] = []
        bent: list[Tensor] = []
        with torch.no_grad():
            for node, (sources, rule) in self.bends.items():
                moved = [tangents[source] for source in sources]
                ends += moved
                bent += rule.curvature(tangents.get(node), *moved)
        found = torch.autograd.grad(ends, list(leaves.values()), bent, allow_unused=True)
        return {name: g for name, g in zip(leaves, found, strict=True) if g is not None}

    def _tangents(self, direction: Mapping[str, Tensor]) -> dict[Node, Any]:
        program = self.program
        tangents: dict[Node, Any] = {
            node: direction[name] for node, name in program.names.items() if name in direction
        }
        for node in self.path.needed:
            if node not in tangents:
                tangents[node] = self._tangent(node, tangents)
        return tangents

    def _tangent(self, node: Node, tangents: Mapping[Node, Any]) -> Any:
        program, group = self.program, self.group

        def read(source: Node) -> Any:
            return tangents[source] if group.varies(source, node) else program.value(source, self.captured)

        if node in self.bends:
            sources, rule = self.bends[node]
            return rule.tangent(*(tangents[source] for source in sources))
        if node in group.cut or node.target in CONVOLUTIONS or node.target is aten.convolution.default:
            return self._mixed(node, read)
        if node.target in NORMS:
            return self._scaled(node, read)
        name = operator_name(node)
        if name == "max_pool2d":
            made = read(node.all_input_nodes[0]).flatten(2).gather(2, self.selected[node].flatten(2))
            return made.reshape(self.selected[node].shape)
        if name == "masked_fill" and _is_before_softmax(node, group):
            return read(node.all_input_nodes[0])
        if name in _FILLING:
            given, filled = _FILLING[name]
            return program.apply(node, *map_arg(node.args[:given], read), *filled)
        if name in JOINTLY_LINEAR:
            joined = _concatenated if name == "cat" else _summed
            return joined(node, read, lambda source: group.varies(source, node))
        return program.call(node, read)

    def _mixed(self, node: Node, read: Callable[[Node], Any]) -> Any:
        """The tangent behind a mixing producer or a convolution; that of a constant bias is 0."""
        bias, weight = _PRODUCERS[node.target]
        arguments: list[Any] = list(map_arg(node.args, read))
        window = self._window(node.args[weight])
        if window is not None:
            arguments[3:5] = [*(arguments[3:4] or [1]), window.padding]
        if node in self.path.folded:
            arguments[weight] = scaled(arguments[weight], self.path.folded[node].factor)
        moves = [isinstance(a, Node) and self.group.varies(a, node) for a in node.args]
        if bias is not None and bias < len(moves) and not moves[bias]:
            if node.target is aten.addmm.default:
                return torch.mm(*arguments[1:3])
            arguments[bias] = None
        if node in self.group.cut and not moves[weight]:
            arguments[weight] = torch.zeros_like(arguments[weight])
        return self.program.apply(node, *arguments)

    def _window(self, weight: Any) -> KernelWindow | None:
        """The part of a convolution's kernel that moves; None for all of it."""
        return self.group.windows.get(self.program.names.get(weight, ""))

    def _scaled(self, node: Node, read: Callable[[Node], Any]) -> Any:
        """The tangent behind a batch normalisation."""
        folded = self.path.folded.get(node.all_input_nodes[0])
        if folded is not None:
            return folded.passed(read(folded.made))
        arguments: list[Any] = [read(a) if isinstance(a, Node) else a for a in node.args]
        x, weight, var = arguments[0], arguments[1], arguments[4]
        scale = torch.rsqrt(var + arguments[NORMS[node.target]])
        if weight is not None:
            scale = scale * weight
        made = x * scale.reshape(1, -1, *[1] * (x.ndim - 2))
        return made if node.target is aten.batch_norm.default else (made, None, None)


def _rule(
    program: Program,
    node: Node,
    sources: Sequence[Node],
    read: Callable[[Node, Node], Any],
    values: Mapping[Node, Any],
    gradient: Tensor,
    goes_on: bool,
) -> Bend:
    """The second-order rule of a node.

    Args:
        program: the program.
        node: the node.
        sources: what moves among its arguments.
        read: the value of an argument.
        values: along the path.
        gradient: ē, at its output.
        goes_on: whether its tangent reaches another bend.
    """
    name = operator_name(node)
    if node.target in ACTIVATIONS and list(sources) == [node.args[0]]:
        phi = _activation(node, read)
        return Pointwise(*phi.bend(values[sources[0]], gradient, program.surrogate, goes_on))
    if len(sources) == 2 and tuple(node.args[:2]) == tuple(sources) and not node.kwargs:
        a, b = (values[source] for source in sources)
        if name == "mul":
            return Product(a, b, gradient)
        if name in {"bmm", "matmul"} and min(a.ndim, b.ndim) > 1:
            return MatrixProduct(a.contiguous(), b if b.mT.is_contiguous() else b.contiguous(), gradient)
    if name in _SOFTMAX:
        return Softmax.of(values[node], gradient, cast(int, node.args[1]))

    def function(*moving: Tensor) -> Any:
        moved = dict(zip(sources, moving, strict=True))
        return program.evaluate(node, lambda s, user: moved[s] if s in moved else read(s, user))

    if name in POINTWISE and list(sources) == [node.args[0]]:
        return pointwise(function, values[sources[0]], gradient, goes_on)
    return Smooth.of(function, [values[source] for source in sources], gradient)


def _activation(node: Node, read: Callable[[Node, Node], Any]) -> Any:
    return ACTIVATIONS[node.target](
        *map_arg(node.args[1:], lambda n: read(n, node)), **map_arg(node.kwargs, lambda n: read(n, node))
    )


def _selected(node: Node, values: Mapping[Node, Any]) -> Tensor:
    """The positions that a max pooling takes its values from, within the map."""
    arguments: list[Any] = list(node.args)
    arguments[0] = values[arguments[0]]
    pooled = torch.nn.functional.max_pool2d_with_indices(*arguments)
    return pooled[1]


def _concatenated(node: Node, read: Callable[[Node], Any], varies: Callable[[Node], bool]) -> Tensor:
    """The tangent of a concatenation; that of a constant part is 0."""
    arguments: list[Any] = list(node.args)
    parts, *rest = arguments
    return torch.cat([read(s) if varies(s) else torch.zeros_like(read(s)) for s in parts], *rest)


def _is_before_softmax(node: Node, group: BoundGroup) -> bool:
    """Whether what is filled in is −∞ and goes into softmax alone: there p = 0, whatever its tangent."""
    users = [user for user in node.users if group.varies(node, user)]
    return bool(node.args[2] == float("-inf")) and all(operator_name(user) in _SOFTMAX for user in users)


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
