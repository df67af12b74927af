"""How weights are used: which channels each of them makes, mixes or carries, on which axis."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import onnx

from growpipe.graph_ops.axes.axis import Axis, leaves
from growpipe.graph_ops.axes.dims import Dim
from growpipe.graph_ops.axes.layouts import AxisLayout, TensorLayout
from growpipe.graph_ops.axes.statements import Use
from growpipe.graph_ops.operators import node_name, plain_domain

__all__ = ["Member", "MemberRole", "Touch"]

MemberRole = Literal["made", "carried", "mixed"]


@dataclass(frozen=True, slots=True)
class Member:
    """One axis of one parameter on which a channel group stands.

    Attributes:
        tensor: the initializer (or the output of the Constant node).
        axis: the axis of the tensor.
        role: ``made`` is the output axis of a producer's weight, ``mixed`` the input axis of a consumer's
            weight, where the coefficients go, ``carried`` everything on the way.
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
    """One use of one weight, and which atoms it makes or mixes on which axis."""

    def __init__(self, use: Use) -> None:
        self.use = use
        self.axes = use.axes
        self.atoms = [dict.fromkeys(a for a in leaves(axis) if a.size != 1) for axis in self.axes]
        self.made = self._parts(use.made)
        self.mixed = self._parts(use.mixed)

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
                member = Member(tensor, position, role, name, node.op_type, formal)
                members.setdefault(atom, []).append(member)

    def layout(self, atoms: Mapping[Axis, str], dims: Callable[[Axis], Dim]) -> TensorLayout | None:
        if not any(atom in atoms for group in self.atoms for atom in group):
            return None
        return TensorLayout(
            tuple(
                AxisLayout(dims(axis), "mixed" if any(a in atoms for a in self.mixed[position]) else "copied")
                for position, axis in enumerate(self.axes)
            )
        )


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
