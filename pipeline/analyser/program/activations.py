"""Activations with their first two derivatives, and the surrogate curvature of kinks.

Autograd's own double backward of an activation repeats every transcendental function at each product; here φ,
φ' and φ'' are written out, and φ'' is evaluated once.

ReLU and the like have no second derivative at their kinks. With jumps of φ' by ``a_k`` at ``u = t_k``, φ'' is
the regular part plus ``Σ_k a_k δ(u − t_k)``, and each δ is replaced by the second derivative of softplus,
``β s (1 − s)`` with ``s = sigmoid(β (u − t_k))`` (arXiv 1910.02366 and 2003.10392; β = 3 is their published
default). Forward and first derivative stay exact.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from growpipe.analyser.program.aten import aten

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Surrogate",
    "activation",
    "is_kinked",
    "parametric_relu",
]


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The named surrogate curvature, softplus with sharpness ``beta``."""

    beta: float = 3.0

    @property
    def name(self) -> str:
        return f"softplus(beta={self.beta:g})"

    def spike(self, u: Tensor) -> Tensor:
        """``β s (1 − s)``, which has integral 1 like the δ it stands for."""
        s = (self.beta * u).sigmoid_()
        return s.addcmul_(s, s, value=-1).mul_(self.beta)


@dataclass(frozen=True, slots=True)
class Activation:
    """φ and its first two derivatives; ``second`` takes the surrogate as its second argument.

    ``both`` gives φ' (None if it is not wanted) and ``g φ''`` in fewer passes over memory, from u, g and
    whether φ' is wanted; None if there is no shorter way.
    """

    value: Callable[[Tensor], Tensor]
    first: Callable[[Tensor], Tensor]
    second: Callable[[Tensor, Surrogate], Tensor]
    both: Callable[[Tensor, Tensor, bool], tuple[Tensor | None, Tensor]] | None = None

    def bend(
        self, u: Tensor, gradient: Tensor, surrogate: Surrogate, slope: bool
    ) -> tuple[Tensor | None, Tensor]:
        """φ'(u), or None unless ``slope``, and ``gradient · φ''(u)``; both in memory of their own."""
        if self.both is not None:
            return self.both(u, gradient, slope)
        return self.first(u) if slope else None, self.second(u, surrogate).mul_(gradient)


class _Apply(Function):
    """y = φ(u). Once its slope is part of a graph u is let go, which products no longer need."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, phi: Activation, surrogate: Surrogate) -> Tensor:
        ctx.phi, ctx.surrogate = phi, surrogate
        ctx.u, ctx.first = u, None
        return phi.value(u)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        if ctx.first is None:
            ctx.first = ctx.phi.first(ctx.u.detach())
        if not torch.is_grad_enabled():
            return g * ctx.first, None, None
        if ctx.u is None:
            raise RuntimeError("the slope of an activation can be differentiated in one graph only")
        u, ctx.u = ctx.u, None
        return _Slope.apply(g, u, ctx.first, ctx.phi, ctx.surrogate), None, None


class _Slope(Function):
    """g φ'(u), differentiable once more; φ'' is evaluated when the graph is built, not at every product."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, u: Tensor, first: Tensor, phi: Activation, surrogate: Surrogate
    ) -> Tensor:
        ctx.save_for_backward(first, g * phi.second(u, surrogate))
        return g * first

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, t: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        first, curvature = ctx.saved_tensors
        by_g, by_u = ctx.needs_input_grad[:2]
        return t * first if by_g else None, t * curvature if by_u else None, None, None, None


def _kinks(
    value: Callable[[Tensor], Tensor],
    first: Callable[[Tensor], Tensor],
    *kinks: tuple[float, float],
    regular: Callable[[Tensor], Tensor] | None = None,
) -> Activation:
    """An activation with jumps of φ': (where, by how much)."""

    def second(u: Tensor, surrogate: Surrogate) -> Tensor:
        terms = [] if regular is None else [regular(u)]
        terms += [_times(surrogate.spike(u - where if where else u), jump) for where, jump in kinks if jump]
        return functools.reduce(Tensor.add_, terms) if terms else torch.zeros_like(u)

    return Activation(value, first, second)


