"""Batches for an analysis out of the loader that a trainer goes through at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from growpipe.graph_ops.errors import UsageError

__all__ = ["Converted", "apart", "tensor_names"]


def apart(loader: Any, batch_size: int | None = None) -> Iterable[Any]:
    """A loader of the same data that leaves the state of the trainer's own loader alone.

    Args:
        loader: the trainer's. The data of a ``DataLoader`` with an indexed data set are shuffled anew by a
            generator of their own; anything else is iterated as it is.
        batch_size: of the new loader; None takes the other's.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader  # type: ignore[no-any-return]
    size = batch_size or loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    return DataLoader(
        loader.dataset,
        batch_size=size or 1,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
        collate_fn=loader.collate_fn,
    )


@dataclass(frozen=True, eq=False)
class Converted:
    """A loader whose every batch goes through a function."""

    loader: Iterable[Any]
    convert: Callable[[Any], tuple[Any, Any]]

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return map(self.convert, self.loader)


def tensor_names(batch: Any) -> tuple[str, ...]:
    """The keys of a batch whose values are tensors, in order.

    Raises:
        UsageError: the batch is no mapping, or holds no tensor.
    """
    if not isinstance(batch, Mapping):
        raise UsageError(f"batches are dicts of tensors here, not {type(batch).__name__}")
    names = tuple(key for key, value in batch.items() if isinstance(value, torch.Tensor))
    if not names:
        raise UsageError(f"a batch holds no tensor; it has {sorted(map(str, batch))}")
    return names
