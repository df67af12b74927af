"""Where the coefficients go if channels are summed over between two activations, as queries and keys are.

A logit of attention is ``Σ_d q_d k_d``. No weight mixes d, but if the copies of q_d and k_d have the
coefficients of a split on one of the two sides, say on q, the sum stays what it was:

    Σ_d Σ_i (w_i q_d) k_d  =  Σ_d q_d k_d   for Σ_i w_i = 1.

A coefficient reaches q if everything from a weight to the sum is linear: the rows of that weight, and of the
biases that are added on the way, are multiplied by w_i after they are copied and displaced. So

    Σ_i w_i q(θ + ε δ_i) k(θ + ε δ_i)

is the split of the neuron ``q_d k_d`` whose θ are the rows of both sides. Rotary embeddings are linear in q,
and their tables grow with the pairs. A factor 1/√d that stands in the graph stays as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, Barrier, freeze, leaves
from growpipe.graph_ops.axes.rule_api import AxisInference
from growpipe.graph_ops.axes.statements import Contraction
from growpipe.graph_ops.groups.dimensions import Dimensions
from growpipe.graph_ops.groups.linear_way import Edge, LinearWays, NoWay, Place, Way
from growpipe.graph_ops.groups.taken_entries import entries_taken
from growpipe.graph_ops.groups.touches import Touch, marked
from growpipe.graph_ops.operators import operator_name

__all__ = ["fold_into_pairs"]


def fold_into_pairs(inference: AxisInference, touches: Sequence[Touch]) -> None:
    """Let weights on one side of every sum over two activations take the coefficients.

    Channels that are summed over so and have no linear way from a weight are frozen.

    Args:
        inference: the solved axes.
        touches: every use of every weight; those that take coefficients are changed.
    """
    search = _PairSearch(inference, touches)
    for contraction in inference.contractions:
        search.add(contraction)
    search.apply()
    _freeze_disagreeing(touches)


@dataclass(frozen=True)
class _Side:
    """One side of a contraction, which takes the coefficients.

    Attributes:
        operand: the input of the contraction.
        way: from weights to that input.
        entries: by place the entries of the weight's axis that take coefficients; absent if all do.
    """

    operand: int
    way: Way
    entries: Mapping[Place, npt.NDArray[np.bool_]]


_Chosen = dict[Contraction, _Side]


class _PairSearch:
    """The sides that take the coefficients, one contraction after the other.

    A value that takes coefficients can be summed over by several nodes. It is then their side, too.
    """

    def __init__(self, inference: AxisInference, touches: Sequence[Touch]) -> None:
        self._ways = LinearWays(inference, touches)
        self._inference = inference
        self._chosen: _Chosen = {}
        self._at: dict[Edge, Contraction] = {
            (contraction.node, operand): contraction
            for contraction in inference.contractions
            for operand in contraction.operands
        }

    def add(self, contraction: Contraction) -> None:
        """Choose a side of a contraction; freeze what it sums over if neither side can take coefficients."""
        atoms = _atoms(contraction)
        if not atoms or contraction in self._chosen:
            return
        refusals: list[str] = []
        for nearest, operand in itertools.product((False, True), contraction.operands):
            try:
                self._chosen = self._with(contraction, operand, self._chosen, nearest)
                return
            except NoWay as refusal:
                refusals.append(str(refusal))
        because = contraction.because
        why = " and ".join(dict.fromkeys(refusals))
        reason = f"{because.reason}, and no weight before them can take the coefficients: {why}"
        for atom in atoms:
            freeze(atom, Barrier(because.operator, because.node, because.axis, reason))

    def apply(self) -> None:
        """Let the weights at the beginning of the chosen ways take the coefficients."""
        for contraction, side in self._chosen.items():
            for touch, position in side.way.places:
                touch.folded[position] |= _atoms(contraction)
                touch.entries[position] = side.entries.get((touch, position))

    def _with(self, contraction: Contraction, operand: int, chosen: _Chosen, nearest: bool) -> _Chosen:
        """The chosen sides with one more, and with those that it entails.

        Args:
            contraction: what is summed over.
            operand: the side.
            chosen: the sides so far.
            nearest: whether the way ends at the first learned scale.

        Raises:
            NoWay: this side cannot take the coefficients.
        """
        value = contraction.node.inputs[operand]
        assert value is not None
        atoms = _atoms(contraction)
        way = self._ways.to(value, frozenset(atoms), nearest=nearest)
        edges = way.edges | {(contraction.node, operand)}
        edges |= {edge for other in chosen.values() for edge in other.way.edges}
        edges |= {(other.node, side.operand) for other, side in chosen.items()}
        entries = self._entries(way, edges, atoms)
        chosen = {**chosen, contraction: _Side(operand, way, entries)}
        for node, index in self._elsewhere(way, edges, cut=bool(entries)):
            other = self._at.get((node, index))
            if other is None or other in chosen:
                raise NoWay(f"{operator_name(node)} reads the same channels")
            chosen = self._with(other, index, chosen, nearest)
        return chosen

    def _elsewhere(self, way: Way, edges: frozenset[Edge] | set[Edge], *, cut: bool) -> Iterator[Edge]:
        """Who else reads what takes coefficients.

        Args:
            way: the way of the coefficients.
            edges: the readers that may.
            cut: whether the first value of which only a part takes coefficients has been dealt with.
        """
        for value in way.values:
            if cut and self._ways.is_cut(value, way, edges):
                continue
            if value.is_graph_output():
                raise NoWay("its channels are an output of the graph")
            for use in value.uses():
                if (use.node, use.idx) not in edges and use.node.op_type != "Shape":
                    yield use.node, use.idx
            for sibling in self._ways.siblings(value, way):
                raise NoWay(f"{sibling} gives other channels of the same weight")

    def _entries(
        self, way: Way, edges: set[Edge] | frozenset[Edge], atoms: set[Axis]
    ) -> dict[Place, npt.NDArray[np.bool_]]:
        """By place the entries that take coefficients, if a weight makes other channels, too."""
        cut = [value for value in way.values if self._ways.is_cut(value, way, edges)]
        if not cut:
            return {}
        if len(cut) > 1:
            raise NoWay("a weight makes other channels, too, which are cut off more than once")
        places, entries = entries_taken(self._inference, way, edges, cut[0])
        for touch, position in places:
            able = {leaf: str(n) for n, leaf in enumerate(touch.atoms[position]) if leaf.barrier is None}
            try:
                marked(Dimensions(able)(touch.axes[position]), {able[atom] for atom in atoms}, entries)
            except ValueError as error:
                raise NoWay(str(error)) from None
        return dict.fromkeys(places, entries)


def _atoms(contraction: Contraction) -> set[Axis]:
    """The channels that can split of what is summed over."""
    return {leaf for leaf in leaves(contraction.axis) if leaf.barrier is None and leaf.size != 1}


def _freeze_disagreeing(touches: Sequence[Touch]) -> None:
    """Freeze the channels for which one use of a weight asks for coefficients and another one does not."""
    by_base: dict[ir.Value, list[Touch]] = {}
    for touch in touches:
        by_base.setdefault(touch.use.base, []).append(touch)
    for touch in touches:
        for position, folded in enumerate(touch.folded):
            for other in by_base[touch.use.base] if folded else ():
                for atom in folded & other.atoms[position].keys():
                    same = atom in other.folded[position] and atom not in other.mixed[position]
                    if not same or not _equal(touch.entries[position], other.entries[position]):
                        node = other.use.node
                        reason = (
                            f"{touch.use.tensor!r} would take the coefficients of queries and keys for "
                            f"one of its uses and not for another"
                        )
                        freeze(atom, Barrier(operator_name(node), node.name or "", position, reason))


def _equal(one: npt.NDArray[np.bool_] | None, other: npt.NDArray[np.bool_] | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))