def _times(u: Tensor, factor: float) -> Tensor:
    return u if factor == 1 else u.mul_(factor)


def _step(u: Tensor) -> Tensor:
    return (u > 0).to(u.dtype)


def _inside(u: Tensor, low: float, high: float) -> Tensor:
    return ((u > low) & (u < high)).to(u.dtype)


_INVERSE_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)


def _density(u: Tensor) -> Tensor:
    return (u * u).mul_(-0.5).exp_().mul_(_INVERSE_SQRT_2PI)


def _gelu_first(u: Tensor) -> Tensor:
    below = (u / math.sqrt(2.0)).erf_().add_(1).mul_(0.5)
    return below.add_(_density(u).mul_(u))


def _gelu_second(u: Tensor, _: Surrogate) -> Tensor:
    return (u * u).neg_().add_(2).mul_(_density(u))


def _silu_first(u: Tensor) -> Tensor:
    one: Tensor = aten.silu_backward.default(torch.ones_like(u), u)
    return one


def _silu_second(u: Tensor, _: Surrogate) -> Tensor:
    s = torch.sigmoid(u)
    bend = s.mul(-2).add_(1).mul_(u).add_(2).mul_(s)  # s (2 + u (1 − 2s))
    return bend.addcmul_(bend, s, value=-1)


def _silu_both(u: Tensor, gradient: Tensor, slope: bool) -> tuple[Tensor | None, Tensor]:
    s = torch.sigmoid(u)
    bend = torch.addcmul(u, u, s, value=-2).add_(2).mul_(gradient)  # g (2 + u (1 − 2s))
    # sigmoid_backward(g, s) is g s (1 − s) in one pass.
    curvature: Tensor = aten.sigmoid_backward.grad_input(bend, s, grad_input=bend)
    return aten.sigmoid_backward.default(u, s).add_(s) if slope else None, curvature


def _sigmoid_first(u: Tensor) -> Tensor:
    s = torch.sigmoid(u)
    return s * (1 - s)


def _sigmoid_second(u: Tensor, _: Surrogate) -> Tensor:
    s = torch.sigmoid(u)
    return s * (1 - s) * (1 - 2 * s)


def _tanh_second(u: Tensor, _: Surrogate) -> Tensor:
    t = torch.tanh(u)
    return -2 * t * (1 - t * t)


_K = math.sqrt(2.0 / math.pi)


def _tanh_gelu_first(u: Tensor) -> Tensor:
    t = torch.tanh(_K * (u + 0.044715 * u**3))
    return 0.5 * (1 + t) + 0.5 * u * (1 - t * t) * _K * (1 + 3 * 0.044715 * u * u)


def _tanh_gelu_second(u: Tensor, _: Surrogate) -> Tensor:
    t = torch.tanh(_K * (u + 0.044715 * u**3))
    slope = _K * (1 + 3 * 0.044715 * u * u)
    bend = _K * 6 * 0.044715 * u
    return (1 - t * t) * (slope + 0.5 * u * (bend - 2 * t * slope * slope))


SILU = Activation(torch.nn.functional.silu, _silu_first, _silu_second, _silu_both)
SIGMOID = Activation(torch.sigmoid, _sigmoid_first, _sigmoid_second)
TANH = Activation(torch.tanh, lambda u: 1 - torch.tanh(u) ** 2, _tanh_second)
GELU = Activation(torch.nn.functional.gelu, _gelu_first, _gelu_second)
TANH_GELU = Activation(
    lambda u: torch.nn.functional.gelu(u, approximate="tanh"), _tanh_gelu_first, _tanh_gelu_second
)
RELU = _kinks(torch.relu, _step, (0.0, 1.0))
HARDSWISH = _kinks(
    torch.nn.functional.hardswish,
    lambda u: _inside(u, -3, 3) * (2 * u + 3) / 6 + (u >= 3).to(u.dtype),
    (-3.0, -0.5),
    (3.0, -0.5),
    regular=lambda u: _inside(u, -3, 3) / 3,
)
HARDSIGMOID = _kinks(
    torch.nn.functional.hardsigmoid, lambda u: _inside(u, -3, 3) / 6, (-3.0, 1 / 6), (3.0, -1 / 6)
)
ABS = _kinks(torch.abs, torch.sign, (0.0, 2.0))


