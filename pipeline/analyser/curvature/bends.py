"""The second-order rule of every operator that bends a path.

Let an operator e take values y that move with tangents ẏ, and let ē be the gradient at its output. A path
needs of it

    ė = De[ẏ]                       the tangent that goes on, and
    r = ∇_ẏ ½ ⟨ē, D²e[ẏ, ẏ]⟩        what it adds to the gradient by ẏ

both linear in ẏ. With p = softmax(s), ṗ = p ∘ (ṡ − ⟨p, ṡ⟩) and g = p̄ − ⟨p, p̄⟩ the rule of a softmax is
``r = ṗ ∘ g − p ⟨ṗ, g⟩``. Whatever has no rule of its own is differentiated by autograd: one operator, not a
path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.fx import Node

from growpipe.analyser.program.aten import aten

__all__ = [
    "POINTWISE", "Bend", "MatrixProduct", "Pointwise", "Product", "Smooth", "Softmax",
    "is_differentiable", "pointwise",
]  # fmt: skip

POINTWISE = {
    "cos", "elu", "erf", "exp", "expm1", "log", "log1p", "log_sigmoid", "mish", "pow", "prelu",
    "reciprocal", "rsqrt", "selu", "sin", "softplus", "sqrt", "square", "tan",
}  # fmt: skip
"""Operators that act on every entry of their first argument alone."""


class Bend(Protocol):
    """The second-order rule of one operator, for one batch."""

    def tangent(self, *tangents: Tensor) -> Tensor:
        """ė from the tangents of all that moves; differentiable."""

    def curvature(self, made: Tensor | None, *tangents: Tensor) -> Sequence[Tensor]:
        """r for every tangent.

        Args:
            made: ė, if it was computed.
            tangents: ẏ of all that moves.
        """


@dataclass(frozen=True, eq=False)
class Pointwise:
    """A function of every entry by itself: ``ė = φ'(y) ẏ`` and ``r = ē φ''(y) ẏ``.

    Attributes:
        slope: φ'(y); None if no tangent goes on.
        curve: ``ē φ''(y)``.
    """

    slope: Tensor | None
    curve: Tensor

    def tangent(self, *tangents: Tensor) -> Tensor:
        """See `Bend`."""
        (y,) = tangents
        assert self.slope is not None
        return self.slope * y

    def curvature(self, made: Tensor | None, *tangents: Tensor) -> Sequence[Tensor]:
        """See `Bend`."""
        (y,) = tangents
        return (self.curve * y,)


def pointwise(function: Callable[[Tensor], Tensor], y: Tensor, gradient: Tensor, slope: bool) -> Pointwise:
    """A smooth function of every entry by itself, differentiated by autograd.

    Args:
        function: the function.
        y: where it is taken.
        gradient: ē.
        slope: whether its tangent goes on.
    """
    with torch.enable_grad():
        at = y.detach().requires_grad_()
        made = function(at)
        (first,) = torch.autograd.grad(made, at, torch.ones_like(made), create_graph=True)
        if first.requires_grad:
            (curve,) = torch.autograd.grad(first, at, gradient, allow_unused=True)
        else:
            curve = None
    return Pointwise(first.detach() if slope else None, torch.zeros_like(y) if curve is None else curve)


@dataclass(frozen=True, eq=False)
class Product:
    """``a · b``, entry by entry: ``r_a = ē ḃ`` and ``r_b = ē ȧ``.

    Attributes:
        a: the first factor.
        b: the second one.
        gradient: ē.
    """

    a: Tensor
    b: Tensor
    gradient: Tensor

    def tangent(self, *tangents: Tensor) -> Tensor:
        """See `Bend`."""
        a, b = tangents
        return a * self.b + self.a * b

    def curvature(self, made: Tensor | None, *tangents: Tensor) -> Sequence[Tensor]:
        """See `Bend`."""
        a, b = tangents
        return (self.gradient * b).sum_to_size(a.shape), (self.gradient * a).sum_to_size(b.shape)


@dataclass(frozen=True, eq=False)
class MatrixProduct:
    """``A B`` of matrices: ``r_A = ē Ḃᵀ`` and ``r_B = Ȧᵀ ē``.

    Attributes:
        a: A, [..., n, k].
        b: B, [..., k, m].
        gradient: ē, [..., n, m].
    """

    a: Tensor
    b: Tensor
    gradient: Tensor

    def tangent(self, *tangents: Tensor) -> Tensor:
        """See `Bend`."""
        a, b = tangents
        return _times(a, self.b) + _times(self.a, b)

    def curvature(self, made: Tensor | None, *tangents: Tensor) -> Sequence[Tensor]:
        """See `Bend`."""
        a, b = tangents
        by_a, by_b = _times(self.gradient, b.mT), _times(a.mT, self.gradient)
        return by_a.sum_to_size(a.shape), by_b.sum_to_size(b.shape)


def _times(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``; what has to be copied first keeps its memory order, which `torch.matmul` would transpose."""
    lead = a.shape[:-2]
    if a.ndim < 4 or b.shape[:-2] != lead:
        return a @ b
    return torch.bmm(_flattened(a), _flattened(b)).reshape(*lead, a.shape[-2], b.shape[-1])


