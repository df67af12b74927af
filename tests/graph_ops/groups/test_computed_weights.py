"""Weights that the graph computes from parameters: masked, scaled, normalised, summed."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.onnx_tools.width_check import check_widths
from tests.graph_ops.groups.test_channel_groups import with_values
from tests.helpers.growing import assert_same_function, signed_plan


def network(first: str, second: str, declared: str) -> ir.Model:
    """``y = relu(x Wᵀ) Vᵀ`` whose weights ``w`` and ``v`` are computed by the nodes given."""
    return with_values(
        onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        computed (float[n,10] x) => (float[n,4] y)
        <{declared}>
        {{ {first} {second} h = Gemm <transB = 1> (x, w) r = Relu (h) y = Gemm <transB = 1> (r, v) }}
        """)
    )


PLAIN = "v = Identity (v0)"
# By name: how w [8, 10] and v [4, 8] are computed, the tensors, and whether the 8 channels grow.
CASES = {
    "a mask of zeros and ones": (
        "m = Greater (g, half) f = Cast <to = 1> (m) w = Mul (f, w0)",
        "n = Greater (k, half) e = Cast <to = 1> (n) v = Mul (e, v0)",
        "float[8,10] w0, float[8,10] g, float[4,8] v0, float[4,8] k, float half = {0.9}",
        True,
    ),
    "a scale for each channel": (
        "w = Mul (w0, g)",
        "v = Div (v0, k)",
        "float[8,10] w0, float[8,1] g, float[4,8] v0, float[4,1] k",
        True,
    ),
    "weight norm of the layer that makes the channels": (
        "n = ReduceL2 <axes = [1]> (w0) d = Div (w0, n) w = Mul (g, d)",
        PLAIN,
        "float[8,10] w0, float[8,1] g, float[4,8] v0",
        True,
    ),
    "weight norm of the layer that mixes the channels": (
        "w = Identity (w0)",
        "n = ReduceL2 <axes = [1]> (v0) d = Div (v0, n) v = Mul (g, d)",
        "float[8,10] w0, float[4,1] g, float[4,8] v0",
        False,
    ),
    "spectral norm": (
        "a = MatMul (w0, right) s = MatMul (left, a) w = Div (w0, s)",
        PLAIN,
        "float[8,10] w0, float[10] right, float[8] left, float[4,8] v0",
        True,
    ),
    "a positive weight": (
        "w = Exp (w0)",
        PLAIN,
        "float[8,10] w0, float[4,8] v0",
        True,
    ),
    "a positive weight that mixes": (
        "w = Identity (w0)",
        "v = Exp (v0)",
        "float[8,10] w0, float[4,8] v0",
        False,
    ),
    "a number is added to the weight": (
        "w = Add (w0, half)",
        "v = Add (half, v0)",
        "float[8,10] w0, float[4,8] v0, float half = {0.5}",
        True,
    ),
    "a number is subtracted, and the rest scaled": (
        "w = Identity (w0)",
        "d = Sub (v0, half) v = Mul (d, k)",
        "float[8,10] w0, float[4,8] v0, float[4,1] k, float half = {0.5}",
        True,
    ),
    "a number is added to a product": (
        "w = Identity (w0)",
        "d = Mul (v0, k) v = Add (d, half)",
        "float[8,10] w0, float[4,8] v0, float[4,1] k, float half = {0.5}",
        False,
    ),
    "a weight and its correction": (
        "w = Identity (w0)",
        "c = MatMul (p, q) v = Add (v0, c)",
        "float[8,10] w0, float[4,8] v0, float[4,2] p, float[2,8] q",
        False,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_computed_weights_grow_if_growth_is_exact(name: str) -> None:
    first, second, declared, grows = CASES[name]
    model = network(first, second, declared)
    groups = find_channel_groups(model)
    assert {(group.name, group.width) for group in groups.groups if group.splittable} == (
        {("w0", 8)} if grows else set()
    )
    if grows:
        wider = grow_graph(model, signed_plan(model, growth=0.5))
        assert check_widths(wider) == []
        x = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
        assert_same_function(model, wider, [{"x": x}])


@pytest.mark.parametrize(
    ("name", "operator", "reason"),
    [
        (
            "weight norm of the layer that mixes the channels",
            "ReduceL2",
            "a weight is computed from a reduction over this axis, which copies would change",
        ),
        (
            "a positive weight that mixes",
            "Gemm",
            "the weight is computed by Exp, so it cannot hold the coefficients",
        ),
        (
            "a number is added to a product",
            "Gemm",
            "a number is added to a part of the weight, or to its product with another",
        ),
        (
            "a weight and its correction",
            "Gemm",
            "the weight is computed by Add, so it cannot hold the coefficients",
        ),
    ],
)
def test_a_computed_weight_says_why_it_cannot_grow(name: str, operator: str, reason: str) -> None:
    first, second, declared, _ = CASES[name]
    barrier = find_channel_groups(network(first, second, declared))["w0"].barrier
    assert barrier is not None
    assert (barrier.operator, barrier.reason) == (operator, reason)


def test_a_weight_with_and_without_a_number_added_keeps_its_channels() -> None:
    model = with_values(
        onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        twice (float[n,10] x) => (float[n,4] y)
        <float[10,8] a, float[8,4] b, float one = {1}>
        { h = MatMul (x, a) r = Relu (h) c = Add (b, one) p = MatMul (r, b) q = MatMul (r, c) y = Add (p, q) }
        """)
    )
    barrier = find_channel_groups(model)["a"].barrier
    assert barrier is not None
    assert barrier.reason == "'b' is read with different numbers added to it"


def test_a_mask_stays_a_mask() -> None:
    model = network(
        "w = Identity (w0)",
        "v = Mul (k, v0)",
        "float[8,10] w0, float[4,8] v0, float[4,8] k = {" + ", ".join(["0.0", "1.0"] * 16) + "}",
    )
    wider = grow_graph(model, signed_plan(model, growth=0.5))
    mask = wider.graph.initializers["k"].const_value.numpy()
    assert mask.shape == (4, 12)
    assert set(np.unique(mask)) == {0.0, 1.0}
