"""Analysis sets that grow: an eighth of the samples at first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from growpipe.analyser.curvature.operator import SplittingProducts
from growpipe.analyser.preparation import Subject
from growpipe.analyser.samples import MicroBatch

__all__ = ["growing"]


def growing(
    operator: SplittingProducts, data: Sequence[MicroBatch], subject: Subject
) -> Callable[[int], SplittingProducts | None]:
    """The operator on an eighth of the data at first, then on as many samples as are asked for, up to all.

    Args:
        operator: without data so far; it is given micro-batches.
        data: the micro-batches of this process.
        subject: the loss, the processes and the device are used.
    """
    taken, count = 0, data[0].count
    least = max(4, 2 * subject.peers.world, count // 8)
    (total,) = subject.peers.totals(sum(batch.samples for batch in data), device=subject.device)

    def grow(samples: int) -> SplittingProducts | None:
        nonlocal taken
        # Both halves in every process, and the same sets for one process and two.
        asked = math.ceil(samples * count / total / least) * least
        wanted = min(count, max(taken + least, asked))
        if taken == count:
            return None
        for batch in data:
            if taken <= batch.number < wanted:
                operator.add(batch.inputs, batch.target, subject.loss_fn, half=batch.number % 2)
        taken = wanted
        return operator

    return grow
