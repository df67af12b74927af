"""Convolutions of single positions as matrix products: the values and gradients of torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from growpipe.analyser.program import convolution as convolutions
from growpipe.analyser.program import pointwise
from growpipe.analyser.program.convolution import Convolution, conv_nd


def order(value: Tensor, innermost: bool) -> Tensor:
    """The value with its channels innermost in memory, or with axes that follow each other."""
    return value.movedim(1, -1).contiguous().movedim(-1, 1) if innermost else value.contiguous()


@pytest.mark.parametrize("size", [(9,), (3, 3), (8, 9), (70,), (1, 1), (2, 4, 3), (5, 4, 4)])
@pytest.mark.parametrize("innermost", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_pointwise_convolutions_are_those_of_torch(size, innermost, biased):
    torch.manual_seed(0)
    x = order(torch.randn(4, 5, *size, dtype=torch.float64), innermost)
    w = torch.randn(7, 5, *[1] * len(size), dtype=torch.float64)
    bias = torch.randn(7, dtype=torch.float64) if biased else None
    own = [torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d][len(size) - 1]
    wanted = own(x, w, bias)
    made = Convolution.of(w).forward(x, w, bias)
    torch.testing.assert_close(made, wanted)
    assert made.shape == wanted.shape
    if innermost:
        assert made.movedim(1, -1).is_contiguous()
    gradient = order(torch.randn_like(wanted), innermost)
    leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
    by_input, by_weight = torch.autograd.grad(own(*leaves), leaves, gradient)
    conv = Convolution.of(w)
    torch.testing.assert_close(conv.backward(gradient, torch.empty_like(x), w, 0), by_input)
    torch.testing.assert_close(conv.backward(gradient, x, torch.empty_like(w), 1), by_weight)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("innermost", [True, False])
def test_matrix_products_stand_in_for_pointwise_convolutions_alone(frozen, innermost, monkeypatch):
    taken = []
    original = convolutions.through_filters
    monkeypatch.setattr(convolutions, "through_filters", lambda *a: taken.append(a) or original(*a))
    x = order(torch.randn(3, 4, 8, 8), innermost).requires_grad_()
    for kernel, options, counts in (
        (1, {}, True), (3, {}, False), (1, {"stride": 2}, False), (1, {"padding": 1}, False),
        (1, {"groups": 2}, False),
    ):  # fmt: skip
        w = torch.randn(6, 4 // options.get("groups", 1), kernel, kernel)
        taken.clear()
        y = conv_nd(x, w, None, **options, frozen=frozen)
        torch.testing.assert_close(y, torch.nn.functional.conv2d(x, w, **options), rtol=1e-4, atol=1e-5)
        assert bool(taken) == counts
        torch.autograd.grad(y, x, order(torch.randn_like(y), innermost))
        assert len(taken) == 2 * counts  # that of the gradient by the input


@pytest.mark.parametrize("innermost", [True, False])
def test_a_matrix_product_stands_in_where_it_is_faster(innermost):
    x = order(torch.randn(2, 4, 8, 8), innermost)
    assert pointwise.is_faster(x, 4)
    assert not pointwise.is_faster(x.bfloat16(), 4)  # sums would have its precision
    assert not pointwise.is_faster(x[:1].expand(2, -1, -1, -1), 4)  # it would be copied first
    assert pointwise.is_faster(x, 2**20) != innermost
    assert pointwise.is_faster(order(x[:, :, :2], innermost), 4) == innermost
