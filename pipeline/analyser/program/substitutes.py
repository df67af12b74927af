"""What stands in for an operator on a group's path: plain, twice differentiable, whatever the strides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from growpipe.analyser.program.activations import ACTIVATIONS, Activation, activation, parametric_relu
from growpipe.analyser.program.aten import CONVOLUTIONS, RESHAPES, aten
from growpipe.analyser.program.convolution import conv_nd, convolution

__all__ = ["DIFFERENTIABLE", "OVERRIDES", "PLAIN_ATTENTION"]


DIFFERENTIABLE: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys(CONVOLUTIONS, conv_nd),
    aten.convolution.default: convolution,
}
"""What stands in for a convolution that is differentiated: gradients that take every memory format."""


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    """Batch normalisation in evaluation mode: one scale and one shift per channel."""
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    shape = (1, -1, *[1] * (x.ndim - 2))
    return x * scale.reshape(shape) + shift.reshape(shape)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention in plain operators: the fused kernels have no double backward."""
    if enable_gqa:
        repeats = q.shape[-3] // k.shape[-3]
        k, v = k.repeat_interleave(repeats, -3), v.repeat_interleave(repeats, -3)
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~allowed, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1) @ v


PLAIN_ATTENTION: dict[Any, Callable[..., Tensor]] = {aten.scaled_dot_product_attention.default: _attention}
"""Attention whose logits are a value of their own."""


def _elementwise(make: Callable[..., Activation]) -> Callable[..., Tensor]:
    return lambda surrogate, u, *rest, **keywords: activation(make(*rest, **keywords), u, surrogate)


def _unsurrogated(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda surrogate, *args, **kwargs: function(*args, **kwargs)


def _legit_batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Tensor, var: Tensor, _momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    empty = x.new_empty(0)
    return _batch_norm(x, weight, bias, mean, var, eps), empty, empty


def _plain_batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Tensor, var: Tensor, _training: bool, _momentum: float,
    eps: float, _cudnn: bool,
) -> Tensor:  # fmt: skip
    return _batch_norm(x, weight, bias, mean, var, eps)


# What stands in for an operator on a group's path: (surrogate, *arguments) -> value.
OVERRIDES: dict[Any, Callable[..., Any]] = {
    **{operator: _elementwise(make) for operator, make in ACTIVATIONS.items()},
    aten.prelu.default: parametric_relu,
    aten._native_batch_norm_legit_no_training.default: _unsurrogated(_legit_batch_norm),
    aten.batch_norm.default: _unsurrogated(_plain_batch_norm),
    aten.scaled_dot_product_attention.default: _unsurrogated(_attention),
    **{operator: _unsurrogated(made) for operator, made in {**RESHAPES, **DIFFERENTIABLE}.items()},
}
