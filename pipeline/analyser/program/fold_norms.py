"""What a pass over the whole program may do faster because no parameter moves in it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from growpipe.analyser.program.aten import CONVOLUTIONS, NORMS, aten
from growpipe.analyser.program.convolution import conv_nd

__all__ = ["FROZEN", "FoldedNorm", "FoldedNorms", "foldable_norms", "is_fixed", "scaled"]


FROZEN: dict[Any, Callable[..., Tensor]] = dict.fromkeys(CONVOLUTIONS, partial(conv_nd, frozen=True))
"""What stands in for an operator whose parameters need no gradient."""

# Producers whose output channels are axis 0 of their weight, the second argument; a bias is the third.
_AFFINE = {*CONVOLUTIONS, aten.linear.default}


def is_fixed(arguments: Iterable[Any], state: Mapping[Node, Any]) -> bool:
    """Whether all nodes among the arguments are parameters, buffers or constants of the program."""
    return all(a in state for a in arguments if isinstance(a, Node))


def foldable_norms(
    nodes: Iterable[Node], state: Mapping[Node, Any], recorded: AbstractSet[Node]
) -> dict[Node, Node]:
    """By producer the normalisation behind it, where nothing reads what lies between them.

    In evaluation mode the two are one affine map, which takes one pass over memory instead of two and leaves
    autograd one activation less to hold.

    Args:
        nodes: of the program.
        state: its parameters, buffers and constants.
        recorded: the nodes whose own values are wanted.
    """
    found = {}
    for norm in nodes:
        if norm.target not in NORMS or norm.kwargs:
            continue
        made, *parameters = norm.args[:5]
        if (
            isinstance(made, Node)
            and made.target in _AFFINE
            and not made.kwargs
            and len(made.users) == 1
            and made not in recorded
            and is_fixed(made.args[1:], state)
            # Channels are axis 1: not so behind a linear map of sequences, or without a batch.
            and made.meta["val"].ndim == state[made.args[1]].ndim  # type: ignore[index]
            and all(node in state for node in parameters)
            and (
                norm.target is aten.batch_norm.default
                or all(user.target is operator.getitem and user.args[1] == 0 for user in norm.users)
            )
        ):
            found[made] = norm
    return found


@dataclass(frozen=True, eq=False)
class FoldedNorm:
    """A producer and the normalisation behind it as one affine map.

    Attributes:
        made: the producer.
        norm: the normalisation.
        factor: its scale of every output channel, [out].
        weight: the producer's weight, scaled.
        offset: of the output, [out].
    """

    made: Node
    norm: Node
    factor: Tensor
    weight: Tensor
    offset: Tensor

    @staticmethod
    def of(made: Node, norm: Node, state: Mapping[Node, Any]) -> FoldedNorm:
        """Of a producer and its normalisation that `foldable_norms` has found."""
        scale, shift, mean, var = (state[node] for node in norm.args[1:5])  # type: ignore[index]
        factor = scale * torch.rsqrt(var + norm.args[NORMS[norm.target]])
        weight = state[made.args[1]]  # type: ignore[index]
        bias = made.args[2] if len(made.args) > 2 else None
        centre = mean if bias is None else mean - state[bias]  # type: ignore[index]
        return FoldedNorm(made, norm, factor, scaled(weight, factor), shift - centre * factor)

    def passed(self, made: Any) -> Any:
        """The value of the normalisation's node, of what the two have made."""
        return made if self.norm.target is aten.batch_norm.default else (made,)

    def __call__(self, read: Callable[[Node], Any]) -> Any:
        """The output of the normalisation straight from the producer's input."""
        x, *rest = map_arg((self.made.args[0], *self.made.args[3:]), read)
        target: Callable[..., Any] = FROZEN.get(self.made.target, self.made.target)  # type: ignore[arg-type]
        return target(x, self.weight, self.offset, *rest)


@dataclass(frozen=True, eq=False)
class FoldedNorms:
    """The normalisations of a program in one with their producers, each scaled weight made once.

    Attributes:
        nodes: of the program.
        state: its parameters, buffers and constants, which do not change.
    """

    nodes: Sequence[Node]
    state: Mapping[Node, Any]
    _made: dict[Node, FoldedNorm] = field(default_factory=dict, init=False, repr=False)

    def without(self, recorded: AbstractSet[Node]) -> dict[Node, FoldedNorm]:
        """By producer those that can be folded if the values of some nodes are wanted: `foldable_norms`."""
        found = foldable_norms(self.nodes, self.state, recorded)
        for made in found.keys() - self._made.keys():
            self._made[made] = FoldedNorm.of(made, found[made], self.state)
        return {made: self._made[made] for made in found}


def scaled(weight: Tensor, factor: Tensor) -> Tensor:
    """A weight [out, ...] times the factor of its output channel, [out]."""
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
