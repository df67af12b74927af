"""Which samples are held out: always the same ones, of every class the last."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from growpipe.graph_ops.errors import UsageError

__all__ = ["first_of_each", "held_out"]

Indices = npt.NDArray[np.int64]


def held_out(labels: npt.NDArray[np.int64], share: float) -> tuple[Indices, Indices]:
    """Cut a share off the end of every class.

    Args:
        labels: int64 [samples], in the order of the files.
        share: of each class, above 0 and below 1; at least one sample is held out and one stays.

    Returns:
        The positions that stay and those held out, both ascending.

    Raises:
        UsageError: a class has a single sample.
    """
    rest, last = [], []
    for label in np.unique(labels):
        where = np.flatnonzero(labels == label)
        if len(where) < 2:
            raise UsageError(f"class {label} has a single sample; none is left to hold out")
        cut = min(len(where) - 1, max(1, round(share * len(where))))
        rest.append(where[:-cut])
        last.append(where[-cut:])
    return np.sort(np.concatenate(rest)), np.sort(np.concatenate(last))


def first_of_each(labels: npt.NDArray[np.int64], chosen: Indices, samples: int | None) -> Indices:
    """The first ``samples`` of ``chosen`` when the classes take turns, ascending; all of them for None.

    Raises:
        UsageError: there are not so many, or none are wanted.
    """
    if samples is None:
        return chosen
    if not 1 <= samples <= len(chosen):
        raise UsageError(f"train_samples is {samples}; there are {len(chosen)} training samples")
    turn = np.empty(len(chosen), dtype=np.int64)
    for label in np.unique(labels[chosen]):
        where = np.flatnonzero(labels[chosen] == label)
        turn[where] = np.arange(len(where))
    order = np.lexsort((labels[chosen], turn))
    return np.sort(chosen[order[:samples]])
