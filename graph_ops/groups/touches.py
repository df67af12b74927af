"""How weights are used: which channels each of them makes, mixes or carries, on which axis."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx

from growpipe.graph_ops.axes.axis import Axis, leaves
from growpipe.graph_ops.axes.dims import Atom, Concat, Copied, Dim, Fixed, Product
from growpipe.graph_ops.axes.layouts import AxisLayout, TensorLayout
from growpipe.graph_ops.axes.statements import Use
from growpipe.graph_ops.operators import node_name, plain_domain

__all__ = ["Member", "MemberRole", "Touch", "marked"]

MemberRole = Literal["made", "carried", "mixed", "folded"]


@dataclass(frozen=True, slots=True)
class Member:
    """One axis of one parameter on which a channel group stands.

    Attributes:
        tensor: the initializer (or the output of the Constant node).
        axis: the axis of the tensor.
        role: ``made`` is the output axis of a producer's weight, ``mixed`` the input axis of a consumer's
            weight, where the coefficients go, ``carried`` everything on the way. An axis that is made or
            carried is ``folded``, too, if it takes the coefficients because no consumer's weight can.
        node: the node that uses the tensor.
        operator: its operator type.
        input: the formal name of the input in the operator's ONNX schema, e.g. ``"W"``.
    """

    tensor: str
    axis: int
    role: MemberRole
    node: str
    operator: str
    input: str


class Touch:
    """One use of one weight, and which atoms it makes or mixes on which axis.

    Attributes:
        use: the use.
        axes: of the weight.
        atoms: by axis what it is made of.
        made: by axis the atoms whose channels the weight makes.
        mixed: by axis the atoms that the node sums over, so that the weight takes their coefficients.
        folded: by axis the atoms whose coefficients the weight takes although nothing sums over them here.
        entries: by axis the entries that take the coefficients of folded atoms; None for all.
    """

    def __init__(self, use: Use) -> None:
        self.use = use
        self.axes = use.axes
        self.atoms = [dict.fromkeys(a for a in leaves(axis) if a.size != 1) for axis in self.axes]
        self.made = self._parts(use.made)
        self.mixed = self._parts(use.mixed)
        self.folded: list[set[Axis]] = [set() for _ in self.axes]
        self.entries: list[npt.NDArray[np.bool_] | None] = [None] * len(self.axes)
        for position, part, entries in use.folded:
            self.folded[position] |= set(leaves(part)) & self.atoms[position].keys()
            self.entries[position] = entries

    def _parts(self, stated: list[tuple[int, Axis]]) -> list[set[Axis]]:
        parts: list[set[Axis]] = [set() for _ in self.axes]
        for position, part in stated:
            parts[position] |= set(leaves(part)) & self.atoms[position].keys()
        return parts

    def collect(self, members: dict[Axis, list[Member]]) -> None:
        node, tensor = self.use.node, self.use.tensor
        name = node_name(node)
        formal = _formal_input(node.domain, node.op_type, node.version, self.use.index)
        for position, atoms in enumerate(self.atoms):
            for atom in atoms:
                role: MemberRole = "carried"
                if atom in self.mixed[position]:
                    role = "mixed"
                elif atom in self.made[position]:
                    role = "made"
                roles: list[MemberRole] = [role, "folded"] if atom in self.folded[position] else [role]
                for each in roles:
                    member = Member(tensor, position, each, name, node.op_type, formal)
                    members.setdefault(atom, []).append(member)

    def layout(self, atoms: Mapping[Axis, str], dims: Callable[[Axis], Dim]) -> TensorLayout | None:
        if not any(atom in atoms for group in self.atoms for atom in group):
            return None
        axes = tuple(self._axis_layout(p, atoms, dims) for p in range(len(self.axes)))
        return TensorLayout(axes, self.use.offset if any(axis.role == "mixed" for axis in axes) else 0.0)

    def _axis_layout(
        self, position: int, atoms: Mapping[Axis, str], dims: Callable[[Axis], Dim]
    ) -> AxisLayout:
        dim = dims(self.axes[position])
        folded = frozenset(atoms[atom] for atom in self.folded[position] if atom in atoms)
        if folded:
            return AxisLayout(marked(dim, folded, self.entries[position]), "mixed")
        return AxisLayout(dim, "mixed" if any(a in atoms for a in self.mixed[position]) else "copied")


def marked(dim: Dim, taking: Container[str], entries: npt.NDArray[np.bool_] | None) -> Dim:
    """The dimension in which all but the atoms that take coefficients are `Copied`.

    Args:
        dim: the dimension of an axis.
        taking: the names of the atoms that take coefficients.
        entries: whether each entry takes them; None if all do.

    Raises:
        ValueError: the entries that take coefficients are no whole parts of the dimension.
    """
    if entries is not None and entries.all():
        entries = None
    elif entries is not None and not entries.any():
        return dim if isinstance(dim, Fixed) else Copied(dim)
    match dim:
        case Fixed():
            return dim
        case Atom(name) if entries is None:
            return dim if name in taking else Copied(dim)
        case Product(factors) if entries is None:
            return Product(tuple(marked(factor, taking, None) for factor in factors))
        case Concat(parts):
            bounds = np.cumsum([part.size for part in parts])
            pieces = [None] * len(parts) if entries is None else np.split(entries, bounds[:-1])
            return Concat(tuple(marked(p, taking, e) for p, e in zip(parts, pieces, strict=True)))
        case Product((first, *others)) if entries is not None:
            rest = others[0] if len(others) == 1 else Product(tuple(others))
            rows = entries.reshape(first.size, rest.size)
            if (rows == rows[0]).all():
                return Product((marked(first, taking, None), marked(rest, taking, rows[0])))
            if isinstance(first, Fixed):
                starts = [0, *(np.flatnonzero((rows[1:] != rows[:-1]).any(1)) + 1)]
                runs = np.diff([*starts, first.size])
                return Concat(
                    tuple(
                        Product((Fixed(int(run)), marked(rest, taking, rows[start])))
                        for start, run in zip(starts, runs, strict=True)
                    )
                )
    raise ValueError("the entries that take coefficients are no whole parts of the axis")


@functools.cache
def _formal_input(domain: str, operator: str, version: int | None, index: int) -> str:
    try:
        domain = plain_domain(domain)
        formal = (
            onnx.defs.get_schema(operator, domain=domain)
            if version is None
            else onnx.defs.get_schema(operator, version, domain)
        ).inputs
    except onnx.defs.SchemaError:
        return f"input{index}"
    return formal[min(index, len(formal) - 1)].name if formal else f"input{index}"
