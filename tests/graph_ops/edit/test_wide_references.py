"""Every family of rules that makes, mixes or carries channels, against a wide graph written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.wide import FOUR, THREE, TWO, Case, Move, Step, Weight, assert_grown_as_written, image, mlp
from tests.helpers.wide import beside as row
from tests.helpers.wide import copied as c
from tests.helpers.wide import mixed as m
from tests.helpers.wide import times as x
from tests.helpers.wide import weight as w

B = w((2, 4, 1, 1), m(1))

CONVOLUTIONS = {
    "Conv": image("z = Softplus (h)", B, moves={"a": Move(0)}),
    "Conv with bias": Case(
        "real[n,3,6,6] x",
        "{ h = Conv (x, a, d) z = Tanh (h) y = Conv (z, b) }",
        {"a": w((4, 3, 3, 3), c(0)), "b": B, "d": w((4,), c(0))},
        moves={"a": Move(0), "d": Move(0)},
    ),
    "Conv of rank 1": Case(
        "real[n,3,6] x",
        "{ h = Conv (x, a) z = Tanh (h) y = Conv (z, b) }",
        {"a": w((4, 3, 2), c(0)), "b": w((2, 4, 3), m(1))},
        moves={"a": Move(0)},
    ),
    "Conv of rank 3": Case(
        "real[n,1,4,4,4] x",
        "{ h = Conv (x, a) z = Tanh (h) y = Conv <strides = [2, 1, 1]> (z, b) }",
        {"a": w((4, 1, 2, 2, 2), c(0)), "b": w((2, 4, 2, 2, 2), m(1))},
    ),
    "two layers that both split and move": image(
        "r = Tanh (h) k = Conv (r, d) z = Tanh (k)",
        w((2, 3, 1, 1), m(1, THREE)),
        weights={"d": w((3, 4, 1, 1), c(0, THREE), m(1))},
        splits={"a": FOUR, "d": THREE},
        moves={"a": Move(0), "d": Move(0, 3, (3,), "d")},
    ),
    "residual": image(
        "r = Tanh (h) k = Conv (r, d) s = Add (h, k) z = Tanh (s)",
        B,
        weights={"d": w((4, 4, 1, 1), c(0), m(1))},
        moves={"a": Move(0), "d": Move(0)},
    ),
    "filters used twice": image(
        "k = Conv (h, d) r = Tanh (k) z = Conv (r, d)", B, weights={"d": w((4, 4, 1, 1), c(0), m(1))}
    ),
    "squeeze and excite": image(
        "p = GlobalAveragePool (h) g = Conv (p, d) s = Sigmoid (g) z = Mul (h, s)",
        B,
        weights={"d": w((4, 4, 1, 1), c(0), m(1))},
    ),
    "depthwise": image(
        "k = Conv <group = 4> (h, d) z = Tanh (k)",
        B,
        "k = Conv <group = 7> (h, d) z = Tanh (k)",
        weights={"d": w((4, 1, 3, 3), c(0))},
        moves={"a": Move(0), "d": Move(0)},
    ),
    "depthwise with multiplier, channels": image(
        "z = Conv <group = 4> (h, d)",
        w((2, 8, 1, 1), m(1, x(FOUR, 2))),
        "z = Conv <group = 7> (h, d)",
        weights={"d": w((8, 1, 3, 3), c(0, x(FOUR, 2)))},
        moves={"a": Move(0), "d": Move(0, entries=(8, 9))},
    ),
    "depthwise with multiplier, both": image(
        "z = Conv <group = 4> (h, d)",
        w((2, 8, 1, 1), m(1, x(FOUR, TWO))),
        "z = Conv <group = 7> (h, d)",
        weights={"d": w((8, 1, 3, 3), c(0, x(FOUR, TWO)))},
        splits={"a": FOUR, "d": TWO},
    ),
    "grouped, whole groups": image(
        "z = Conv <group = 2> (h, d)",
        w((2, 6, 1, 1), m(1, x(TWO, 3))),
        "z = Conv <group = 4> (h, d)",
        w((4, 3, 3, 3), c(0, x(TWO, 2))),
        weights={"d": w((6, 2, 3, 3), c(0, x(TWO, 3)))},
        splits={"a": TWO},
        moves={"a": Move(0, 3, (6, 7)), "d": Move(0, 3, (9, 10, 11))},
    ),
    "grouped, inputs of each group": image(
        "z = Conv <group = 2> (h, d)",
        w((2, 6, 1, 1)),
        a=w((4, 3, 3, 3), c(0, x(2, TWO))),
        weights={"d": w((6, 2, 3, 3), m(1, TWO))},
        splits={"a#2": TWO},
        moves={"a": Move(0, 3, (3, 7), "a#2")},
    ),
    "grouped, outputs of each group": image(
        "z = Conv <group = 2> (h, d)",
        w((2, 6, 1, 1), m(1, x(2, THREE))),
        a=w((4, 3, 3, 3)),
        weights={"d": w((6, 2, 3, 3), c(0, x(2, THREE)))},
        splits={"d": THREE},
        moves={"d": Move(0, 3, (3, 7), "d")},
    ),
    "grouped, all at once": image(
        "z = Conv <group = 2> (h, d)",
        w((2, 6, 1, 1), m(1, x(TWO, THREE))),
        "z = Conv <group = 4> (h, d)",
        w((4, 3, 3, 3), c(0, x(TWO, TWO))),
        weights={"d": w((6, 2, 3, 3), c(0, x(TWO, THREE)), m(1, TWO))},
        splits={"a": TWO, "a#2": TWO, "d": THREE},
    ),
    "ConvTranspose": image(
        "k = ConvTranspose <strides = [2, 2]> (h, d, e) z = Tanh (k)",
        w((2, 3, 1, 1), m(1, THREE)),
        weights={"d": w((4, 3, 2, 2), m(0), c(1, THREE)), "e": w((3,), c(0, THREE))},
        splits={"a": FOUR, "d": THREE},
        moves={"a": Move(0), "d": Move(1, 3, (3,), "d"), "e": Move(0, 3, (3,), "d")},
    ),
    "ConvTranspose, depthwise": image(
        "z = ConvTranspose <group = 4> (h, d)",
        B,
        "z = ConvTranspose <group = 7> (h, d)",
        weights={"d": w((4, 1, 2, 2), c(0))},
    ),
    "ConvTranspose, grouped": image(
        "z = ConvTranspose <group = 2> (h, d)",
        w((2, 6, 1, 1), m(1, x(2, THREE))),
        a=w((4, 3, 3, 3), c(0, x(2, TWO))),
        weights={"d": w((4, 3, 2, 2), m(0, x(2, TWO)), c(1, THREE))},
        splits={"a#2": TWO, "d": THREE},
    ),
}

CONTRACTIONS = {
    "Gemm": mlp(
        "h = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, a, d)",
        "y = Gemm <alpha = 0.5> (r, b)",
        inputs="real[n,3] x",
        a=w((4, 3), c(0)),
        d=w((4,), c(0)),
        b=w((4, 2), m(0)),
        moves={"a": Move(0), "d": Move(0)},
    ),
    "Gemm with a bias of rank 2": mlp(
        "h = Gemm (x, a, d)",
        "y = Gemm <transB = 1> (r, b)",
        inputs="real[n,3] x",
        a=w((3, 4), c(1)),
        d=w((1, 4), c(1)),
        b=w((2, 4), m(1)),
        moves={"a": Move(1), "d": Move(1)},
    ),
    "Gemm with one bias for all": mlp(
        "h = Gemm (x, a, d)",
        "y = Gemm (r, b)",
        inputs="real[n,3] x",
        a=w((3, 4), c(1)),
        d=w((1,)),
        b=w((4, 2), m(0)),
    ),
    "Gemm with the weight first": mlp(
        "h = Gemm <transA = 1, transB = 1> (a, x)",
        "y = Gemm <transA = 1> (b, r)",
        inputs="real[n,3] x",
        a=w((3, 4), c(1)),
        b=w((4, 2), m(0)),
        moves={"a": Move(1)},
    ),
    "MatMul": mlp(
        "g = MatMul (x, a) h = Add (d, g)",
        "y = MatMul (r, b)",
        a=w((3, 4), c(1)),
        d=w((4,), c(0)),
        b=w((4, 2), m(0)),
        moves={"a": Move(1), "d": Move(0)},
    ),
    "MatMul with transposed weights": mlp(
        "at = Transpose (a) h = MatMul (x, at)",
        "bt = Transpose <perm = [1, 0]> (b) y = MatMul (r, bt)",
        a=w((4, 3), c(0)),
        b=w((2, 4), m(1)),
        moves={"a": Move(0)},
    ),
    "MatMul from the left": mlp(
        "h = MatMul (a, x)",
        "y = MatMul (b, r)",
        a=w((4, 5), c(0)),
        b=w((2, 4), m(1)),
        moves={"a": Move(0)},
    ),
    "MatMul with a vector": mlp("h = MatMul (x, a)", "y = MatMul (r, b)", a=w((3, 4), c(1)), b=w((4,), m(0))),
    "MatMul with stacks": mlp(
        "h = MatMul (x, a)",
        "y = MatMul (r, b)",
        inputs="real[2,5,3] x",
        a=w((2, 3, 4), c(2)),
        b=w((2, 4, 2), m(1)),
        splits={"a#2": FOUR},
        moves={"a": Move(2, group="a#2")},
    ),
    "Einsum": mlp(
        'h = Einsum <equation = "nlc,oc->nol"> (x, a)',
        'y = Einsum <equation = "po,nol->nlp"> (b, r)',
        a=w((4, 3), c(0)),
        b=w((2, 4), m(1)),
        moves={"a": Move(0)},
    ),
    "embedding": mlp(
        "h = Gather (a, x)",
        "y = MatMul (r, b)",
        inputs="int64[n,5] x",
        a=w((10, 4), c(1)),
        b=w((4, 2), m(0)),
        moves={"a": Move(1)},
    ),
    "weights in Constant nodes": mlp(
        "h = MatMul (x, a)",
        "y = MatMul (r, b)",
        a=w((3, 4), c(1)),
        b=w((4, 2), m(0)),
        moves={"a": Move(1)},
        constants=("a", "b"),
    ),
}


def vectors(shape: tuple[int, ...], *names: str, axis: int = 0) -> dict[str, Weight]:
    return {name: w(shape, c(axis)) for name in names}


def carried(z: str, *steps: Step, shape: tuple[int, ...] = (4, 1, 1), **rest) -> Case:
    return image(z, B, weights={"d": w(shape, *steps)}, **rest)


BOTH = {"a": Move(0), "d": Move(0)}

STANDARDISED = (
    "v = Reshape (a, rows) i = InstanceNormalization (v, d, e) f = Reshape (i, back) h = Conv (x, f) "
    "r = Tanh (h) y = Conv (r, b)"
)
CARRIED = {
    "BatchNormalization": image(
        "k = BatchNormalization (h, d, e, mean, var) z = Tanh (k)",
        B,
        weights=vectors((4,), "d", "e", "mean", "var"),
        moves={"a": Move(0), "d": Move(0), "e": Move(0)},
    ),
    "InstanceNormalization": image(
        "k = InstanceNormalization (h, d, e) z = Tanh (k)", B, weights=vectors((4,), "d", "e"), moves=BOTH
    ),
    "standardised filters": Case(
        "real[n,3,6,6] x",
        f"<int64[3] rows = {{1, 4, 27}}, int64[4] back = {{4, 3, 3, 3}}> {{ {STANDARDISED} }}",
        {"a": w((4, 3, 3, 3), c(0)), "b": B, **vectors((4,), "d", "e")},
        f"<int64[3] rows = {{1, 7, 27}}, int64[4] back = {{7, 3, 3, 3}}> {{ {STANDARDISED} }}",
        moves={"a": Move(0), "d": Move(0), "e": Move(0)},
    ),
    "GroupNormalization": image(
        "z = GroupNormalization <num_groups = 2> (h, d, e)",
        w((2, 4, 1, 1), m(1, x(TWO, 2))),
        "z = GroupNormalization <num_groups = 4> (h, d, e)",
        w((4, 3, 3, 3), c(0, x(TWO, 2))),
        weights={"d": w((4,), c(0, x(TWO, 2))), "e": w((4,), c(0, x(TWO, 2)))},
        splits={"a": TWO},
        opset=21,
    ),
    "MeanVarianceNormalization": image("z = MeanVarianceNormalization (h)", B),
    "Add on the left": carried("z = Add (d, h)", c(0), moves=BOTH),
    "Mul of rank 4": carried("z = Mul (h, d)", c(1), shape=(1, 4, 1, 1), moves={"d": Move(1)}),
    "Sub with all axes": carried("z = Sub (d, h)", c(1), shape=(1, 4, 4, 4)),
    "Div by one number": carried("z = Div (h, d)", shape=(1,)),
    "Pow by a scalar": carried("q = Abs (h) e = Abs (d) z = Pow (q, e)", shape=()),
    "Add over space alone": carried("z = Add (h, d)", shape=(4,)),
    "PRelu": carried("z = PRelu (h, d)", c(0), moves=BOTH),
    "PRelu with one slope": carried("z = PRelu (h, d)", shape=(1,)),
    "Where": carried("p = Greater (h, d) z = Where (p, h, d)", c(0)),
    "Max": carried("z = Max (d, h)", c(0)),
    "Clip": image("z = Clip (h, low, high)", B, ints=("real low = {-0.5}, real high = {0.5}",) * 2),
    "Sum of three": carried("z = Sum (h, d, h)", c(0)),
    "Cast": image("k = Cast <to = 10> (h) z = Cast <to = 1> (k)", B, reals=("float",)),
    "GELU by parts": image(
        "k = Div (h, root) e = Erf (k) f = Add (e, one) g = Mul (h, f) z = Mul (g, half)",
        B,
        ints=("real root = {1.4142135}, real one = {1.0}, real half = {0.5}",) * 2,
    ),
    "QuantizeLinear": image(
        "k = QuantizeLinear (h, scale, zero) z = DequantizeLinear (k, scale, zero)",
        B,
        ints=("float scale = {0.05}, int8 zero = {3}",) * 2,
        reals=("float",),
    ),
    "QuantizeLinear per channel": image(
        "k = QuantizeLinear (h, scale, zero) z = DequantizeLinear (k, scale, zero)",
        B,
        weights={
            "scale": w((4,), c(0)),
            "zero": Weight((4,), (c(0),), np.array([3, -2, 0, 5], np.int8)),
        },
        reals=("float",),
    ),
    "MaxPool": image("z = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (h)", B),
    "AveragePool": image("z = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (h)", B),
    "GlobalAveragePool": image("z = GlobalAveragePool (h)", B),
    "GlobalMaxPool": image("z = GlobalMaxPool (h)", B),
    "LpPool": image("z = LpPool <kernel_shape = [2, 2]> (h)", B, reals=("float",)),
    "Softmax over another axis": image("z = Softmax <axis = 2> (h)", B),
    "LpNormalization over another axis": image("z = LpNormalization <axis = 3> (h)", B),
}

CASES = CONVOLUTIONS | CONTRACTIONS | CARRIED


@pytest.mark.parametrize("name", CASES)
def test_grown_is_the_wide_reference(name):
    assert_grown_as_written(CASES[name])


def test_the_splits_are_signed_and_sum_to_one():
    for split in (TWO, THREE, FOUR, x(TWO, THREE), row(TWO, 3, FOUR)):
        for channel in range(split.width):
            copies = [v for s, v in zip(split.source, split.coefficient, strict=True) if s == channel]
            assert sum(copies) == 1
    assert min(FOUR.coefficient) < 0
