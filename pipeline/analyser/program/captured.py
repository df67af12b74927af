"""What is taken down of one batch, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from growpipe.analyser.program.binding import Edge

__all__ = ["Captured", "Recording"]


@dataclass(frozen=True, eq=False)
class Recording:
    """What `Program.capture` takes down of a batch.

    Attributes:
        edges: the consumer edges whose gradients g_e are taken; in order, so that every run sums alike.
        slopes: the nodes at whose outputs the gradient of the loss is taken.
        inner: further nodes whose values are taken down.
        constants: the nodes whose values the groups' paths read as constants.
    """

    edges: tuple[Edge, ...]
    slopes: frozenset[Node]
    inner: frozenset[Node]
    constants: frozenset[Node]


@dataclass(frozen=True, eq=False)
class Captured:
    """What one batch leaves behind: everything that is held constant while θ moves.

    Attributes:
        samples: the number of samples.
        loss: the mean loss over them.
        constants: the values that the groups' paths read from outside.
        gradients: g_e = ∂L/∂(the consumer's input, along that edge only), by edge.
        slopes: ∂L/∂(the node's output), by node.
        inner: values on the paths, by node.
        sizes: the number of entries of what has a slope and of what runs along the edges, by node.
    """

    samples: int
    loss: float
    constants: dict[Node, Any]
    gradients: dict[Edge, Tensor]
    slopes: dict[Node, Tensor]
    inner: dict[Node, Tensor]
    sizes: Mapping[Node, int]

    def only(self, constants: AbstractSet[Node], edges: AbstractSet[Edge]) -> Captured:
        """The same with some of the constants and edge gradients, as far as they are there."""
        return replace(
            self,
            constants={node: value for node, value in self.constants.items() if node in constants},
            gradients={edge: value for edge, value in self.gradients.items() if edge in edges},
        )

    def without_memory(self) -> Captured:
        """The same with constants that have their shapes and types alone; for one without gradients."""

        def bare(value: Any) -> Any:
            return value.to("meta") if isinstance(value, Tensor) else value

        return replace(self, constants={node: bare(value) for node, value in self.constants.items()})

    def cast(self, dtype: torch.dtype) -> Captured:
        """The same with floating constants and edge gradients in the given type."""

        def converted(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return replace(
            self,
            constants={node: converted(value) for node, value in self.constants.items()},
            gradients={edge: converted(value) for edge, value in self.gradients.items()},
        )

    @property
    def nbytes(self) -> int:
        """The memory of constants and edge gradients."""
        tensors = [*self.constants.values(), *self.gradients.values()]
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
