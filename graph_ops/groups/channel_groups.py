"""Channel groups: which tensors of an ONNX graph share each channel, and which channels can split.

The one place where this is decided. A group is one atom of the solved dimensions; see
`growpipe.graph_ops.axes.axis` for how they are found and `growpipe.graph_ops.axes.rules` for what operators
state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import onnx_ir as ir

from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.axes.axis import Axis, Barrier, extent, freeze
from growpipe.graph_ops.axes.dims import Dim, atoms_of
from growpipe.graph_ops.axes.functions import inline_functions
from growpipe.graph_ops.axes.inference import infer_axes
from growpipe.graph_ops.axes.integers import axes_in
from growpipe.graph_ops.axes.layouts import TensorLayout
from growpipe.graph_ops.axes.rule_api import AxisInference
from growpipe.graph_ops.cost.cost import CostModel, cost_model
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.dimensions import Dimensions
from growpipe.graph_ops.groups.even_copies import EvenCopies, even_leaves, solve_even_copies
from growpipe.graph_ops.groups.roles import resolve_roles
from growpipe.graph_ops.groups.touches import Member, Touch
from growpipe.graph_ops.hashes import graph_hash
from growpipe.graph_ops.notebook import html_table

__all__ = [
    "Barrier",
    "ChannelGroup",
    "ChannelGroups",
    "Member",
    "Solution",
    "WholeFactor",
    "find_channel_groups",
    "solve",
]


@dataclass(frozen=True, slots=True)
class WholeFactor:
    """Why a group grows by whole factors alone: all its channels are copied equally often.

    Attributes:
        because: the node that takes moments over the channels, and what it does.
        tied: the other groups that grow by the same factor, since they stand beside this one on an axis.
    """

    because: Barrier
    tied: tuple[str, ...] = ()

    def __str__(self) -> str:
        others = f"; together with {', '.join(self.tied)}" if self.tied else ""
        return f"splits by whole factors: {self.because}{others}"


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """All that is copied together with one channel.

    Attributes:
        name: stable from run to run: the first weight that makes the channels; ``#2`` and so on tell
            several groups on one weight apart, and ``:in`` marks channels that no weight makes. The name of a
            weight of a body has the path of the body before it, as in ``If_0/then_branch/w``.
        width: the number of channels.
        members: in graph order.
        barrier: why the channels cannot split; None if they can.
        whole_factor: why the channels split only all together, equally often; None if each can by itself.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    barrier: Barrier | None
    whole_factor: WholeFactor | None = None

    @property
    def splittable(self) -> bool:
        """Whether a single channel can split."""
        return self.barrier is None and self.whole_factor is None

    @property
    def of_pairs(self) -> bool:
        """Whether two activations are summed over these channels, as queries and keys are."""
        return any(member.role == "folded" for member in self.members)


