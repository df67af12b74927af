"""Forward and backward passes over micro-batches, and what they leave behind for products S·v."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from growpipe.analyser.curvature.batch import Batch, Constants, Form
from growpipe.analyser.curvature.bent_path import PathProducts, bends_of, path_products, producer_inputs
from growpipe.analyser.curvature.closed_form import ClosedForm, Skeleton, find_chain
from growpipe.analyser.curvature.pairs import Heads, PairForm
from growpipe.analyser.program.binding import Edge
from growpipe.analyser.program.captured import Captured, Recording
from growpipe.analyser.program.pairs import find_pairs
from growpipe.analyser.program.program import Program

__all__ = ["Take", "Visits"]

Take: TypeAlias = Callable[[int, Form, Captured], None]
"""Is given the position of a group, its form, and what was captured so far."""


class Visits:
    """How the groups of a program get what their products need of a batch.

    Args:
        program: the bound program.
        closed_forms: use the closed forms of chains and of queries and keys, and the bends of paths, rather
            than Hessian-vector products.

    Attributes:
        chains: by position the groups that are chains.
        bends: by position where the paths of other groups bend; None if that is not known.
        pairs: by position the groups of queries and keys among those.
        flat: the positions of groups with S = 0.
    """

    def __init__(self, program: Program, closed_forms: bool) -> None:
        self.program = program
        found = [find_chain(group) if closed_forms else None for group in program.groups]
        self.chains = {i: chain for i, chain in enumerate(found) if chain is not None}
        paths = [i for i in range(len(program.groups)) if closed_forms and i not in self.chains]
        self.bends = {i: bends_of(program, program.groups[i]) for i in paths}
        known = {i: bends for i, bends in self.bends.items() if bends is not None}
        pairs = {i: find_pairs(program, program.groups[i]) for i in known}
        self.pairs = {i: pair for i, pair in pairs.items() if pair is not None}
        self.flat = {i for i, bends in known.items() if not bends.sources}
        self._recordings: dict[frozenset[int], Recording] = {}
        self._skeletons: dict[int, Skeleton] = {}
        self._heads: dict[tuple[int, torch.Size], Heads | None] = {}

    def recording(self, positions: Iterable[int]) -> Recording:
        """What products of these groups, and their metric, need of a batch."""
        wanted = frozenset(positions)
        if wanted not in self._recordings:
            chains = [chain for i, chain in self.chains.items() if i in wanted]
            bends = [pair for chain in chains for pair in chain.bends]
            groups = self.program.groups
            flat = [producer_inputs(groups[i]) for i in wanted & self.flat]
            self._recordings[wanted] = self.program.recording(
                [groups[i] for i in sorted(wanted - self.chains.keys() - self.flat)],
                slopes=[activation for activation, _ in bends],
                inner=[source for _, source in bends],
                constants=set().union(*(chain.constants for chain in chains), *flat),
            )
        return self._recordings[wanted]

    def needed(self, positions: AbstractSet[int], forms: AbstractSet[int]) -> tuple[set[Node], set[Edge]]:
        """The constants, and the edges whose gradients, products of some groups read.

        Args:
            positions: of the groups.
            forms: of those among them that have their forms.
        """
        paths = self.recording(positions - forms - self.flat)
        inputs = {self.chains[i].inputs for i in positions & forms & self.chains.keys()}
        return {*paths.constants, *inputs}, set(paths.edges)

    def observe(self, batch: Batch) -> Captured:
        """What a batch leaves constant for all groups, without gradients: one forward pass."""
        recording = self.recording(range(len(self.program.groups)))
        return self.program.observe(batch.inputs, batch.target, batch.loss_fn, recording)

    def visit(self, batch: Batch, positions: AbstractSet[int], take: Take, keep: bool) -> Captured:
        """One forward and one backward pass over a batch.

        Args:
            batch: the batch.
            positions: of the groups that it is for.
            take: called for every chain, and for queries and keys that have a closed form, as soon as the
                backward pass has reached their first activation or their product.
            keep: whether constants that only such groups read are to stay.

        Returns:
            The constants, and the gradients of groups that no form was taken of.
        """
        left = _Left({i: self.recording({i}) for i in positions}, keep)
        waiting: dict[int, set[Any]] = {
            i: {place for place, _ in self.chains[i].bends} for i in positions & self.chains.keys()
        }
        waiting.update({i: set(self.pairs[i].group.edges) for i in positions & self.pairs.keys()})

        def arrived(captured: Captured, place: Any) -> None:
            for position in [i for i, places in waiting.items() if place in places]:
                waiting[position].discard(place)
                if not waiting[position] and (form := self._form(position, captured)) is not None:
                    take(position, form, captured)
                    left.done(position, captured)

        recording = self.recording(positions)
        return self.program.capture(batch.inputs, batch.target, batch.loss_fn, recording, arrived)

    def _form(self, position: int, captured: Captured) -> Form | None:
        """The form of a chain, or that of queries and keys if the bends of their path are more work."""
        if position in self.pairs:
            pairs = self.pairs[position]
            shape = captured.gradients[pairs.group.edges[0]].shape
            if (position, shape) not in self._heads:
                self._heads[position, shape] = Heads.of(self.program, captured, pairs)
            heads = self._heads[position, shape]
            return None if heads is None else PairForm.of(self.program, captured, pairs, heads)
        chain = self.chains[position]
        skeleton = self._skeletons.get(position)
        if skeleton is None and self.program.is_state(chain.constants - {chain.inputs}):
            skeleton = self._skeletons[position] = Skeleton.of(chain, self.program, captured)
        return ClosedForm.of(chain, self.program, captured, skeleton)

    def path(self, position: int, captured: Captured) -> PathProducts:
        """The products of a group that no form was taken of; it holds what it needs of the captured alone."""
        constants, edges = self.needed({position}, set())
        own = captured.only(constants, edges)
        return path_products(self.program, own, self.program.groups[position], self.bends.get(position))

    def only(self, constants: Constants, positions: AbstractSet[int]) -> Constants:
        """Of what is held constant that which the products of some groups need."""
        forms = {i: form for i, form in constants.forms.items() if i in positions}
        left = constants.positions & positions
        nodes, edges = self.needed(left, forms.keys())
        return Constants(left, constants.captured.only(nodes, edges), forms)

    def has_all(self, captured: Captured) -> bool:
        """Whether the constants of all groups are there."""
        return self.recording(range(len(self.program.groups))).constants <= captured.constants.keys()

    @property
    def device(self) -> torch.device:
        """Where the program runs."""
        return self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model."""
        return self._weight.dtype

    @property
    def _weight(self) -> torch.Tensor:
        return self.program.tensor(self.program.groups[0].blocks[0].tensor)

    def expected_bytes(self, observed: Captured, positions: AbstractSet[int], dtype: torch.dtype) -> int:
        """What keeping a batch for some groups takes, but for the forms of queries and keys, which are small.

        Args:
            observed: the constants of a batch as large for all groups; their values are not read.
            positions: of the groups.
            dtype: the type in which it is kept.
        """
        nodes, edges = self.needed(positions, positions & (self.chains.keys() | self.pairs.keys()))
        entries = sum(
            observed.sizes[activation] * (1 if activation is chain.steps[-1] else 2)
            for i, chain in self.chains.items()
            if i in positions
            for activation, _ in chain.bends
        )
        entries += sum(observed.sizes[source] for _, source in edges)
        return observed.only(nodes, set()).cast(dtype).nbytes + entries * dtype.itemsize


class _Left:
    """How many groups still need what a visit takes down.

    Args:
        recordings: by position of the group what it needs.
        keep: whether constants stay when no group needs them.
    """

    def __init__(self, recordings: Mapping[int, Recording], keep: bool) -> None:
        self._places: dict[int, list[tuple[str, Any]]] = {
            i: [
                *(("gradients", edge) for edge in recording.edges),
                *(("slopes", node) for node in recording.slopes),
                *(("inner", node) for node in recording.inner),
                *(("constants", node) for node in (() if keep else recording.constants)),
            ]
            for i, recording in recordings.items()
        }
        # Two groups share an activation where a depthwise convolution makes channels of its own.
        self._counts = Counter(place for places in self._places.values() for place in places)

    def done(self, position: int, captured: Captured) -> None:
        """A group needs nothing more: what it was the last to need goes."""
        for kind, place in self._places[position]:
            self._counts[kind, place] -= 1
            if self._counts[kind, place] == 0:
                getattr(captured, kind).pop(place, None)
