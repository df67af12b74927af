"""Channel groups: which tensors of an ONNX graph share each channel, and which channels can split.

The one place where this is decided. A group is one atom of the solved dimensions; see
`growpipe.graph_ops.axes.axis` for how they are found and `growpipe.graph_ops.axes.rules` for what operators
state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import onnx
import onnx_ir as ir

from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.axes.axis import Axis, Barrier, extent, freeze, leaves, root
from growpipe.graph_ops.axes.dims import Atom, Concat, Dim, Fixed, Product, atoms_of
from growpipe.graph_ops.axes.functions import inline_functions
from growpipe.graph_ops.axes.inference import infer_axes
from growpipe.graph_ops.axes.integers import axes_in
from growpipe.graph_ops.axes.layouts import AxisLayout, TensorLayout
from growpipe.graph_ops.axes.rule_api import AxisInference
from growpipe.graph_ops.axes.statements import Use
from growpipe.graph_ops.cost.cost import CostModel, cost_model
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.hashes import graph_hash
from growpipe.graph_ops.operators import node_name, plain_domain

__all__ = ["Barrier", "ChannelGroup", "ChannelGroups", "Member", "Solution", "find_channel_groups", "solve"]

MemberRole = Literal["made", "carried", "mixed"]


@dataclass(frozen=True, slots=True)
class Member:
    """One axis of one parameter on which a channel group stands.

    Attributes:
        tensor: the initializer (or the output of the Constant node).
        axis: the axis of the tensor.
        role: ``made`` is the output axis of a producer's weight, ``mixed`` the input axis of a consumer's
            weight, where the coefficients go, ``carried`` everything on the way.
        node: the node that uses the tensor.
        operator: its operator type.
        input: the formal name of the input in the operator's ONNX schema, e.g. ``"W"``.
    """

    tensor: str
    axis: int
    role: MemberRole
    node: str
    operator: str
    input: str


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """All that is copied together with one channel.

    Attributes:
        name: stable from run to run: the first weight that makes the channels; ``#2`` and so on tell
            several groups on one weight apart, and ``:in`` marks channels that no weight makes.
        width: the number of channels.
        members: in graph order.
        barrier: why the channels cannot split; None if they can.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    barrier: Barrier | None

    @property
    def splittable(self) -> bool:
        return self.barrier is None


@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """The channel groups of one graph.

    Attributes:
        groups: splittable or not, in graph order.
        layouts: every initializer that a splittable group touches, under its name, which is that of the
            torch parameter or buffer in a growth form. It may hold constants that are not parameters, such as
            folded zero biases; a plan may leave those out, `grow_graph` widens them all the same.
        graph_hash: SHA-256 of the structure: operators, attributes, topology, names and shapes, no values.
        cost: parameters and multiply-accumulates as functions of the widths.
        tensors: every constant of the graph by name: initializers, and the outputs of Constant nodes.
        barriers: the nodes that no rule follows, in graph order; no channel passes them.
        contradictions: what the file declares about shapes and is not so, one sentence each.
    """

    groups: tuple[ChannelGroup, ...]
    layouts: Mapping[str, TensorLayout]
    graph_hash: str
    cost: CostModel
    tensors: Mapping[str, ir.TensorProtocol] = field(default_factory=dict)
    barriers: tuple[Barrier, ...] = ()
    contradictions: tuple[str, ...] = ()

    def read(self, name: str) -> AnyArray:
        """The values of a constant of the graph.

        Raises:
            KeyError: the graph has no constant of this name.
        """
        return self.tensors[name].numpy()

    def restricted(self, names: Iterable[str]) -> dict[str, TensorLayout]:
        """The layouts of the tensors that at least one of the named groups touches.

        Raises:
            UsageError: a name is not that of a splittable group.
        """
        wanted = set(names)
        unknown = wanted - {group.name for group in self.groups if group.splittable}
        if unknown:
            raise UsageError(f"no splittable channel group is called {sorted(unknown)[0]!r}")
        return {
            name: layout
            for name, layout in self.layouts.items()
            if any(atom.name in wanted for axis in layout.axes for atom in atoms_of(axis.dim))
        }

    def __getitem__(self, name: str) -> ChannelGroup:
        for group in self.groups:
            if group.name == name:
                return group
        raise UsageError(f"no channel group is called {name!r}")


@dataclass(frozen=True, eq=False)
class Solution:
    """Channel groups together with the inference they come from, for those who rewrite the graph.

    Attributes:
        model: the model that was asked about.
        groups: the result of `find_channel_groups`.
        inference: the solved axes of every tensor. Its model is ``model``, or a copy of it in which the calls
            of functions are replaced by their bodies.
        dim: gives the dimension of a solved axis of known length.
        private: the layout of inputs (node, index) that read a tensor of zeros or ones which serves
            unrelated nodes; each of them gets a tensor of its own.
    """

    model: ir.Model
    groups: ChannelGroups
    inference: AxisInference
    dim: Callable[[Axis], Dim]
    private: Mapping[tuple[ir.Node, int], TensorLayout]