@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """The channel groups of one graph.

    Attributes:
        groups: whether they can split or not, in graph order.
        layouts: every initializer that a group without barrier touches, under its name, which is that of the
            torch parameter or buffer in a growth form. It may hold constants that are not parameters, such as
            folded zero biases; a plan may leave those out, `grow_graph` widens them all the same.
        graph_hash: SHA-256 of the structure: operators, attributes, topology, names and shapes, no values.
        cost: parameters and multiply-accumulates as functions of the widths.
        tensors: every constant by name, those of bodies with their path: initializers, and the outputs of
            Constant nodes.
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

    @property
    def nothing_found(self) -> str | None:
        """Why there is neither a group nor a barrier that would explain it; None if there is one."""
        if self.groups or self.barriers:
            return None
        return (
            "the model has no channel group: no operator of it makes or mixes channels with a stored weight"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        splittable = sum(group.splittable for group in self.groups)
        return html_table(
            f"{splittable} of {len(self.groups)} channel groups can split, "
            f"{self.cost.parameters():,} parameters, {self.cost.macs():,} MACs",
            ("group", "width", "members", "can split"),
            [(g.name, g.width, len(g.members), g.barrier or g.whole_factor or "yes") for g in self.groups],
        )

    def read(self, name: str) -> AnyArray:
        """The values of a constant of the graph.

        Raises:
            KeyError: the graph has no constant of this name.
        """
        return self.tensors[name].numpy()

    def restricted(self, names: Iterable[str]) -> dict[str, TensorLayout]:
        """The layouts of the tensors that at least one of the named groups touches.

        Raises:
            UsageError: a name is not that of a group that can split.
        """
        wanted = set(names)
        unknown = wanted - {group.name for group in self.groups if group.barrier is None}
        if unknown:
            raise UsageError(f"no channel group that can split is called {sorted(unknown)[0]!r}")
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
    """Find all channel groups of ``model``, which is left untouched.

    A group lies within one graph: the main graph, or the body of an If, Loop or Scan. What goes into a body
    or comes out of it stays as it is.

    Args:
        model: any ONNX model; what cannot be understood is a barrier.
        freeze: names or globs of tensors whose axes must all stay as they are.

    Raises:
        UsageError: an entry of ``freeze`` matches no tensor.
    """
    return solve(model, freeze).groups


def solve(model: ir.Model, frozen: Sequence[str] = (), within_bodies: bool = True) -> Solution:
    """As `find_channel_groups`, with everything that rewriting needs.

    Args:
        model: any ONNX model.
        frozen: names or globs of tensors whose axes must all stay as they are.
        within_bodies: whether groups are found within the bodies of If, Loop and Scan.

    Raises:
        UsageError: an entry of ``frozen`` matches no tensor.
    """
    inference = infer_axes(inline_functions(model), within_bodies)
    for pattern in frozen:
        _freeze_matching(inference, pattern)
    _freeze_entangled(inference)
    touches = [Touch(use) for use in inference.uses]
    resolve_roles(inference, touches, even_leaves(inference.evens))
    members: dict[Axis, list[Member]] = {}
    for touch in touches:
        touch.collect(members)
    bases = _bases(members, touches)
    _freeze_useless(members, bases)
    groups, atoms = _name_groups(members, bases, solve_even_copies(inference.evens, bases))
    dims = Dimensions(atoms)
    found = [(touch.use, touch.layout(atoms, dims)) for touch in touches]
    by_name: dict[str, list[TensorLayout | None]] = {}
    for use, layout in found:
        by_name.setdefault(use.tensor, []).append(layout)
    layouts = {
        name: several[0]
        for name, several in by_name.items()
        if several[0] is not None and all(layout == several[0] for layout in several)
    }
    private = {
        (use.node, use.index): layout
        for use, layout in found
        if layout is not None and use.tensor not in layouts
    }
    channel_groups = ChannelGroups(
        groups,
        layouts,
        graph_hash(inference.model),
        cost_model(inference, dims),
        {inference.names[value]: tensor for value, tensor in inference.tensors.items()},
        tuple(inference.given_up.values()),
        tuple(inference.contradictions),
    )
    return Solution(model, channel_groups, inference, dims, private)


def _freeze_matching(inference: AxisInference, pattern: str) -> None:
    matched = False
    held = [(value.name or "", axes) for value, axes in inference.axes.items()]
    held += [(use.tensor, use.axes) for use in inference.uses]
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


def _bases(members: Mapping[Axis, list[Member]], touches: Iterable[Touch]) -> dict[Axis, str]:
    """The atoms that are channels, and after which weight each is named."""
    whole = {
        (touch.use.tensor, position): atoms.keys() if len(atoms) == 1 else ()
        for touch in touches
        for position, atoms in enumerate(touch.atoms)
    }
    bases: dict[Axis, str] = {}
    for atom, held in members.items():
        made = [member for member in held if member.role == "made"]
        mixed = [member for member in held if member.role == "mixed"]
        # Pixels of a flattened feature map and the like are not channels.
        if atom.size is not None and (made or any(atom in whole[m.tensor, m.axis] for m in mixed)):
            bases[atom] = made[0].tensor if made else f"{mixed[0].tensor}:in"
    return bases


def _freeze_useless(members: Mapping[Axis, list[Member]], atoms: Iterable[Axis]) -> None:
    """Freeze the atoms that no weight makes, and those that no weight mixes."""
    for atom in atoms:
        first, roles = members[atom][0], {member.role for member in members[atom]}
        for role, reason in _NEEDED.items():
            if not role & roles:
                freeze(atom, Barrier(first.operator, first.node, first.axis, reason))


_NEEDED = {
    frozenset({"made"}): "no weight makes these channels, so there is nothing to copy",
    frozenset({"mixed", "folded"}): (
        "no weight sums over these channels, so no weight can take the coefficients"
    ),
}


def _name_groups(
    members: Mapping[Axis, list[Member]], bases: Mapping[Axis, str], even: EvenCopies
) -> tuple[tuple[ChannelGroup, ...], dict[Axis, str]]:
    """The groups, and the names of the atoms that can split."""
    names: dict[Axis, str] = {}
    used: set[str] = set()
    for atom, base in bases.items():
        name, number = base, 1
        while name in used:
            number += 1
            name = f"{base}#{number}"
        used.add(name)
        names[atom] = name
    groups = tuple(
        ChannelGroup(
            name, atom.size or 0, tuple(members[atom]), atom.barrier, _whole_factor(atom, names, even)
        )
        for atom, name in names.items()
    )
    return groups, {atom: name for atom, name in names.items() if atom.barrier is None}


def _whole_factor(atom: Axis, names: Mapping[Axis, str], even: EvenCopies) -> WholeFactor | None:
    if atom.barrier is not None or atom not in even.because:
        return None
    factor = even.factor[atom]
    tied = (other for other, whose in even.factor.items() if whose is factor and other is not atom)
    return WholeFactor(even.because[atom], tuple(sorted(names[other] for other in tied)))
