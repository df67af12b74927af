"""Which entries of a value are displaced, followed through operators that only move entries.

One matrix may make queries, keys and values at once. If a group displaces a part of its rows, the values that
the others make are constant, though they are computed from a displaced tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from growpipe.analyser.program.aten import (
    CONVOLUTIONS,
    MATRIX_PRODUCTS,
    REINDEXING,
    RESHAPES,
    aten,
    operator_name,
)

__all__ = ["DisplacedEntries"]


class DisplacedEntries:
    """Marks of the displaced entries, by node, for a batch of the size that the program was traced with.

    Attributes:
        rows: by displaced tensor its displaced axes, and which entries of each.

    Args:
        displaced: names of tensors, an axis of each, and its displaced entries.
        names: the parameter behind every placeholder that is not a user input.
    """

    def __init__(self, displaced: Iterable[tuple[str, int, Tensor]], names: Mapping[Node, str]) -> None:
        self.rows: dict[str, list[tuple[int, Tensor]]] = {}
        for tensor, axis, entries in displaced:
            self.rows.setdefault(tensor, []).append((axis, entries))
        self._names = names
        self._marks: dict[Node, Any] = {}

    def start(self, producer: Node, parameters: Iterable[Node]) -> None:
        """Mark what a mixing producer makes of displaced parameters, where it is known."""
        if producer.target in MATRIX_PRODUCTS:
            axis, weight = -1, producer.args[MATRIX_PRODUCTS[producer.target][1]]
        elif producer.target in CONVOLUTIONS:
            axis, weight = 1, producer.args[1]
        else:
            return
        shape = _sizes(producer)
        if shape is None:
            return
        by_rows = producer.target in CONVOLUTIONS or producer.target is aten.linear.default
        mark = torch.zeros(shape, dtype=torch.bool)
        for node in parameters:
            if node not in self._names:
                return
            for displaced, rows in self.rows[self._names[node]]:
                # A bias has one axis.
                if displaced != (0 if by_rows or node is not weight else 1):
                    return
                mark.index_fill_(axis, rows.reshape(-1), True)
        self._marks[producer] = mark

    def moving(self, node: Node, sources: Sequence[Node]) -> Sequence[Node]:
        """Those of the varying arguments of a node that move it: none if it has no displaced entry."""
        if len(sources) != 1 or sources[0] not in self._marks or operator_name(node) not in REINDEXING:
            return sources
        (source,) = sources
        if node.args[0] is not source:
            return sources
        sizes = {other: _size(other) for other in node.all_input_nodes if other is not source}
        if None in sizes.values():
            return sources
        made = RESHAPES.get(node.target, node.target)(  # type: ignore[operator]
            *map_arg(node.args, {**sizes, source: self._marks[source]}.__getitem__), **node.kwargs
        )
        self._marks[node] = made
        return sources if any(bool(part.any()) for part in pytree.tree_leaves(made)) else []


def _size(node: Node) -> int | None:
    """What a node that is a length was when the program was traced."""
    made = node.meta.get("val")
    size = made.node.hint if isinstance(made, torch.SymInt) else made
    return size if isinstance(size, int) else None


def _sizes(node: Node) -> list[int] | None:
    """The lengths of the axes of a value when the program was traced."""
    made = node.meta.get("val")
    if not isinstance(made, Tensor):
        return None
    return [int(d.node.hint) if isinstance(d, torch.SymInt) else int(d) for d in made.shape]
