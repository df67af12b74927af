"""Two copies of every channel, and their values in fewer passes over memory than operator by operator.

The copies are displaced by ``ε δ`` and ``ε r δ`` with ``r = −w_1 / w_2``. Behind a linear map they are
``u + ε m`` and ``u + ε r m``, m what the map by δ makes. A consumer reads ``w_1 a + w_2 b`` of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = ["Pair", "displaced", "mixed"]


@dataclass(frozen=True, eq=False)
class Pair:
    """The two copies of every channel of a group, with ``Σ_i w_i δ_i = 0``.

    Attributes:
        weights: w_i, float64 [2, width]; the two of a channel sum to 1, and the second one is not 0.
        displacement: δ_1, [width, d].
    """

    weights: Tensor
    displacement: Tensor

    @property
    def uniform(self) -> bool:
        """Whether every channel is the mean of its copies."""
        return bool((self.weights == 0.5).all())

    @property
    def ratio(self) -> Tensor:
        """``r = −w_1 / w_2``, float64 [width]: the second copy goes by ``δ_2 = r δ_1``."""
        return -self.weights[0] / self.weights[1]

    def halved(self) -> Pair:
        """The same with the channels that are no mean of their copies left as they are."""
        even = (self.weights == 0.5).all(0)
        return Pair(torch.full_like(self.weights, 0.5), self.displacement * even[:, None])


def displaced(
    still: Tensor, moved: Tensor, step: Tensor, size: float, ratio: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``u + ε m`` and ``u + ε r m``.

    Args:
        still: u.
        moved: m, of the same shape.
        step: ε, a scalar.
        size: the value of ``step``, so that it need not be read from the device.
        ratio: r, which broadcasts to ``moved``; None if it is −1 everywhere.
    """
    first, second = _Displaced.apply(still, moved, step, size, ratio)
    return first, second


def mixed(first: Tensor, second: Tensor, share: Tensor | None) -> Tensor:
    """``w_1 a + w_2 b``.

    Args:
        first: a.
        second: b, of the same shape.
        share: w_2, which broadcasts to ``second``; None if it is ½ everywhere. ``w_1 = 1 − w_2``.
    """
    made: Tensor = _Mixed.apply(first, second, share)
    return made


class _Displaced(Function):
    @staticmethod
    def forward(
        ctx: Any, still: Tensor, moved: Tensor, step: Tensor, size: float, ratio: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(moved, ratio)
        ctx.size = size
        first = torch.add(still, moved, alpha=size)
        if ratio is None:
            return first, torch.sub(still, moved, alpha=size)
        return first, torch.addcmul(still, moved, ratio, value=size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, first: Tensor, second: Tensor) -> tuple[Any, ...]:
        moved, ratio = ctx.saved_tensors
        by_still, by_moved, *_ = ctx.needs_input_grad
        along = first - second if ratio is None else torch.addcmul(first, second, ratio)
        by_step = _inner(along, moved)
        return (
            first + second if by_still else None,
            along.mul_(ctx.size) if by_moved else None,
            by_step,
            None,
            None,
        )


class _Mixed(Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, share: Tensor | None) -> Tensor:
        ctx.save_for_backward(share)
        return torch.lerp(first, second, 0.5 if share is None else share)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (share,) = ctx.saved_tensors
        if share is None:
            half = gradient * 0.5
            return half, half, None
        return gradient * (1 - share), gradient * share, None


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """``⟨a, b⟩`` over all entries, in the order in which those of ``a`` lie in memory."""
    order = sorted(range(a.ndim), key=a.stride, reverse=True)
    return torch.dot(a.permute(order).reshape(-1), b.permute(order).reshape(-1))
