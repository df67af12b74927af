"""Integers that a torch module keeps beside its parameters, as functions of the widths of channel groups."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace

from growpipe.graph_ops.axes.dims import Atom, Concat, Copied, Dim, Fixed, Product, atoms_of, grown_size

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
    """

    module: str
    attribute: str
    dim: Dim
    times: int = 1

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
        return frozenset(atom.name for atom in atoms_of(self.dim))

    def grown(self, widths: Mapping[str, int]) -> int:
        """The integer once the groups have these widths; groups that are absent keep theirs."""
        return self.times * grown_size(self.dim, widths)

    def following(self, groups: Container[str]) -> ModuleSize:
        """The same integer, which follows no other groups than these."""
        return replace(self, dim=held(self.dim, groups))


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
