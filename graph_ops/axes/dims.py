"""Dimensions as types: every axis of every tensor is made of atoms, and growing an atom is a substitution.

An axis of length 588 that a ``Flatten`` made of 12 channels of 7 x 7 pixels is ``Product(Atom("g3", 12),
Fixed(49))``; the concatenation of two channel axes is ``Concat(Atom("g3", 12), Atom("g5", 20))``. Given
what happens to the channels of each atom (`Offspring`), `axis_map` says where every entry of the grown
axis comes from and with which coefficient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from growpipe.graph_ops.errors import UsageError

__all__ = [
    "Atom",
    "AxisMap",
    "Concat",
    "Copied",
    "Dim",
    "Fixed",
    "Offspring",
    "Product",
    "atoms_of",
    "axis_map",
    "channel_rows",
    "dim_from_json",
    "dim_to_json",
    "grown_size",
    "swapped",
    "uncopied",
]


@dataclass(frozen=True, slots=True)
class Fixed:
    """An axis, or a factor or part of one, that never grows."""

    size: int


@dataclass(frozen=True, slots=True)
class Atom:
    """The channels of one channel group; ``name`` is the name of the group."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Product:
    """Several dimensions flattened into one axis, row-major: the first factor is the outermost."""

    factors: tuple[Dim, ...]

    @property
    def size(self) -> int:
        return math.prod(factor.size for factor in self.factors)


