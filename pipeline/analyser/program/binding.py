"""Where a channel group lives in an exported program: producers, per-channel path, consumer edges.

Channel groups are found on the ONNX graph and nowhere else; a group names its tensors, and initializers keep
the parameter names. So the part of the program between the named producers and consumers is found by
reachability, without a second table of rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from growpipe.analyser.program.aten import SUMS_OVER_CHANNELS
from growpipe.analyser.program.block import Block
from growpipe.analyser.program.displaced_entries import DisplacedEntries
from growpipe.analyser.program.kernel_window import KernelWindow, kernel_windows
from growpipe.graph_ops.axes.dims import channel_rows
from growpipe.graph_ops.axes.layouts import TensorLayout
from growpipe.graph_ops.errors import CheckFailed, UsageError
from growpipe.graph_ops.groups.channel_groups import ChannelGroup, Member

__all__ = ["DISPLACEABLE", "BoundGroup", "Edge", "bind_groups", "placeholders"]

Edge = tuple[Node, Node]
"""A consumer edge: the mixing consumer, and the node whose value enters it."""

DISPLACEABLE = ("weights", "filters", "biases", "affine")
"""Weights of mixing producers, depthwise filters, the biases of both, batch-norm scale and shift."""


@dataclass(frozen=True, eq=False)
class BoundGroup:
    """A channel group and its place in the program.

    Attributes:
        group: the channel group.
        blocks: what is displaced, θ.
        path: every node whose value depends on θ and reaches a consumer edge.
        parameters: the nodes of ``path`` that depend on parameters alone.
        cut: the nodes of ``path`` whose data inputs are held constant (the mixing producers).
        edges: the consumer edges e, (consumer, source).
        sums: the nodes of ``path`` that sum over the channels of two activations; whatever reads them is a
            consumer.
    """

    group: ChannelGroup
    blocks: tuple[Block, ...]
    path: frozenset[Node] = field(repr=False)
    parameters: frozenset[Node] = field(repr=False)
    cut: frozenset[Node] = field(repr=False)
    edges: tuple[Edge, ...] = field(repr=False)
    sums: frozenset[Node] = field(default=frozenset(), repr=False)

    @property
    def name(self) -> str:
        return self.group.name

    @property
    def width(self) -> int:
        return self.group.width

    @property
    def dimension(self) -> int:
        """The number of displaced entries per channel, d."""
        return sum(block.dimension for block in self.blocks)

    @cached_property
    def windows(self) -> dict[str, KernelWindow]:
        """By name of a tensor the part of its kernel that is displaced, if that is not all."""
        return {block.tensor: block.window for block in self.blocks if block.window is not None}

    def whole(self) -> BoundGroup:
        """The same group with all taps of all kernels displaced."""
        return replace(self, blocks=tuple(block.whole() for block in self.blocks))

    @property
    def entries(self) -> int:
        """The entries of one vector per channel."""
        return self.width * self.dimension

    @property
    def sizes(self) -> list[int]:
        return [block.dimension for block in self.blocks]

    def varies(self, source: Node, user: Node) -> bool:
        """Whether ``user`` sees ``source`` as a function of θ."""
        if source not in self.path or source in self.sums or user not in self.path:
            return False
        return user not in self.cut or source in self.parameters


def placeholders(program: ExportedProgram) -> dict[Node, str]:
    """The name of the parameter, buffer or constant behind every placeholder that is not a user input."""
    names = {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if spec.kind is not InputKind.USER_INPUT and spec.target is not None
    }
    return {
        node: names[node.name]
        for node in program.graph_module.graph.nodes
        if node.op == "placeholder" and node.name in names
    }


_BIASED = {"Add", "Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "RNN"}
"""The operators whose input A, B or C may be a bias."""


def _is_displaced(member: Member, displace: Sequence[str]) -> bool:
    if member.role == "made":
        return "weights" in displace
    if member.role != "carried":
        return False
    convolution = member.operator in {"Conv", "ConvTranspose"}
    if convolution and member.input == "W":
        return "filters" in displace
    if member.operator in _BIASED and member.input in {"A", "B", "C"}:
        return "biases" in displace
    return member.operator == "BatchNormalization" and member.input in {"scale", "B"} and "affine" in displace


def bind_groups(
    program: ExportedProgram,
    groups: Iterable[ChannelGroup],
    layouts: Mapping[str, TensorLayout],
    aliases: Mapping[str, str],
    displace: Sequence[str] = ("weights",),
) -> tuple[BoundGroup, ...]:
    """Find every group in the program.

    Args:
        program: functional ATen, in evaluation mode.
        groups: the groups to find; all splittable.
        layouts: of every tensor of the groups.
        aliases: for every parameter name of the program the name under which the groups know it (they
            differ for tied parameters).
        displace: what is displaced, a selection of `DISPLACEABLE`.

    Raises:
        UsageError: ``displace`` names something else.
        CheckFailed: a group's producers or consumers are not in the program.
    """
    unknown = [name for name in displace if name not in DISPLACEABLE]
    if unknown or not displace:
        raise UsageError(
            f"displace names what is displaced, some of {', '.join(DISPLACEABLE)}; not {', '.join(unknown)}"
        )
    nodes = list(program.graph_module.graph.nodes)
    names = {node: aliases.get(name, name) for node, name in placeholders(program).items()}
    windows = kernel_windows(nodes, names)
    constant = _constant_nodes(nodes, names)
    bound = (_bind(nodes, names, constant, windows, group, layouts, displace) for group in groups)
    return tuple(group for group in bound if group is not None)


def _constant_nodes(nodes: Sequence[Node], names: Mapping[Node, str]) -> dict[Node, frozenset[str]]:
    """The nodes that depend on no input, and the parameters each is computed from."""
    constant: dict[Node, frozenset[str]] = {}
    for node in nodes:
        if node.op == "placeholder":
            if node in names:
                constant[node] = frozenset({names[node]})
        elif node.op == "get_attr":
            constant[node] = frozenset()
        elif node.op == "call_function" and all(source in constant for source in node.all_input_nodes):
            constant[node] = frozenset().union(*(constant[source] for source in node.all_input_nodes))
    return constant


def _bind(
    nodes: Sequence[Node],
    names: Mapping[Node, str],
    constant: Mapping[Node, frozenset[str]],
    windows: Mapping[str, KernelWindow],
    group: ChannelGroup,
    layouts: Mapping[str, TensorLayout],
    displace: Sequence[str],
) -> BoundGroup | None:
    """Find one group: what is displaced, what varies with it, and where the variation is mixed.

    None for queries and keys whose products are an output of the program, which the loss reads itself.

    Args:
        nodes: of the program, in topological order.
        names: the parameter behind every placeholder that is not a user input.
        constant: see `_constant_nodes`.
        windows: see `kernel_windows`.
        group: the group to find.
        layouts: of every tensor of the group.
        displace: a selection of `DISPLACEABLE`.

    Raises:
        CheckFailed: a producer or consumer of the group is not in the program.
    """
    _require_tensors(group, set(names.values()))
    blocks = _blocks(group, layouts, windows, displace, set(names.values()))
    entries = DisplacedEntries([(block.tensor, block.axis, block.rows) for block in blocks], names)
    reach = _trace(nodes, names, constant, group, entries)
    if any(user.op == "output" for node in reach.sums for user in node.users):
        return None
    if not reach.edges:
        raise CheckFailed(
            f"group {group.name!r}: no consumer is reached from its displaced tensors in the exported "
            f"program; freeze the group"
        )
    useful = _reaching(reach.edges, reach.varying, reach.cut, constant)
    used = {names[node] for node in useful if node in names}
    return BoundGroup(
        group,
        tuple(block for block in blocks if block.tensor in used),
        frozenset(useful),
        frozenset(node for node in useful if node in constant),
        frozenset(reach.cut & useful),
        tuple(reach.edges),
        frozenset(reach.sums & useful),
    )


def _require_tensors(group: ChannelGroup, known: set[str]) -> None:
    """Raise a CheckFailed if a weight that makes or mixes the channels is not in the program."""
    for role in ("made", "mixed"):
        for tensor in sorted(_tensors(group, role) - known):
            raise CheckFailed(
                f"group {group.name!r}: its tensor {tensor!r} is not a parameter of the exported program; "
                f"freeze the group or register the tensor as a parameter"
            )


def _tensors(group: ChannelGroup, role: str) -> set[str]:
    return {member.tensor for member in group.members if member.role == role}


def _blocks(
    group: ChannelGroup,
    layouts: Mapping[str, TensorLayout],
    windows: Mapping[str, KernelWindow],
    displace: Sequence[str],
    known: set[str],
) -> tuple[Block, ...]:
    """The group's θ: one block per displaced axis of a tensor.

    A tensor with two entries per channel on one axis, such as a fused gate and up projection, is one block.
    """
    places = dict.fromkeys(
        (member.tensor, member.axis, member.role == "made")
        for member in group.members
        if _is_displaced(member, displace) and member.tensor in known
    )
    return tuple(
        Block(
            tensor,
            axis,
            torch.from_numpy(channel_rows(layouts[tensor].axes[axis].dim, group.name)),
            layouts[tensor].shape,
            mixing,
            windows.get(tensor),
        )
        for tensor, axis, mixing in places
    )


@dataclass(frozen=True, eq=False)
class _Reach:
    """What depends on a group's θ, consumers left out.

    Attributes:
        varying: the nodes whose values depend on θ.
        cut: those of them that are mixing producers, whose data inputs are held constant.
        edges: the consumer edges that a varying value enters.
        sums: those of the varying nodes that sum over the channels of two varying values, such as queries and
            keys; all that reads them is a consumer.
    """

    varying: set[Node]
    cut: set[Node]
    edges: list[Edge]
    sums: set[Node]


def _trace(
    nodes: Sequence[Node],
    names: Mapping[Node, str],
    constant: Mapping[Node, frozenset[str]],
    group: ChannelGroup,
    entries: DisplacedEntries,
) -> _Reach:
    """Follow θ forward from its tensors to the group's consumers."""
    made, mixed = _tensors(group, "made"), _tensors(group, "mixed")
    reach = _Reach({node for node in nodes if names.get(node) in entries.rows}, set(), [], set())
    for node in nodes:
        if node.op != "call_function":
            continue
        reach.edges.extend((node, source) for source in node.all_input_nodes if source in reach.sums)
        reached = [s for s in node.all_input_nodes if s in reach.varying and s not in reach.sums]
        sources = entries.moving(node, reached)
        if node in constant:
            if sources:
                reach.varying.add(node)
            continue
        data = [source for source in sources if source not in constant]
        parameters_vary = len(data) < len(sources)
        origins = frozenset[str]().union(*(constant.get(source, ()) for source in node.all_input_nodes))
        if origins & mixed:
            reach.edges.extend((node, source) for source in data)
        if origins & made:
            if parameters_vary:
                reach.varying.add(node)
                reach.cut.add(node)
                entries.start(node, [source for source in sources if source in constant])
        elif sources and not origins & mixed:
            reach.varying.add(node)
            if group.of_pairs and len(data) > 1 and node.target in SUMS_OVER_CHANNELS:
                reach.sums.add(node)
    return reach


def _reaching(
    edges: Sequence[Edge], varying: set[Node], cut: set[Node], constant: Mapping[Node, frozenset[str]]
) -> set[Node]:
    """The varying nodes from which an edge can be reached."""
    useful: set[Node] = set()
    pending = [source for _, source in edges]
    while pending:
        node = pending.pop()
        if node in useful:
            continue
        useful.add(node)
        pending.extend(
            source
            for source in node.all_input_nodes
            if source in varying and (node not in cut or source in constant)
        )
    return useful
