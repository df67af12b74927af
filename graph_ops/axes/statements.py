"""What rules state about a graph besides the axes of its tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, Barrier
from growpipe.graph_ops.axes.integers import Expression

__all__ = ["Axes", "Contraction", "Default", "Even", "Follow", "MacTerm", "Use", "View"]

Axes = list[Axis]


@dataclass(frozen=True, slots=True)
class View:
    """A tensor that holds entries of a constant: a weight transposed, cast, cut, masked, scaled.

    A tensor that several constants were joined into has one view for each of them.

    Attributes:
        base: the initializer, or the output of the Constant node.
        axes: for each axis of the view, the axes of ``base`` that it runs over.
        obstacle: why a coefficient on ``base`` is not one on the view; empty if it is.
        offset: a number that is added to ``base``, as in the scale 1 + w of a norm. A coefficient on the view
            is then one on ``base`` + ``offset``.
        scaled: whether the sum, or ``base`` itself, is multiplied.
    """

    base: ir.Value
    axes: tuple[tuple[int, ...], ...]
    obstacle: str = ""
    offset: float = 0.0
    scaled: bool = False


@dataclass(eq=False, slots=True)
class Use:
    """How one input of one node uses a weight; what is neither ``made`` nor ``mixed`` is carried.

    ``axes`` are those of the weight in this use: shared by all uses, except where one tensor of zeros or ones
    serves unrelated nodes. ``made`` and ``mixed`` hold (axis of the weight, the part of it that is meant).
    ``folded`` holds (axis of the weight, the part whose coefficients it takes, the entries that take them).
    ``tensor`` is the name of the weight by `growpipe.graph_ops.bodies.tensor_names`. ``offset`` is the number
    that is added to it on the way, as in `View`.
    """

    base: ir.Value
    tensor: str
    node: ir.Node
    index: int
    axes: Axes
    offset: float = 0.0
    made: list[tuple[int, Axis]] = field(default_factory=list)
    mixed: list[tuple[int, Axis]] = field(default_factory=list)
    folded: list[tuple[int, Axis, npt.NDArray[np.bool_]]] = field(default_factory=list)


@dataclass(frozen=True, eq=False, slots=True)
class Follow:
    """An attribute or an integer input of a node that spells out lengths, and must follow when axes grow.

    Attributes:
        node: the node.
        target: the name of an attribute, or the index of an input.
        elements: the wanted values, None for those that stay.
    """

    node: ir.Node
    target: str | int
    elements: tuple[Expression, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Even:
    """An axis whose entries a node takes moments of: exact if all entries are copied equally often.

    The mean of the copies of all entries, and the mean of their squares, are then those of the entries.

    Attributes:
        axis: the axis.
        because: the node, the position of the axis, and what the node does.
    """

    axis: Axis
    because: Barrier


@dataclass(frozen=True, eq=False, slots=True)
class Contraction:
    """A sum over an axis of two activations, such as that of queries and keys.

    Attributes:
        axis: what both have in common.
        operands: the two inputs of the node.
        because: the node, the position of the axis in the first operand, and what the node does.
        node: the node.
    """

    axis: Axis
    operands: tuple[int, int]
    because: Barrier
    node: ir.Node


@dataclass(frozen=True, eq=False, slots=True)
class Default:
    """An attribute that a node does not have, and whose default depends on a length.

    If the length grows, the attribute is written out with the value that it had.

    Attributes:
        node: the node.
        attribute: the name of the attribute.
        value: the default at the length as it is.
        axis: the axis of that length.
    """

    node: ir.Node
    attribute: str
    value: float
    axis: Axis


@dataclass(frozen=True, eq=False, slots=True)
class MacTerm:
    """Multiply-accumulates of one node: ``constant`` times the product of the lengths."""

    node: ir.Node
    constant: int
    axes: tuple[Axis, ...]

    def times(self, passes: Axis) -> MacTerm:
        """Those of a node that runs once for each entry of an axis."""
        return MacTerm(self.node, self.constant, (*self.axes, passes))