@dataclass(frozen=True, slots=True)
class Concat:
    """Several dimensions one after the other on one axis."""

    parts: tuple[Dim, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


@dataclass(frozen=True, slots=True)
class Copied:
    """A factor or part of an axis that takes coefficients, which itself takes none: it is only copied."""

    inner: Dim

    @property
    def size(self) -> int:
        return self.inner.size


Dim = Fixed | Atom | Product | Concat | Copied


@dataclass(frozen=True, eq=False)
class Offspring:
    """What the channels of one group become.

    Attributes:
        source: int64 [grown width], the channel that each grown channel is a copy of.
        coefficient: float64 [grown width], the weight w_i of each copy; over the copies of one channel
            they sum to 1.
    """

    source: npt.NDArray[np.int64]
    coefficient: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AxisMap:
    """Where the entries of a grown axis come from.

    Attributes:
        source: int64 [grown length], the entry of the original axis.
        coefficient: float64 [grown length], the product of the coefficients of all atoms of the entry.
        channel: for each atom of the axis int64 [grown length], the grown channel that the entry belongs
            to, -1 where it belongs to none.
    """

    source: npt.NDArray[np.int64]
    coefficient: npt.NDArray[np.float64]
    channel: Mapping[str, npt.NDArray[np.int64]]


def atoms_of(dim: Dim) -> Iterator[Atom]:
    """Every occurrence of an atom in ``dim``, from the first entry to the last."""
    match dim:
        case Atom():
            yield dim
        case Product(factors):
            for factor in factors:
                yield from atoms_of(factor)
        case Concat(parts):
            for part in parts:
                yield from atoms_of(part)
        case Copied(inner):
            yield from atoms_of(inner)


def grown_size(dim: Dim, widths: Mapping[str, int]) -> int:
    """The length of ``dim`` when the atoms in ``widths`` have those widths and all others their own."""
    match dim:
        case Fixed(size):
            return size
        case Atom(name, size):
            return widths.get(name, size)
        case Product(factors):
            return math.prod(grown_size(factor, widths) for factor in factors)
        case Concat(parts):
            return sum(grown_size(part, widths) for part in parts)
        case Copied(inner):
            return grown_size(inner, widths)


def axis_map(dim: Dim, offspring: Mapping[str, Offspring]) -> AxisMap:
    """The grown axis of ``dim``; atoms that are not in ``offspring`` keep their channels."""
    match dim:
        case Fixed(size):
            return AxisMap(np.arange(size), np.ones(size), {})
        case Atom(name, size):
            grown = offspring.get(name)
            if grown is None:
                return AxisMap(np.arange(size), np.ones(size), {name: np.arange(size)})
            return AxisMap(grown.source, grown.coefficient, {name: np.arange(len(grown.source))})
        case Copied(inner):
            copied = axis_map(inner, offspring)
            return AxisMap(copied.source, np.ones(len(copied.source)), copied.channel)
        case Concat(parts):
            maps = [axis_map(part, offspring) for part in parts]
            starts = np.cumsum([0, *(part.size for part in parts[:-1])])
            return AxisMap(
                np.concatenate([m.source + start for m, start in zip(maps, starts, strict=True)]),
                np.concatenate([m.coefficient for m in maps]),
                {
                    name: np.concatenate([m.channel.get(name, np.full(len(m.source), -1)) for m in maps])
                    for name in dict.fromkeys(name for m in maps for name in m.channel)
                },
            )
        case Product(factors):
            maps = [axis_map(factor, offspring) for factor in factors]
            lengths = [len(m.source) for m in maps]
            index = np.indices(lengths).reshape(len(maps), -1)
            sources = [m.source[i] for m, i in zip(maps, index, strict=True)]
            return AxisMap(
                np.ravel_multi_index(sources, [factor.size for factor in factors]).astype(np.int64),
                np.prod([m.coefficient[i] for m, i in zip(maps, index, strict=True)], axis=0),
                {
                    name: channels[i]
                    for m, i in zip(maps, index, strict=True)
                    for name, channels in m.channel.items()
                },
            )


def channel_rows(dim: Dim, atom: str) -> npt.NDArray[np.int64]:
    """The entries of the axis that belong to each channel of ``atom``: int64 [width, entries per channel].

    Entries of a channel are in ascending order.

    Raises:
        UsageError: ``atom`` is not on the axis.
    """
    width = next((a.size for a in atoms_of(dim) if a.name == atom), None)
    if width is None:
        raise UsageError(f"channel group {atom!r} is not on an axis of type {dim_to_json(dim)}")
    channel = axis_map(dim, {}).channel[atom]
    # Every channel has equally many entries, so a stable sort by channel lines them up.
    entries = np.argsort(channel, kind="stable")[np.count_nonzero(channel < 0) :]
    return entries.reshape(width, -1).astype(np.int64, copy=False)


def uncopied(dim: Dim) -> Dim:
    """The dimension without the marks of `Copied`: the same entries, whatever their coefficients."""
    match dim:
        case Product(factors):
            return Product(tuple(map(uncopied, factors)))
        case Concat(parts):
            return Concat(tuple(map(uncopied, parts)))
        case Copied(inner):
            return uncopied(inner)
    return dim


def swapped(dim: Dim) -> Dim:
    """The dimension of which exactly those atoms are `Copied` that are not in ``dim``."""
    match dim:
        case Atom():
            return Copied(dim)
        case Product(factors):
            return Product(tuple(map(swapped, factors)))
        case Concat(parts):
            return Concat(tuple(map(swapped, parts)))
        case Copied(inner):
            return uncopied(inner)
    return dim


def dim_to_json(dim: Dim) -> Any:
    """A dimension as JSON.

    Returns:
        A number for `Fixed`, the group's name for `Atom`, and ``{"product": [...]}``, ``{"concat": [...]}``
        or ``{"copied": ...}`` for the others.
    """
    match dim:
        case Fixed(size):
            return size
        case Atom(name):
            return name
        case Product(factors):
            return {"product": [dim_to_json(factor) for factor in factors]}
        case Concat(parts):
            return {"concat": [dim_to_json(part) for part in parts]}
        case Copied(inner):
            return {"copied": dim_to_json(inner)}


def dim_from_json(data: Any, widths: Mapping[str, int]) -> Dim:
    """The inverse of `dim_to_json`; ``widths`` gives the width of every group.

    Raises:
        UsageError: ``data`` is not a dimension, or names a group that ``widths`` does not have.
    """
    match data:
        case bool():
            pass
        case int() if data >= 0:
            return Fixed(data)
        case str() if data in widths:
            return Atom(data, widths[data])
        case {"product": [*factors]}:
            return Product(tuple(dim_from_json(factor, widths) for factor in factors))
        case {"concat": [*parts]}:
            return Concat(tuple(dim_from_json(part, widths) for part in parts))
        case {"copied": inner}:
            return Copied(dim_from_json(inner, widths))
    raise UsageError(f"not a dimension of a known channel group: {data!r}")
