"""Quantised and contributed operators, each against a wide graph."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tests.helpers.wide import FOUR, Case, Step, Weight, assert_grown_as_written
from tests.helpers.wide import copied as c
from tests.helpers.wide import mixed as m
from tests.helpers.wide import weight as w

RNG = np.random.default_rng(0)
IMAGE, ROWS, VECTORS = "float[n,3,6,6] x", "float[n,5,3] x", "float[n,3] x"
FILTERS, COLUMNS = w((2, 4, 1, 1), m(1)), w((4, 2), m(0))


def held(array: npt.NDArray, *steps: Step) -> Weight:
    return Weight(array.shape, steps, array)


def int8(*shape: int) -> npt.NDArray:
    return RNG.integers(-100, 100, shape).astype(np.int8)


SCALES = held(RNG.uniform(0.005, 0.02, 4).astype(np.float32), c(0))
ZEROS = held(np.zeros(4, np.int8), c(0))
POINTS = held(np.array([3, -2, 0, 5], np.int8), c(0))
BIAS = held(np.array([50, -70, 0, 9], np.int32), c(0))
FIXED = "<float s = {0.05}, uint8 z = {128}>"


def alike(inputs: str, body: str, constants: str = "", opset: int = 18, **weights: Weight) -> Case:
    """A graph that spells out no length, so that the wide one has the same text."""
    return Case(inputs, f"{constants} {{ {body} }}", weights, reals=("float",), opset=opset)


def rows(body: str, a: Weight, inputs: str = ROWS, constants: str = "", **weights: Weight) -> Case:
    return alike(inputs, f"{body} y = MatMul (h, b)", constants, a=a, b=COLUMNS, **weights)


def activation(operator: str) -> Case:
    return rows(f"k = MatMul (x, a) h = com.microsoft.{operator} (k)", w((3, 4), c(1)))


DYNAMIC = "q, s, z = DynamicQuantizeLinear (x)"
CASES = {
    "QLinearConv": alike(
        IMAGE,
        "q = QuantizeLinear (x, s, z) k = QLinearConv (q, s, z, a, sa, za, s, z, e) "
        "h = DequantizeLinear (k, s, z) y = Conv (h, b)",
        FIXED,
        a=held(int8(4, 3, 3, 3), c(0)),
        b=FILTERS,
        sa=SCALES,
        za=ZEROS,
        e=BIAS,
    ),
    "ConvInteger": alike(
        IMAGE,
        f"{DYNAMIC} i = ConvInteger (q, a, z) f = Cast <to = 1> (i) h = Mul (f, s) y = Conv (h, b)",
        a=held(int8(4, 3, 3, 3), c(0)),
        b=FILTERS,
    ),
    "weights stored as int8": alike(
        IMAGE,
        "d = DequantizeLinear <axis = 0> (a, sa, za) e = DequantizeLinear <axis = 0> (f, sa) "
        "h = Conv (x, d, e) y = Conv (h, b)",
        a=held(int8(4, 3, 3, 3), c(0)),
        b=FILTERS,
        sa=SCALES,
        za=POINTS,
        f=BIAS,
    ),
    "MatMulInteger": rows(
        f"{DYNAMIC} i = MatMulInteger (q, a, z, za) f = Cast <to = 1> (i) g = Mul (f, s) h = Mul (g, sa)",
        held(int8(3, 4), c(1)),
        sa=SCALES,
        za=POINTS,
    ),
    "QLinearMatMul": rows(
        "q = QuantizeLinear (x, s, z) k = QLinearMatMul (q, s, z, a, sa, za, s, z) "
        "h = DequantizeLinear (k, s, z)",
        held(int8(3, 4), c(1)),
        constants=FIXED,
        sa=SCALES,
        za=ZEROS,
    ),
    "Gelu": activation("Gelu"),
    "FastGelu": activation("FastGelu"),
    "QuickGelu": activation("QuickGelu"),
    "BiasGelu": rows("k = MatMul (x, a) h = com.microsoft.BiasGelu (k, e)", w((3, 4), c(1)), e=w((4,), c(0))),
    "FusedMatMul": rows("h = com.microsoft.FusedMatMul <alpha = 0.5> (x, a)", w((3, 4), c(1))),
    "FusedGemm": rows(
        'h = com.microsoft.FusedGemm <activation = "Relu"> (x, a, e)',
        w((3, 4), c(1)),
        VECTORS,
        e=w((4,), c(0)),
    ),
    "FusedConv": alike(
        IMAGE,
        'h = com.microsoft.FusedConv <activation = "Relu"> (x, a, e) y = Conv (h, b)',
        a=w((4, 3, 3, 3), c(0)),
        b=FILTERS,
        e=w((4,), c(0)),
    ),
    "DynamicQuantizeMatMul": rows(
        "h = com.microsoft.DynamicQuantizeMatMul (x, a, sa, za, e)",
        held(int8(3, 4), c(1)),
        sa=SCALES,
        za=ZEROS,
        e=w((4,), c(0)),
    ),
    "MatMulIntegerToFloat": rows(
        f"{DYNAMIC} h = com.microsoft.MatMulIntegerToFloat (q, a, s, sa, z, za, e)",
        held(int8(3, 4), c(1)),
        sa=SCALES,
        za=ZEROS,
        e=w((4,), c(0)),
    ),
    "MatMulNBits": rows(
        "k = com.microsoft.MatMulNBits <K = 32, N = 3, bits = 4, block_size = 32> (x, p, t) "
        "h = MatMul (k, a)",
        w((3, 4), c(1)),
        "float[n,32] x",
        p=held(RNG.integers(0, 255, (3, 1, 16)).astype(np.uint8)),
        t=held(np.full(3, 0.1, np.float32)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_grown_is_the_wide_reference(name: str) -> None:
    assert CASES[name].splits == {"a": FOUR}
    assert_grown_as_written(CASES[name])