def leaky_relu(slope: float) -> Activation:
    """max(u, 0) + slope · min(u, 0)."""
    return _kinks(
        lambda u: torch.nn.functional.leaky_relu(u, slope),
        lambda u: torch.where(u > 0, 1.0, slope).to(u.dtype),
        (0.0, 1.0 - slope),
    )


def clamp(low: float, high: float) -> Activation:
    """min(max(u, low), high); ReLU6 is clamp(0, 6)."""
    kinks = [(low, 1.0)] if math.isfinite(low) else []
    kinks += [(high, -1.0)] if math.isfinite(high) else []
    return _kinks(lambda u: torch.clamp(u, low, high), lambda u: _inside(u, low, high), *kinks)


def activation(phi: Activation, u: Tensor, surrogate: Surrogate) -> Tensor:
    """φ(u), elementwise, twice differentiable; the second derivative of a kinked φ is the surrogate's."""
    result: Tensor = _Apply.apply(u, phi, surrogate)
    return result


class _Prelu(Function):
    """max(u, 0) + a · min(u, 0) with a slope per channel; the curvature jumps by 1 − a at 0."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, slope: Tensor, surrogate: Surrogate) -> Tensor:
        first = torch.where(u > 0, torch.ones_like(u), slope.expand_as(u))
        ctx.surrogate = surrogate
        ctx.save_for_backward(u, first, slope)
        return u * first

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        u, first, slope = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return g * first, None, None
        bend = Activation(lambda x: x, lambda x: x, lambda x, s: (1 - slope) * s.spike(x))
        return _Slope.apply(g, u, first, bend, ctx.surrogate), None, None


def parametric_relu(surrogate: Surrogate, u: Tensor, slope: Tensor) -> Tensor:
    """max(u, 0) + slope · min(u, 0), twice differentiable; one slope, or one per entry of axis 1."""
    shape = (1, -1, *[1] * (u.ndim - 2)) if slope.numel() > 1 else (1,) * u.ndim
    result: Tensor = _Prelu.apply(u, slope.reshape(shape), surrogate)
    return result


def _gelu(approximate: str = "none") -> Activation:
    return TANH_GELU if approximate == "tanh" else GELU


def _clamp(low: float | None = None, high: float | None = None) -> Activation:
    return clamp(-math.inf if low is None else low, math.inf if high is None else high)


# What an elementwise operator is, given its arguments after the first.
ACTIVATIONS: dict[Any, Callable[..., Activation]] = {
    aten.silu.default: lambda: SILU,
    aten.sigmoid.default: lambda: SIGMOID,
    aten.tanh.default: lambda: TANH,
    aten.gelu.default: _gelu,
    aten.relu.default: lambda: RELU,
    aten.relu6.default: lambda: clamp(0.0, 6.0),
    aten.hardswish.default: lambda: HARDSWISH,
    aten.hardsigmoid.default: lambda: HARDSIGMOID,
    aten.abs.default: lambda: ABS,
    aten.hardtanh.default: lambda low=-1.0, high=1.0: clamp(low, high),
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.leaky_relu.default: lambda slope=0.01: leaky_relu(slope),
}


_SMOOTH = {aten.silu.default, aten.sigmoid.default, aten.tanh.default, aten.gelu.default}


def is_kinked(operator: Any) -> bool:
    """Whether the operator's second derivative is a surrogate's."""
    return operator is aten.prelu.default or operator in ACTIVATIONS.keys() - _SMOOTH
