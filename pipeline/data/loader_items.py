"""What a loader gives, brought into the form in which a module takes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree

from growpipe.graph_ops.errors import UsageError
from growpipe.user_code import call_user_code

__all__ = [
    "ByPosition",
    "as_tuple",
    "described",
    "joined_samples",
    "length_of",
    "pairs",
    "samples_of",
    "to_device",
]

_END = object()


def _batches(loader: Iterable[Any]) -> Iterator[Any]:
    """What a loader gives; UsageError if it fails."""
    iterator = call_user_code("the data loader", iter, loader)
    while (batch := call_user_code("the data loader", next, iterator, _END)) is not _END:
        yield batch


def pairs(loader: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """The ``(inputs, target)`` pairs of a loader.

    Raises:
        UsageError: it gives something else, or fails.
    """
    for batch in _batches(loader):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            length = f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise UsageError(f"batches must give (inputs, target) pairs, not {type(batch).__name__}{length}")
        yield batch[0], batch[1]


@dataclass(frozen=True, eq=False)
class ByPosition:
    """A loader whose batches are dicts, as one that gives pairs whose inputs are in a fixed order.

    Attributes:
        loader: gives ``(dict, target)`` pairs, or dicts that hold the target too.
        names: the keys of the inputs, in order. What else a dict holds is left out.
        target: the key of the target; None if the loader gives pairs.
    """

    loader: Iterable[Any]
    names: Sequence[str]
    target: str | None = None

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for inputs, target in pairs(named_pairs(self.loader, self.target)):
            yield tuple(_entry(inputs, name) for name in self.names), target


def named_pairs(loader: Iterable[Any], target: str | None) -> Iterator[Any]:
    """The batches of a loader; of a dict the target apart, if ``target`` names it.

    Raises:
        UsageError: a batch has no such key, or the loader fails.
    """
    for batch in _batches(loader):
        if target is not None and isinstance(batch, Mapping):
            batch = {key: value for key, value in batch.items() if key != target}, _entry(batch, target)
        yield batch


def _entry(batch: Any, name: str) -> Any:
    if not isinstance(batch, Mapping) or name not in batch:
        keys = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise UsageError(f"a batch has no key {name!r}; it has {keys}")
    return batch[name]


def as_tuple(inputs: Any) -> tuple[Any, ...]:
    """The positional inputs of ``forward``: a tuple or list as it is, anything else alone."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def to_device(value: Any, device: str | torch.device) -> Any:
    """The same value with its tensors, in any nest of containers, on the device."""
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, value)


def samples_of(value: Any, start: int, stop: int, count: int) -> Any:
    """Some of the samples of a batch.

    Args:
        value: a tensor, or any nest of containers of them. What does not have ``count`` entries on axis 0
            belongs to every sample, and stays whole.
        start, stop: the samples wanted.
        count: the samples of the batch.
    """

    def part(leaf: Any) -> Any:
        own = isinstance(leaf, torch.Tensor) and leaf.ndim and len(leaf) == count
        return leaf[start:stop] if own else leaf

    return pytree.tree_map(part, value)


def joined_samples(first: Any, second: Any, counts: tuple[int, int]) -> Any | None:
    """Two batches as one; None if they do not fit together.

    They fit if their containers are alike, if their tensors differ in the number of samples alone, and if
    what belongs to every sample is the same in both.

    Args:
        first, second: a tensor each, or any nest of containers of them.
        counts: the samples of each. See `samples_of` for what belongs to a sample.
    """
    leaves, structure = pytree.tree_flatten(first)
    others, other_structure = pytree.tree_flatten(second)
    if structure != other_structure:
        return None
    joined: list[Any] = []
    for leaf, other in zip(leaves, others, strict=True):
        tensors = isinstance(leaf, torch.Tensor) and isinstance(other, torch.Tensor)
        if tensors and leaf.ndim and other.ndim and (len(leaf), len(other)) == counts:
            if leaf.dtype != other.dtype or leaf.shape[1:] != other.shape[1:]:
                return None
            joined.append(torch.cat([leaf, other]))
        elif leaf is other or (torch.equal(leaf, other) if tensors else _same(leaf, other)):
            joined.append(leaf)
        else:
            return None
    return pytree.tree_unflatten(joined, structure)


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, (str, int, float)) and type(one) is type(other) and one == other


def length_of(value: Any) -> int:
    """The samples of a batch: axis 0 of the first tensor in any nest of containers; 0 without one."""
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, torch.Tensor) and leaf.ndim:
            return int(leaf.shape[0])
    return 0


def described(value: Any) -> str:
    """The shapes and types of the tensors in any nest of containers, in a few words."""
    leaves = [
        f"{list(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}"
        if isinstance(leaf, torch.Tensor)
        else type(leaf).__name__
        for leaf in pytree.tree_leaves(value)
    ]
    return ", ".join(leaves) or "nothing"