def _flattened(matrices: Tensor) -> Tensor:
    """[..., n, m] to [N, n, m]."""
    if matrices.stride(-2) == 1 and matrices.shape[-1] > 1:
        return matrices.mT.flatten(0, -3).mT
    return matrices.flatten(0, -3)


@dataclass(frozen=True, eq=False)
class Softmax:
    """``p = softmax(s)`` along one axis.

    Attributes:
        p: the probabilities.
        gradient: ``g = p̄ − ⟨p, p̄⟩``.
        axis: the axis.
    """

    p: Tensor
    gradient: Tensor
    axis: int

    @staticmethod
    def of(p: Tensor, gradient: Tensor, axis: int) -> Softmax:
        """From p and p̄."""
        return Softmax(p, gradient - (p * gradient).sum(axis, keepdim=True), axis)

    def tangent(self, *tangents: Tensor) -> Tensor:
        """See `Bend`."""
        (s,) = tangents
        made: Tensor = aten._softmax_backward_data.default(s, self.p, self.axis, self.p.dtype)
        return made

    def curvature(self, made: Tensor | None, *tangents: Tensor) -> Sequence[Tensor]:
        """See `Bend`."""
        bent = (self.tangent(*tangents) if made is None else made) * self.gradient
        return (bent.addcmul_(self.p, bent.sum(self.axis, keepdim=True), value=-1),)


@dataclass(frozen=True, eq=False)
class Smooth:
    """Any operator, from a graph of it alone that is differentiated again and again.

    Attributes:
        moving: y.
        output: e(y), with its graph.
        covector: ē.
        pulled: ``Deᵀ[ē]`` for every y, as a function of y and ē.
    """

    moving: tuple[Tensor, ...]
    output: Tensor
    covector: Tensor
    pulled: tuple[Tensor, ...]

    @staticmethod
    def of(function: Callable[..., Tensor], moving: Sequence[Tensor], gradient: Tensor) -> Smooth:
        """From a function of what moves, where it is taken, and ē."""
        with torch.enable_grad():
            at = tuple(y.detach().requires_grad_() for y in moving)
            output = function(*at)
            covector = gradient.detach().to(output).requires_grad_()
            pulled = torch.autograd.grad(output, at, covector, create_graph=True)
        return Smooth(at, output, covector, pulled)

    def tangent(self, *tangents: Tensor) -> Tensor:
        """See `Bend`."""
        made: Tensor = _SmoothTangent.apply(self, *tangents)
        return made

    def pushed(self, tangents: Sequence[Tensor]) -> Tensor:
        """ė, without a graph."""
        (made,) = torch.autograd.grad(self.pulled, self.covector, tangents, retain_graph=True)
        return made

    def pulled_back(self, gradient: Tensor) -> Sequence[Tensor]:
        """The gradients by y of what has the given gradient at e."""
        return torch.autograd.grad(self.output, self.moving, gradient, retain_graph=True)

    def curvature(self, made: Tensor | None, *tangents: Tensor) -> Sequence[Tensor]:
        """See `Bend`."""
        found = torch.autograd.grad(self.pulled, self.moving, tangents, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(y) if r is None else r for y, r in zip(self.moving, found, strict=True)]


class _SmoothTangent(Function):
    """The tangent of a `Smooth` as an operator of its own, linear in the tangents of what moves."""

    @staticmethod
    def forward(ctx: Any, bend: Smooth, *tangents: Tensor) -> Tensor:
        ctx.bend = bend
        return bend.pushed(tangents)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return (None, *ctx.bend.pulled_back(gradient))


def is_differentiable(node: Node) -> bool:
    """Whether an operator makes one tensor, so that it can be differentiated by itself."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and [str(made.type) for made in schema.returns] == ["Tensor"]