def find_channel_groups(model: ir.Model, freeze: Sequence[str] = ()) -> ChannelGroups:
    """Find all channel groups of the main graph of ``model``, which is left untouched.

    Args:
        model: any ONNX model; what cannot be understood is a barrier.
        freeze: names or globs of tensors whose axes must all stay as they are.

    Raises:
        UsageError: an entry of ``freeze`` matches no tensor.
    """
    return solve(model, freeze).groups


def solve(model: ir.Model, frozen: Sequence[str] = ()) -> Solution:
    """As `find_channel_groups`, with everything that rewriting needs."""
    inference = infer_axes(inline_functions(model))
    for pattern in frozen:
        _freeze_matching(inference, pattern)
    _freeze_entangled(inference)
    touches = [_Touch(use) for use in inference.uses]
    _resolve_roles(touches)
    members: dict[Axis, list[Member]] = {}
    for touch in touches:
        touch.collect(members)
    groups, atoms = _name_groups(members, touches)
    dims = _Dims(atoms)
    found = [(touch.use, touch.layout(atoms, dims)) for touch in touches]
    by_name: dict[str, list[TensorLayout | None]] = {}
    for use, layout in found:
        by_name.setdefault(use.base.name or "", []).append(layout)
    layouts = {
        name: several[0]
        for name, several in by_name.items()
        if several[0] is not None and all(layout == several[0] for layout in several)
    }
    private = {
        (use.node, use.index): layout
        for use, layout in found
        if layout is not None and use.base.name not in layouts
    }
    channel_groups = ChannelGroups(
        groups,
        layouts,
        graph_hash(inference.model),
        cost_model(inference, dims),
        {value.name or "": tensor for value, tensor in inference.tensors.items()},
        tuple(barrier for _, barrier in inference.given_up),
        tuple(inference.contradictions),
    )
    return Solution(model, channel_groups, inference, dims, private)


def _freeze_matching(inference: AxisInference, pattern: str) -> None:
    matched = False
    held = [(value.name or "", axes) for value, axes in inference.axes.items()]
    held += [(use.base.name or "", use.axes) for use in inference.uses]
    for name, axes in held:
        if name == pattern or fnmatchcase(name, pattern):
            matched = True
            for position, axis in enumerate(axes):
                freeze(axis, Barrier("", name, position, f"kept by --freeze {pattern}"))
    if not matched:
        raise UsageError(f"--freeze {pattern!r} matches no tensor of the model")


_MOST_LEAVES, _DEEPEST = 1 << 14, 50


def _freeze_entangled(inference: AxisInference) -> None:
    """Freeze axes that are made of very many parts, of which dimensions would be too large to work with.

    Two parts can be two parts each, and so on: forty nodes describe more parts than fit into memory.
    """
    known: dict[Axis, tuple[int, int]] = {}
    held = [axis for axes in inference.axes.values() for axis in axes]
    held += [axis for use in inference.uses for axis in use.axes]
    held += [axis for term in inference.macs for axis in term.axes]
    held += [axis for follow in inference.follows for element in follow.elements for axis in axes_in(element)]
    for axis in held:
        count, depth = extent(axis, known)
        if count > _MOST_LEAVES or depth > _DEEPEST:
            reason = "reshapes and concatenations divide this axis into too many parts to be followed"
            freeze(axis, Barrier("", "", None, reason))


class _Touch:
    """One use of one weight, and which atoms it makes or mixes on which axis."""

    def __init__(self, use: Use) -> None:
        self.use = use
        self.axes = use.axes
        self.atoms = [dict.fromkeys(a for a in leaves(axis) if a.size != 1) for axis in self.axes]
        self.made = self._parts(use.made)
        self.mixed = self._parts(use.mixed)

    def _parts(self, stated: list[tuple[int, Axis]]) -> list[set[Axis]]:
        parts: list[set[Axis]] = [set() for _ in self.axes]
        for position, part in stated:
            parts[position] |= set(leaves(part)) & self.atoms[position].keys()
        return parts

    def collect(self, members: dict[Axis, list[Member]]) -> None:
        node, tensor = self.use.node, self.use.base.name or ""
        name = node_name(node)
        formal = _formal_input(node.domain, node.op_type, node.version, self.use.index)
        for position, atoms in enumerate(self.atoms):
            for atom in atoms:
                role: MemberRole = "carried"
                if atom in self.mixed[position]:
                    role = "mixed"
                elif atom in self.made[position]:
                    role = "made"
                member = Member(tensor, position, role, name, node.op_type, formal)
                members.setdefault(atom, []).append(member)

    def layout(self, atoms: Mapping[Axis, str], dims: Callable[[Axis], Dim]) -> TensorLayout | None:
        if not any(atom in atoms for group in self.atoms for atom in group):
            return None
        return TensorLayout(
            tuple(
                AxisLayout(dims(axis), "mixed" if any(a in atoms for a in self.mixed[position]) else "copied")
                for position, axis in enumerate(self.axes)
            )
        )


