"""The network with every channel in two displaced copies, at about the price of two passes instead of four.

A grown network is wider at both ends of every weight. Here the copies of a channel go side by side as far as
the consumers, which read ``Σ_i w_i σ(θ + ε δ_i)`` as one channel: the same function, with consumers of the
old width. Groups meet in consumers only, so all groups are split at once, each as far as its own step says.
Groups that are nested, such as the heads of an attention and the channels within a head, are the exception
(see `split_networks`), but for queries and keys. With opposite displacements ±δ and ±η their scores are

    ½ Σ_± (q ± ε xδᵀ) (k ± ε yηᵀ)ᵀ = q kᵀ + ε² (xδᵀ) (yηᵀ)ᵀ

whatever copy of its head a query or key belongs to. So they have no copies: the scores get a further term.
Such channels are means of their copies: the others stay as they are, and with ``w_i`` = ½ the displacements
are opposite.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from growpipe.analyser.program.aten import CONVOLUTIONS, aten
from growpipe.analyser.program.binding import BoundGroup, Edge
from growpipe.analyser.program.copies import Pair, displaced, mixed
from growpipe.analyser.program.fold_norms import scaled
from growpipe.analyser.program.lifetimes import last_uses
from growpipe.analyser.program.pairs import Pairs, find_pairs
from growpipe.analyser.program.program import Program
from growpipe.analyser.program.values import scalar_loss
from growpipe.graph_ops.axes.dims import Dim, atoms_of, channel_rows
from growpipe.graph_ops.axes.layouts import TensorLayout
from growpipe.torch_module.outputs import LossFunction

__all__ = ["SplitNetwork", "apart", "split_networks"]

_COPIES = range(2)

_Read = Callable[[Node, Node, int], Any]
"""``(source, user, copy) →`` the value of a node as one copy of another one sees it."""


def split_networks(
    program: Program, pairs: Mapping[str, Pair], layouts: Mapping[str, TensorLayout]
) -> list[SplitNetwork]:
    """All groups split into pairs, in as few networks as it takes; see `SplitNetwork`."""
    groups = [group for group in program.groups if group.name in pairs]
    without = {group.name for group in groups if _without_copies(program, group)}
    parts = apart([group.name for group in groups], layouts, without)
    return [SplitNetwork(program, {name: pairs[name] for name in part}, layouts) for part in parts]


def _without_copies(program: Program, group: BoundGroup) -> Pairs | None:
    """Queries and keys that add a term to their scores; None if the group needs copies."""
    return find_pairs(program, group) if group.sums else None


def apart(
    groups: Sequence[str], layouts: Mapping[str, TensorLayout], without_copies: Container[str] = ()
) -> list[list[str]]:
    """The groups in as few parts as a greedy search finds, so that no two groups of a part are nested.

    Two groups are nested if one entry of a tensor belongs to a channel of each.

    Args:
        groups: their names.
        layouts: of their tensors.
        without_copies: those that need no copies, and so may be nested with a group that does.
    """
    nested: dict[str, set[str]] = {group: set() for group in groups}
    for layout in layouts.values():
        for axis in layout.axes:
            for one, other in _overlapping(axis.dim, nested):
                if (one in without_copies) == (other in without_copies):
                    nested[one].add(other)
    parts: list[list[str]] = []
    for group in groups:
        free = next((part for part in parts if nested[group].isdisjoint(part)), None)
        if free is None:
            parts.append([group])
        else:
            free.append(group)
    return parts


def _overlapping(dim: Dim, groups: Container[str]) -> Iterator[tuple[str, str]]:
    """The pairs of groups with an entry of an axis in common, in both orders."""
    found = dict.fromkeys(atom.name for atom in atoms_of(dim) if atom.name in groups)
    entries = {name: set(channel_rows(dim, name).flat) for name in found}
    for one, other in itertools.permutations(entries, 2):
        if not entries[one].isdisjoint(entries[other]):
            yield one, other


@dataclass(frozen=True, eq=False)
class _Copies:
    """The values of a node, one per copy."""

    values: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class _Producer:
    """A convolution or linear map whose weight moves, and nothing else of it.

    Attributes:
        position: of its group.
        weight: the node of its weight.
        delta: δ of the first copy, of the weight's shape.
        ratio: r of what it makes, which broadcasts to that; None if it is −1 everywhere.
    """

    position: int
    weight: Node
    delta: Tensor
    ratio: Tensor | None


@dataclass(frozen=True, eq=False)
class _Term:
    """What queries and keys that are displaced by ±ε add to their scores.

    Attributes:
        position: of their group.
        scores: the node of the scores.
        producers: by producer the node of its input, and δ as a matrix that the input is multiplied by.
    """

    position: int
    scores: Node
    producers: Mapping[Node, tuple[Node, Tensor]]

    @staticmethod
    def of(position: int, pairs: Pairs, deltas: Mapping[str, Tensor]) -> _Term:
        """From δ of the first copy by tensor."""
        producers: dict[Node, tuple[Node, Tensor]] = {}
        for side in (pairs.query, pairs.key):
            producers[side.producer] = side.source, side.rows(deltas[side.tensor]).mT
        return _Term(position, pairs.scores, producers)


class SplitNetwork:
    """Groups of a program split into pairs.

    A channel whose copies do not count alike needs to be found on the input axis of its consumers. That is
    known of convolutions and linear maps; a group with other consumers leaves such channels as they are.

    Args:
        program: the bound program.
        pairs: by group its copies; no two groups are nested, unless one of them needs no copies. Groups that
            are left out do not split.
        layouts: of the tensors of the groups.
    """

    def __init__(
        self, program: Program, pairs: Mapping[str, Pair], layouts: Mapping[str, TensorLayout]
    ) -> None:
        self.program = program
        self.groups = [group for group in program.groups if group.name in pairs]
        self._layouts = layouts
        self.pairs = {group.name: self._usable(group, pairs[group.name]) for group in self.groups}
        self._deltas = [self._displacements(group) for group in self.groups]
        self._ratios = [self._ratios_of(group) for group in self.groups]
        self._on_path: dict[Node, list[int]] = {}
        self._terms: dict[Node, list[_Term]] = {}
        for position, group in enumerate(self.groups):
            without = _without_copies(program, group)
            for node in group.path:
                if without is None:
                    self._on_path.setdefault(node, []).append(position)
            if without is not None:
                term = _Term.of(position, without, self._deltas[position])
                for node in without.nodes:
                    self._terms.setdefault(node, []).append(term)
        self._shares = {edge: self._share(edge) for group in self.groups for edge in group.edges}
        self._producers = {n: found for n in self._on_path if (found := self._producer(n)) is not None}
        folded = program.folded_norms(self._folds)
        self._folded = {one.made: one for one in folded}
        self._passed = {one.norm: one for one in folded}
        self._last_use = last_uses(program.nodes, program.lasting)

    def _usable(self, group: BoundGroup, pair: Pair) -> Pair:
        """The pair, without what cannot be mixed at the group's consumers."""
        known = pair.uniform or (
            not group.sums and all(self._input_axis(consumer) for consumer, _ in group.edges)
        )
        return pair if known else pair.halved()

    def _displacements(self, group: BoundGroup) -> dict[str, Tensor]:
        """By tensor δ of the first copy, of the tensor's shape."""
        parts = self.pairs[group.name].displacement.split(group.sizes, dim=-1)
        return {block.tensor: block.scatter(part) for block, part in zip(group.blocks, parts, strict=True)}

    def _ratios_of(self, group: BoundGroup) -> dict[str, Tensor] | None:
        """By tensor r along the axis on which its channels stand; None where all are −1."""
        pair = self.pairs[group.name]
        if pair.uniform:
            return None
        found = {}
        for block in group.blocks:
            like = self.program.tensor(block.tensor)
            ratio = like.new_full((block.shape[block.axis],), -1.0)
            rows = block.rows.to(like.device)
            ratio[rows.reshape(-1)] = pair.ratio.to(like).repeat_interleave(rows.shape[1])
            found[block.tensor] = ratio.reshape(-1, *[1] * (len(block.shape) - 1 - block.axis))
        return found

    def _input_axis(self, consumer: Node) -> tuple[int, TensorLayout] | None:
        """The axis of a consumer's input on which its channels stand, and the layout of its weight."""
        weight = consumer.args[1] if len(consumer.args) > 1 else None
        layout = self._layouts.get(self.program.names.get(weight, "")) if isinstance(weight, Node) else None
        if layout is None:
            return None
        if consumer.target is aten.linear.default:
            return -1, layout
        grouped = len(consumer.args) > 6 and consumer.args[6] != 1
        return (1, layout) if consumer.target in CONVOLUTIONS and not grouped else None

    def _share(self, edge: Edge) -> Tensor | None:
        """w_2 at a consumer's input, which broadcasts to it; None where all are ½."""
        consumer, source = edge
        here = [group for group in self.groups if edge in group.edges]
        if all(self.pairs[group.name].uniform for group in here):
            return None
        found = self._input_axis(consumer)
        assert found is not None
        axis, layout = found
        like = self.program.tensor(here[0].blocks[0].tensor)
        share = torch.full((layout.shape[1],), 0.5, dtype=like.dtype)
        for group in here:
            rows = torch.from_numpy(channel_rows(layout.axes[1].dim, group.name))
            own = self.pairs[group.name].weights[1].to(share)
            share[rows.reshape(-1)] = own.repeat_interleave(rows.shape[1])
        behind = source.meta["val"].ndim - 2 if axis == 1 else 0
        return share.reshape(-1, *[1] * behind).to(like.device)

    def slopes(
        self, inputs: Any, target: Any, loss_fn: LossFunction, steps: Sequence[float]
    ) -> tuple[float, Tensor]:
        """The mean loss of a batch, and its derivative by the step of every group.

        Args:
            inputs: those of the batch.
            target: its target.
            loss_fn: the mean loss.
            steps: ε of every group.

        Returns:
            The loss, and ∂L/∂ε, float64 [groups]; not finite where the loss is not.
        """
        reference = self.program.tensor(self.groups[0].blocks[0].tensor)
        with torch.enable_grad(), self.program.multiplying():
            moved = torch.tensor(steps, dtype=reference.dtype, device=reference.device).requires_grad_()
            loss = scalar_loss(loss_fn(self._output(inputs, moved, steps), target))
            (slopes,) = torch.autograd.grad(loss.reshape(()), moved)
        return float(loss.detach()), slopes.double()

    def _output(self, inputs: Any, steps: Tensor, sizes: Sequence[float]) -> Any:
        """The output.

        Args:
            inputs: those of the batch.
            steps: ε of every group.
            sizes: the values of ``steps``.
        """
        program = self.program
        values: dict[Node, Any] = program.start(inputs)
        own = steps.unbind()
        parameters: dict[tuple[Node, tuple[int, ...], int], Tensor] = {}
        moved: dict[tuple[int, Node], Tensor] = {}

        def read(source: Node, user: Node, copy: int) -> Any:
            """The value of a node as one copy of another one sees it."""
            value = values[source]
            positions = tuple(p for p in self._on_path.get(user, ()) if self.groups[p].varies(source, user))
            if positions and source in program.names:
                key = (source, positions, copy)
                if key not in parameters:
                    parameters[key] = self._displaced(source, value, positions, own, copy)
                return parameters[key]
            if not isinstance(value, _Copies):
                return value
            return value.values[copy] if positions else self._mix(value, (user, source))

        for node in program.nodes:
            if node in self._producers:
                values[node] = self._copies(node, read, own, sizes)
            elif node in self._on_path:
                values[node] = _Copies(tuple(self._call(node, read, copy) for copy in _COPIES))
            else:
                values[node] = self._call(node, read, 0)
            for term in self._terms.get(node, ()):
                self._follow(term, node, values, moved, own, read)
            for dead in self._last_use.get(node, ()):
                values.pop(dead, None)
        return program.output(
            {node: value.values[0] if isinstance(value, _Copies) else value for node, value in values.items()}
        )

    def _call(self, node: Node, read: _Read, copy: int) -> Any:
        """The value of a node as one copy has it."""

        def own_read(source: Node) -> Any:
            return read(source, node, copy)

        if node in self._passed:
            return self._passed[node].passed(own_read(node.all_input_nodes[0]))
        folded = self._folded.get(node)
        return self.program.call(node, own_read) if folded is None else folded(own_read)

    def _follow(
        self,
        term: _Term,
        node: Node,
        values: dict[Node, Any],
        moved: dict[tuple[int, Node], Tensor],
        steps: Sequence[Tensor],
        read: _Read,
    ) -> None:
        """One node further on the way of displaced queries and keys to their scores.

        Args:
            term: what they add.
            node: the node.
            values: of the nodes so far; that of the scores gets the term.
            moved: by position of the group and node how its value is displaced, so far.
            steps: ε of every group.
            read: the value of a node as one copy of another one sees it.
        """
        position = term.position
        if node in term.producers:
            source, delta = term.producers[node]
            moved[position, node] = read(source, node, 0) @ delta * steps[position]
            return
        found = self.program.call(
            node, lambda s: moved[position, s] if (position, s) in moved else read(s, node, 0)
        )
        if node is not term.scores:
            moved[position, node] = found
            return
        for place in [place for place in moved if place[0] == position]:
            del moved[place]
        scores = values[node]
        copies = scores.values if isinstance(scores, _Copies) else (scores,)
        added = tuple(copy + found for copy in copies)
        values[node] = _Copies(added) if isinstance(scores, _Copies) else added[0]

    def _displaced(
        self, source: Node, value: Tensor, positions: Sequence[int], steps: Sequence[Tensor], copy: int
    ) -> Tensor:
        """A parameter as one copy has it, displaced for the groups at these positions."""
        name = self.program.names[source]
        for position in positions:
            if name in self._deltas[position]:
                moved, ratios = steps[position] * self._deltas[position][name], self._ratios[position]
                value = value + (moved if copy == 0 else -moved if ratios is None else ratios[name] * moved)
        return value

    def _mix(self, value: _Copies, edge: Edge) -> Any:
        """What a consumer reads of the copies."""
        first, second = value.values
        return mixed(first, second, self._shares.get(edge)) if isinstance(first, Tensor) else first

    def _producer(self, node: Node) -> _Producer | None:
        """A producer of one group whose weight alone moves; None for any other node."""
        positions = self._on_path[node]
        affine = node.target in CONVOLUTIONS or node.target is aten.linear.default
        if len(positions) != 1 or node not in self.groups[positions[0]].cut or not affine or node.kwargs:
            return None
        (position,) = positions
        weight = node.args[1]
        varying = [s for s in node.all_input_nodes if self.groups[position].varies(s, node)]
        if not isinstance(weight, Node) or varying != [weight] or weight not in self.program.names:
            return None
        name, ratios = self.program.names[weight], self._ratios[position]
        # Output channels are axis 0 of the weight, and stand before the axes of space.
        behind = [1] * CONVOLUTIONS.get(node.target, 0)
        ratio = None if ratios is None else ratios[name].reshape(-1, *behind)
        return _Producer(position, weight, self._deltas[position][name], ratio)

    def _folds(self, made: Node, norm: Node) -> bool:
        """Whether a producer and the normalisation behind it may run as one.

        They are on the same paths, and nothing of theirs moves but the weight of one of `_producers`.
        """
        displaced = set().union(*self._deltas)
        sources = [source for node in (made, norm) for source in node.all_input_nodes]
        moving = {source for source in sources if self.program.names.get(source) in displaced}
        if made in self._producers:
            moving.discard(self._producers[made].weight)
        return not moving and self._on_path.get(made) == self._on_path.get(norm)

    def _copies(self, node: Node, read: _Read, steps: Sequence[Tensor], sizes: Sequence[float]) -> _Copies:
        """The copies of one of `_producers`, by what its displacement adds to it."""
        producer, folded = self._producers[node], self._folded.get(node)
        position, delta = producer.position, producer.delta
        x, bias, *rest = map_arg((node.args[0], *(node.args[2:] or (None,))), lambda s: read(s, node, 0))
        weight = self.program.parameter(producer.weight)
        if folded is not None:
            weight, bias, delta = folded.weight, folded.offset, scaled(delta, folded.factor)
        still = self.program.apply(node, x, weight, bias, *rest)
        moved = self.program.apply(node, x, delta, None, *rest)
        return _Copies(displaced(still, moved, steps[position], sizes[position], producer.ratio))
