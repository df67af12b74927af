"""Integers that a torch module keeps beside its parameters, as functions of the widths of channel groups."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from growpipe.graph_ops.axes.dims import (
    Atom,
    Concat,
    Copied,
    Dim,
    Fixed,
    Product,
    atoms_of,
    dim_to_json,
    grown_size,
)
from growpipe.graph_ops.errors import UsageError

__all__ = ["ModuleSize", "held", "sizes_of_groups"]


@dataclass(frozen=True, slots=True)
class ModuleSize:
    """One integer of one module that follows the widths of channel groups.

    Attributes:
        module: the path of the module, ``""`` for the root.
        attribute: where the integer is: ``"head_dim"``, ``"sizes[1]"`` in a list or tuple, or
            ``"config.hidden_size"`` in an object that the module holds.
        dim: the dimension whose size, times ``times``, is the integer.
        times: a constant factor.
        equals: other dimensions of which the integer is the size, those of groups that grow in equal steps
            with the groups of ``dim``.
    """

    module: str
    attribute: str
    dim: Dim
    times: int = 1
    equals: tuple[Dim, ...] = ()

    @property
    def name(self) -> str:
        """The path of the integer from the root module."""
        return f"{self.module}.{self.attribute}" if self.module else self.attribute

    @property
    def size(self) -> int:
        """The integer before growth."""
        return self.times * self.dim.size

    @property
    def groups(self) -> frozenset[str]:
        """The groups that it follows."""
        return frozenset(atom.name for dim in (self.dim, *self.equals) for atom in atoms_of(dim))

    def grown(self, widths: Mapping[str, int]) -> int:
        """The integer once the groups have these widths; groups that are absent keep theirs.

        Raises:
            UsageError: its dimensions have different sizes then.
        """
        size = self.times * grown_size(self.dim, widths)
        for dim in self.equals:
            if grown_size(dim, widths) != size:
                raise UsageError(
                    f"{self.name} of the module is one size for the groups {sorted(self.groups)}, which must "
                    f"grow in equal steps: they would need {size} and {grown_size(dim, widths)}"
                )
        return size

    def following(self, groups: Container[str]) -> ModuleSize:
        """The same integer, which follows no other groups than these."""
        equals = tuple(held(dim, groups) for dim in self.equals)
        return replace(self, dim=held(self.dim, groups), equals=equals)

    def to_json(self) -> dict[str, Any]:
        """The integer as JSON values."""
        found = {
            "module": self.module,
            "attribute": self.attribute,
            "dim": dim_to_json(self.dim),
            "times": self.times,
        }
        return found | ({"equals": [dim_to_json(dim) for dim in self.equals]} if self.equals else {})


def held(dim: Dim, groups: Container[str]) -> Dim:
    """The dimension in which every atom of another group than ``groups`` is `Fixed`."""
    match dim:
        case Atom(name, size):
            return dim if name in groups else Fixed(size)
        case Product(factors):
            return Product(tuple(held(factor, groups) for factor in factors))
        case Concat(parts):
            return Concat(tuple(held(part, groups) for part in parts))
        case Copied(inner):
            return held(inner, groups)
    return dim


def sizes_of_groups(sizes: Iterable[ModuleSize], groups: Iterable[str]) -> tuple[ModuleSize, ...]:
    """The integers that follow at least one of the groups."""
    wanted = frozenset(groups)
    return tuple(size for size in sizes if size.groups & wanted)
