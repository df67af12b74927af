"""What of the micro-batches is kept between products, within a limit of memory."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import torch

from growpipe.analyser.curvature.batch import Batch, Constants, Form
from growpipe.analyser.curvature.bent_path import PathProducts
from growpipe.analyser.curvature.heap import give_back
from growpipe.analyser.curvature.visits import Take, Visits
from growpipe.analyser.program.captured import Captured

__all__ = ["Keeping"]


@dataclass
class Keeping:
    """Decides what products compute again.

    To leave out a pass over the whole program is worth most. So what such a pass has left of a batch goes
    before the runs of single paths: those are kept once all batches have the former. If memory is short, what
    the groups at hand do not need makes room.

    Attributes:
        visits: how the groups get what they need.
        limit: the bytes to keep; None for unlimited.
        storage: the floating type of what is kept; that of the model by default. With another one no more is
            kept than before the first product, so that all products over a batch are alike, and no runs of
            paths: autograd would hold their values in the model's type all the same.
        batches: all of them.
    """

    visits: Visits
    limit: int | None
    storage: torch.dtype | None
    batches: list[Batch] = field(default_factory=list)
    _observed: tuple[Captured, int] | None = field(default=None, init=False, repr=False)
    _found: dict[frozenset[int], float] = field(default_factory=dict, init=False, repr=False)

    @property
    def used(self) -> int:
        """The bytes that are kept."""
        return sum(batch.nbytes for batch in self.batches)

    def add(self, batch: Batch) -> Captured | None:
        """Take one more batch, and keep of it what products of all groups need if there is room.

        Returns:
            What it leaves constant, if that was found out.

        Raises:
            CheckFailed: its loss or a gradient is not finite. What is not kept is checked when it is used.
        """
        self.batches.append(batch)
        every = frozenset(range(len(self.visits.program.groups)))
        left = None if self.limit is None else self.limit - self.used
        if left is not None:
            if left <= 0:
                return None
            if self._observed is None:
                # To find out by keeping it would take more memory than there may be.
                self._observed = self.visits.observe(batch).without_memory(), batch.samples
            if self._expected(every, batch.samples) > left:
                return self._observed[0]
        forms: dict[int, Form] = {}
        captured = self.visits.visit(
            batch, every, lambda position, form, _: forms.update({position: form}), keep=True
        )
        found = Constants(every, captured, forms)
        constants = found if self.storage is None else found.cast(self.storage)
        if left is not None and constants.nbytes > left:
            constants = self._bare(constants, batch.samples)
        if left is None or constants.nbytes <= left:
            batch.kept = constants
        return captured

    def _bare(self, constants: Constants, samples: int) -> Constants:
        """What products alone need; how much that is is remembered."""
        bare = self.visits.only(constants, constants.positions)
        found = self._found.get(constants.positions, 0.0)
        self._found[constants.positions] = max(found, bare.nbytes / samples)
        return bare

    def _expected(self, positions: frozenset[int], samples: int) -> float:
        """What keeping a batch for some groups takes."""
        if positions not in self._found:
            assert self._observed is not None
            observed, count = self._observed
            dtype = self.storage or self.visits.dtype
            self._found[positions] = self.visits.expected_bytes(observed, positions, dtype) / count
        return self._found[positions] * samples

    def make_room(self, positions: AbstractSet[int], batches: Sequence[Batch]) -> None:
        """Free what products of these groups do not need, if not all of these batches are kept for them."""
        if self._is_settled or all(batch.serves(positions) for batch in batches):
            return
        for batch in self.batches:
            batch.graphs.clear()
            if batch.kept is not None and not batch.kept.positions <= positions:
                left = batch.kept.positions & positions
                batch.kept = self.visits.only(batch.kept, left) if left else None

    @property
    def _is_settled(self) -> bool:
        """Whether what is kept stays as it is: it is all, or none, or of another type."""
        return not self.limit or self.storage is not None

    def visited(
        self, batch: Batch, positions: frozenset[int], take: Take
    ) -> tuple[AbstractSet[int], Captured]:
        """Visit a batch for some groups, and keep what that leaves if there is room for it.

        It takes the place of what was kept of the batch.

        Args:
            batch: the batch.
            positions: of the groups.
            take: see `Visits.visit`.

        Returns:
            The positions of the groups whose forms were taken, and what the batch leaves constant.
        """
        has_room = not self._is_settled and self._fits(self._expected(positions, batch.samples), batch)
        taken: set[int] = set()
        forms: dict[int, Form] = {}

        def took(position: int, form: Form, captured: Captured) -> None:
            take(position, form, captured)
            taken.add(position)
            if has_room:
                forms[position] = form

        captured = self.visits.visit(batch, positions, took, keep=has_room)
        if has_room:
            constants = self._bare(Constants(positions, captured, forms), batch.samples)
            if self._fits(constants.nbytes, batch):
                batch.kept, captured = constants, constants.captured
        return taken, captured

    def settle(self, batch: Batch, positions: AbstractSet[int]) -> None:
        """Products of these groups over a batch are done: give back what they will take again."""
        kept = frozenset() if batch.kept is None else batch.kept.forms.keys()
        if not batch.serves(positions) or not positions <= kept | batch.graphs.keys():
            give_back(self.visits.device)

    def _fits(self, size: float, batch: Batch) -> bool:
        """Whether there is room for so much in place of what is kept of a batch."""
        assert self.limit is not None
        return self.used - batch.nbytes + size <= self.limit

    def keep_path(
        self,
        batch: Batch,
        position: int,
        graph: PathProducts,
        positions: AbstractSet[int],
        batches: Sequence[Batch],
    ) -> None:
        """Keep the run of a path, if there is room and all batches are kept.

        Args:
            batch: the batch.
            position: of the group.
            graph: the run.
            positions: of the groups that products are computed of.
            batches: over which they are.
        """
        if self.storage is not None or self.limit == 0:
            return
        if self.limit is not None:
            if not all(one.serves(positions) for one in batches):
                return
            if self.used + graph.nbytes > self.limit:
                for other in self.batches:
                    other.graphs = {i: kept for i, kept in other.graphs.items() if i in positions}
            if self.used + graph.nbytes > self.limit:
                return
        batch.graphs[position] = graph
