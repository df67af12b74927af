"""How the program is run for a recording, found once: its batches all run alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from torch.fx import Node

from growpipe.analyser.program.captured import Recording
from growpipe.analyser.program.fold_norms import FROZEN, FoldedNorm, FoldedNorms, is_fixed

__all__ = ["Schedule", "last_uses"]


def last_uses(nodes: Iterable[Node], kept: AbstractSet[Node]) -> dict[Node, list[Node]]:
    """By node the nodes whose values are no longer needed after it, but for those that are kept."""
    last: dict[Node, Node] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            last[source] = node
    result: dict[Node, list[Node]] = {}
    for source, node in last.items():
        if source not in kept:
            result.setdefault(node, []).append(source)
    return result


@dataclass(frozen=True, eq=False)
class Schedule:
    """What runs how.

    Attributes:
        consumed: by consumer the sources of its recorded edges.
        last_use: see `last_uses`.
        folded: by producer the normalisation behind it, in one with it.
        passed: by normalisation that has nothing left to do what it is folded into.
        frozen: convolutions whose parameters need no gradient.
    """

    consumed: Mapping[Node, Sequence[Node]]
    last_use: Mapping[Node, Sequence[Node]]
    folded: Mapping[Node, FoldedNorm]
    passed: Mapping[Node, FoldedNorm]
    frozen: frozenset[Node]

    @staticmethod
    def of(recording: Recording, norms: FoldedNorms, lasting: AbstractSet[Node]) -> Schedule:
        """Of the foldable normalisations of a program, and the nodes whose values are kept in any case."""
        consumed: dict[Node, list[Node]] = {}
        for consumer, source in recording.edges:
            consumed.setdefault(consumer, []).append(source)
        recorded = recording.constants | recording.inner
        folded = norms.without(recorded | recording.slopes)
        fixed = (n for n in norms.nodes if n.target in FROZEN and is_fixed(n.args[1:], norms.state))
        return Schedule(
            consumed,
            last_uses(norms.nodes, lasting | recorded),
            folded,
            {one.norm: one for one in folded.values()},
            frozenset(fixed),
        )
