"""Convolutions as matrix products and with rounded factors: the values and gradients of torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from growpipe.analyser.program import patches, pointwise
from growpipe.analyser.program.convolution import Convolution, conv_nd
from growpipe.analyser.program.precision import rounded_factors, rounds_factors


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
    original = pointwise.through_filters
    monkeypatch.setattr(pointwise, "through_filters", lambda *a: taken.append(a) or original(*a))
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


FEW_POSITIONS = [
    # size, kernel, stride, padding, dilation
    ((2, 2), (3, 3), 1, 1, 1),
    ((4, 4), (3, 3), 2, 1, 1),
    ((1, 1), (3, 3), 1, 1, 1),
    ((2, 2), (3, 3), 2, 1, 1),
    ((5, 3), (2, 3), (3, 1), (0, 1), 1),
    ((7, 7), (3, 3), 2, 0, 3),
    ((3, 3), (1, 1), 2, 0, 1),
    ((9,), (5,), 3, 0, 1),
    ((2,), (5,), 1, 2, 1),
    ((2, 3, 2), (3, 2, 3), 2, 1, 1),
    ((1, 4, 1), (3, 3, 3), (1, 2, 1), 1, 1),
]


def _own(rank):
    return [torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d][rank - 1]


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation"), FEW_POSITIONS)
@pytest.mark.parametrize("innermost", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_convolutions_over_few_positions_are_those_of_torch(
    size, kernel, stride, padding, dilation, innermost, biased, monkeypatch
):
    monkeypatch.setattr(patches, "_LARGE", 0)
    monkeypatch.setattr(patches, "_LARGE_FOR_GRADIENT", 0)
    torch.manual_seed(0)
    own, geometry = _own(len(size)), {"stride": stride, "padding": padding, "dilation": dilation}
    x = order(torch.randn(4, 5, *size, dtype=torch.float64), innermost).requires_grad_()
    w = order(torch.randn(7, 5, *kernel, dtype=torch.float64), innermost).requires_grad_()
    bias = torch.randn(7, dtype=torch.float64) if biased else None
    conv = Convolution.of(w, stride, padding, dilation)
    wanted = own(x, w, bias, **geometry)
    torch.testing.assert_close(conv.forward(x, w, bias), wanted)
    gradient = order(torch.randn_like(wanted), innermost)
    by_input, by_weight = torch.autograd.grad(wanted, (x, w), gradient)
    torch.testing.assert_close(conv.backward(gradient, torch.empty_like(x), w, 0), by_input)
    torch.testing.assert_close(conv.backward(gradient, x, torch.empty_like(w), 1), by_weight)


def test_depthwise_filters_without_input_get_no_gradient():
    x = torch.randn(3, 4, 1, 1, dtype=torch.float64)
    w = torch.randn(4, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.conv2d(x, w, padding=1, groups=4)
    conv = Convolution.of(w, 1, 1, 1, 4)
    torch.testing.assert_close(conv.forward(x, w), y)
    (wanted,) = torch.autograd.grad(y.sum(), w)
    found = conv.backward(torch.ones_like(y), x, torch.empty_like(w), 1)
    torch.testing.assert_close(found, wanted)
    assert found.count_nonzero() == 4


def test_patches_stand_in_for_large_filters_over_few_positions(monkeypatch):
    taken = []
    for name in ("through_filters", "filter_gradient"):
        original = getattr(patches, name)
        monkeypatch.setattr(patches, name, lambda *a, n=name, f=original: taken.append(n) or f(*a))

    def found(channels, size, groups=1):
        x, w = torch.randn(2, channels, size, size), torch.randn(channels, channels // groups, 3, 3)
        conv = Convolution.of(w, padding=1, groups=groups)
        taken.clear()
        y = conv.forward(x, w)
        torch.testing.assert_close(conv.backward(y, x, w, 1).shape, w.shape)
        return list(taken)

    assert found(176, 2) == ["through_filters", "filter_gradient"]
    assert found(96, 2) == ["filter_gradient"]
    assert found(64, 2) == found(96, 4) == found(352, 2, groups=2) == []
    with rounded_factors():
        assert found(176, 4) == ["filter_gradient"]
        assert found(176, 5) == []


@pytest.mark.parametrize("size", [1, 2, 4, 9])
@pytest.mark.parametrize(("kernel", "groups"), [(1, 1), (3, 1), (3, 32)])
def test_rounded_factors_change_little(size, kernel, groups):
    torch.manual_seed(0)
    x = torch.randn(4, 32, size, size)
    w = torch.randn(64, 32 // groups, kernel, kernel)
    conv = Convolution.of(w, 1, kernel // 2, 1, groups)
    y = conv.forward(x, w)
    wanted = [y, *(conv.backward(y, x, w, which) for which in (0, 1))]
    with rounded_factors():
        assert rounds_factors(x)
        assert not rounds_factors(x.double())
        found = [conv.forward(x, w), *(conv.backward(y, x, w, which) for which in (0, 1))]
    assert not rounds_factors(x)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm() / other.norm()) < 2**-7