def _resolve_roles(touches: list[_Touch]) -> None:
    """Freeze atoms that would have to be mixed and copied on one axis of one weight."""
    mixed_on: dict[tuple[ir.Value, int], set[Axis]] = {}
    for touch in touches:
        for position, mixed in enumerate(touch.mixed):
            mixed_on.setdefault((touch.use.base, position), set()).update(mixed)
    for touch in touches:
        name = touch.use.base.name
        for position, atoms in enumerate(touch.atoms):
            conflicting = mixed_on[touch.use.base, position] - touch.mixed[position]
            copied = {atom for atom in atoms if atom not in touch.mixed[position]}
            if touch.mixed[position]:
                conflicting |= {atom for atom in copied if atom.barrier is None}
            for atom in conflicting:
                barrier = Barrier(
                    touch.use.node.op_type,
                    node_name(touch.use.node),
                    position,
                    f"{name!r} both mixes and carries the channels on one axis",
                )
                freeze(atom, barrier)


def _name_groups(
    members: Mapping[Axis, list[Member]], touches: Iterable[_Touch]
) -> tuple[tuple[ChannelGroup, ...], dict[Axis, str]]:
    whole = {
        (touch.use.base.name or "", position): atoms.keys() if len(atoms) == 1 else ()
        for touch in touches
        for position, atoms in enumerate(touch.atoms)
    }
    groups: list[ChannelGroup] = []
    atoms: dict[Axis, str] = {}
    used: set[str] = set()
    for atom, held in members.items():
        made = [member for member in held if member.role == "made"]
        mixed = [member for member in held if member.role == "mixed"]
        if atom.size is None or not (made or any(atom in whole[m.tensor, m.axis] for m in mixed)):
            continue  # pixels of a flattened feature map and the like are not channels
        base = made[0].tensor if made else f"{mixed[0].tensor}:in"
        name, number = base, 1
        while name in used:
            number += 1
            name = f"{base}#{number}"
        used.add(name)
        barrier = atom.barrier
        first = held[0]
        if barrier is None and not made:
            barrier = Barrier(
                first.operator,
                first.node,
                first.axis,
                "no weight makes these channels, so there is nothing to copy",
            )
        if barrier is None and not mixed:
            barrier = Barrier(
                first.operator,
                first.node,
                first.axis,
                "no weight sums over these channels, so no weight can take the coefficients",
            )
        groups.append(ChannelGroup(name, atom.size, tuple(held), barrier))
        if barrier is None:
            atoms[atom] = name
    return tuple(groups), atoms


class _Dims:
    """The immutable dimensions of solved axes; what no splittable group owns is `Fixed`."""

    def __init__(self, atoms: Mapping[Axis, str]) -> None:
        self._atoms = atoms
        self._known: dict[Axis, Dim] = {}

    def __call__(self, axis: Axis) -> Dim:
        # Without recursion: concatenations of concatenations can be thousands deep.
        stack = [root(axis)]
        while stack:
            top = stack[-1]
            missing = [child for child in map(root, top.children) if child not in self._known]
            if top not in self._known and missing and top.kind != "leaf":
                stack.extend(missing)
                continue
            stack.pop()
            if top not in self._known:
                self._known[top] = self._leaf(top) if top.kind == "leaf" else self._compound(top)
        return self._known[root(axis)]

    def _leaf(self, axis: Axis) -> Dim:
        size = 1 if axis.size is None else axis.size
        return Atom(self._atoms[axis], size) if axis in self._atoms else Fixed(size)

    def _compound(self, axis: Axis) -> Dim:
        simple: list[Dim] = []
        for child in axis.children:
            dim = self._known[root(child)]
            nested: tuple[Dim, ...] = (dim,)
            if axis.kind == "product" and isinstance(dim, Product):
                nested = dim.factors
            elif axis.kind == "concat" and isinstance(dim, Concat):
                nested = dim.parts
            for part in nested:
                last = simple[-1] if simple else None
                if isinstance(part, Fixed) and isinstance(last, Fixed):
                    size = last.size * part.size if axis.kind == "product" else last.size + part.size
                    simple[-1] = Fixed(size)
                elif not (isinstance(part, Fixed) and part.size == (1 if axis.kind == "product" else 0)):
                    simple.append(part)
        if not simple:
            return Fixed(1 if axis.kind == "product" else 0)
        if len(simple) == 1:
            return simple[0]
        return Product(tuple(simple)) if axis.kind == "product" else Concat(tuple(simple))


@functools.cache
def _formal_input(domain: str, operator: str, version: int | None, index: int) -> str:
    try:
        domain = plain_domain(domain)
        formal = (
            onnx.defs.get_schema(operator, domain=domain)
            if version is None
            else onnx.defs.get_schema(operator, version, domain)
        ).inputs
    except onnx.defs.SchemaError:
        return f"input{index}"
    return formal[min(index, len(formal) - 1)].name if formal else f"input{index}"
