"""Analysis sets that grow: few samples to find directions, then an eighth of all, then what is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from growpipe.analyser.curvature.operator import SplittingProducts
from growpipe.analyser.preparation import Subject
from growpipe.analyser.samples import MicroBatch

__all__ = ["COARSE", "GrowingSet"]

COARSE = 64
"""The samples of each half of a coarse set at least.

Directions that fit fewer are noise, from which the search takes longer than from random weights: three times
as long for a BERT-mini on 16 samples a half."""


@dataclass(eq=False)
class GrowingSet:
    """The micro-batches of this process, which an operator takes bit by bit.

    From random weights the search for eigenvectors takes several products, and from good directions one or
    two. So it begins on a coarse set, half of the first micro-batch of each half of the data, whose products
    cost least. If a half of it would have less than `COARSE` samples, there is none. Sets are the same for
    one process and for two, and every process has a part of each.

    Attributes:
        operator: without data so far; it is given micro-batches.
        data: the micro-batches.
        subject: the loss, the processes and the device are used.
        is_coarse: whether the present set only finds directions.
    """

    operator: SplittingProducts
    data: Sequence[MicroBatch]
    subject: Subject
    is_coarse: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._count = self.data[0].count
        self._least = max(4, 2 * self.subject.peers.world, self._count // 8)
        own = sum(batch.samples for batch in self.data)
        (self._total,) = self.subject.peers.totals(own, device=self.subject.device)
        self._taken = 0

    def begin(self) -> SplittingProducts:
        """The operator on the first set."""
        first = [batch for batch in self.data if batch.number < max(2, self.subject.peers.world)]
        few = sum(batch.samples < 2 * COARSE for batch in first)
        self.is_coarse = not sum(self.subject.peers.totals(few, device=self.subject.device))
        for batch in first if self.is_coarse else ():
            self._add(batch.halves()[0])
        return self.operator if self.is_coarse else self._take(self._least)

    def grow(self, samples: int) -> SplittingProducts | None:
        """The operator on at least so many samples over all processes, or on all there are.

        After a coarse set it is on an eighth of the data at least. A later set of half of the data or more is
        all of them: if it were not enough, it would cost as much as it can save, and plans by more samples
        are better. None if the operator has all of them already.
        """
        if self._taken == self._count:
            return None
        asked = math.ceil(samples * self._count / self._total / self._least) * self._least
        wanted = max(self._taken + self._least, asked)
        if self._taken and 2 * wanted >= self._count:
            wanted = self._count
        return self._take(min(self._count, wanted))

    def _take(self, wanted: int) -> SplittingProducts:
        """The operator on the first ``wanted`` micro-batches."""
        for batch in self.data:
            if self._taken <= batch.number < wanted:
                begun = self.is_coarse and batch.number < max(2, self.subject.peers.world)
                self._add(batch.halves()[1] if begun else batch)
        self._taken, self.is_coarse = wanted, False
        return self.operator

    def _add(self, batch: MicroBatch) -> None:
        self.operator.add(batch.inputs, batch.target, self.subject.loss_fn, half=batch.number % 2)
