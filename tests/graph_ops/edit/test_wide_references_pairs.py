"""Queries and keys: channels that two activations are summed over, against a wide graph written by hand."""

from __future__ import annotations

import pytest

from tests.helpers.wide import FOUR, TWO, Case, Split, assert_grown_as_written
from tests.helpers.wide import Move as D
from tests.helpers.wide import beside as row
from tests.helpers.wide import copied as c
from tests.helpers.wide import mixed as m
from tests.helpers.wide import times as x
from tests.helpers.wide import weight as w

TWICE = Split(4, (0, 1, 2, 3, 0, 1, 2, 3), (0.25, 2, 0.5, 1, 0.75, -1, 0.5, 0))
PLAIN = Split(4, FOUR.source, (1,) * len(FOUR.source))
HEADS = Split(2, TWO.source, (1,) * len(TWO.source))
TOKENS = "real[n,5,3] x"
VALUES = {"v": w((3, 2))}


def attention(queries: str, keys: str, weights, wide: tuple[str, str] | None = None, ints=("", ""), **rest):
    """``queries`` and ``keys`` compute q and t; what they give is used as attention uses it."""

    def body(first: str, second: str, integers: str) -> str:
        return (
            f"{f'<{integers}>' if integers else ''} {{ {first} {second} s = MatMul (q, t) e = Mul (s, scale) "
            "p = Softmax (e) u = MatMul (x, v) y = MatMul (p, u) }"
        )

    scale = {"scale": w(())}
    return Case(
        rest.pop("inputs", TOKENS),
        body(queries, keys, ints[0]),
        {**weights, **VALUES, **scale},
        body(*(wide or (queries, keys)), ints[1]),
        **rest,
    )


KEYS = "k = MatMul (x, b) t = Transpose <perm = [0, 2, 1]> (k)"
PLAIN_WEIGHTS = {"a": w((3, 4), m(1)), "b": w((3, 4), c(1))}

STACKED_BODY = (
    ", int64[1] zero = {0}, int64[1] three = {3}, int64 first = {0}, int64 second = {1}> { h = MatMul (x, a)"
    " l = Reshape (h, split) u = Unsqueeze (l, zero) w = Transpose <perm = [3, 1, 2, 0, 4]> (u)"
    " f = Squeeze (w, three) q = Gather <axis = 0> (f, first) k = Gather <axis = 0> (f, second)"
    " t = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, t) p = Softmax (s) o = MatMul (x, v)"
    " y = MatMul (p, o) }"
)
CUT_BODY = (
    "int64[1] one = {1}> { h = MatMul (x, a) i = Reshape (h, split) j = Transpose <perm = [0, 2, 1, 3]> (i)"
    " q, k = Split <axis = -1> (j, half) t = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (q, t)"
    " p = Softmax (s) o = MatMul (x, v) r = Unsqueeze (o, one) y = MatMul (p, r) }"
)
HEADS_BODY = (
    "int64[3] join = {0, 0, -1}> { h = MatMul (x, a) i = Reshape (h, split)"
    " q = Transpose <perm = [0, 2, 1, 3]> (i) g = MatMul (x, b) k = Reshape (g, split)"
    " t = Transpose <perm = [0, 2, 3, 1]> (k) s = MatMul (q, t) p = Softmax (s) u = MatMul (x, v)"
    " z = Reshape (u, values) o = Transpose <perm = [0, 2, 1, 3]> (z) r = MatMul (p, o)"
    " f = Transpose <perm = [0, 2, 1, 3]> (r) l = Reshape (f, join) y = MatMul (l, d) }"
)
FOLDED_INTS = "int64[1] five = {5}, int64[1] two = {2}, int64[1] four = {4}, int64[1] values = {8}"


def folded(queries: str, keys: str, values: str, join: str, ints: str) -> str:
    """Heads that are folded into the batch, as torch.nn.functional does; the arguments make the targets."""
    return (
        f"<{FOLDED_INTS}{ints}> {{ n = Shape <start = 1, end = 2> (x) k = Mul (n, two)"
        " w = Concat <axis = 0> (five, k, four)"
        f" h = MatMul (x, a) {queries} q = Transpose <perm = [1, 0, 2]> (i)"
        f" g = MatMul (x, b) {keys} t = Transpose <perm = [1, 2, 0]> (j)"
        f" u = MatMul (x, v) {values} o = Transpose <perm = [1, 0, 2]> (z)"
        " s = MatMul (q, t) p = Softmax (s) r = MatMul (p, o) f = Transpose <perm = [1, 0, 2]> (r)"
        f" m = Concat <axis = 0> (five, n, values) {join} y = MatMul (l, d) }}"
    )


CASES = {
    "MatMul": attention("q = MatMul (x, a)", KEYS, PLAIN_WEIGHTS),
    "both sides move": attention("q = MatMul (x, a)", KEYS, PLAIN_WEIGHTS, moves={"a": D(1), "b": D(1)}),
    "biases": attention(
        "h = MatMul (x, a) q = Add (d, h)",
        "g = MatMul (x, b) k = Add (g, f) t = Transpose <perm = [0, 2, 1]> (k)",
        PLAIN_WEIGHTS | {"d": w((4,), m(0)), "f": w((4,), c(0))},
    ),
    "the keys if the queries are bent": attention(
        "h = MatMul (x, a) q = Tanh (h)", KEYS, {"a": w((3, 4), c(1)), "b": w((3, 4), m(1))}
    ),
    "a learned scale after a bend": attention(
        "h = MatMul (x, a) r = Tanh (h) q = Mul (r, g)",
        "k = MatMul (x, b) f = Tanh (k) t = Transpose <perm = [0, 2, 1]> (f)",
        {"a": w((3, 4), c(1)), "b": w((3, 4), c(1)), "g": w((4,), m(0))},
    ),
    "a gate on the queries": attention(
        "h = MatMul (x, a) z = MatMul (x, d) g = Sigmoid (z) q = Mul (g, h)",
        KEYS,
        PLAIN_WEIGHTS | {"d": w((3, 4), c(1))},
    ),
    "rotary pairs": attention(
        "h = MatMul (x, a) q1, q2 = Split <axis = -1> (h, half) n = Neg (q2) o = Concat <axis = -1> (n, q1)"
        " i = Mul (h, cos) j = Mul (o, sin) q = Add (i, j)",
        "g = MatMul (x, b) k1, k2 = Split <axis = -1> (g, half) l = Neg (k2) z = Concat <axis = -1> (l, k1)"
        " w = Mul (g, cos) r = Mul (z, sin) k = Add (w, r) t = Transpose <perm = [0, 2, 1]> (k)",
        {
            "a": w((3, 8), m(1, row(FOUR, FOUR))),
            "b": w((3, 8), c(1, row(FOUR, FOUR))),
            "cos": w((5, 8), c(1, row(FOUR, FOUR))),
            "sin": w((5, 8), c(1, row(FOUR, FOUR))),
        },
        ints=("int64[2] half = {4, 4}", "int64[2] half = {7, 7}"),
    ),
    "one weight, cut": attention(
        "h = MatMul (x, a) q, k, z = Split <axis = -1> (h, parts)",
        "t = Transpose <perm = [0, 2, 1]> (k) o = Relu (z)",
        {"a": w((3, 13), m(1, row(FOUR, PLAIN, 5)))},
        ints=("int64[3] parts = {4, 4, 5}", "int64[3] parts = {7, 7, 5}"),
    ),
    "one weight, sliced, with a bias": attention(
        "m = MatMul (x, a) h = Add (m, d) q = Slice (h, zero, end, last)",
        "k = Slice (h, end, more, last) t = Transpose <perm = [0, 2, 1]> (k)",
        {"a": w((3, 8), m(1, row(FOUR, PLAIN))), "d": w((8,), m(0, row(FOUR, PLAIN)))},
        ints=(
            "int64[1] zero = {0}, int64[1] end = {4}, int64[1] more = {8}, int64[1] last = {-1}",
            "int64[1] zero = {0}, int64[1] end = {7}, int64[1] more = {14}, int64[1] last = {-1}",
        ),
    ),
    "one weight, stacked": attention(
        "h = MatMul (x, a) l = Reshape (h, split) q = Gather <axis = 2> (l, zero)",
        "k = Gather <axis = 2> (l, one) t = Transpose <perm = [0, 2, 1]> (k)",
        {"a": w((3, 8), m(1, row(FOUR, PLAIN)))},
        ints=(
            "int64[4] split = {0, 0, 2, 4}, int64 zero = {0}, int64 one = {1}",
            "int64[4] split = {0, 0, 2, 7}, int64 zero = {0}, int64 one = {1}",
        ),
        splits={"a#2": FOUR},
    ),
    "one weight, stacked on an axis that is moved": Case(
        TOKENS,
        "<int64[4] split = {0, 0, 2, 4}" + STACKED_BODY,
        {"a": w((3, 8), m(1, row(FOUR, PLAIN))), **VALUES},
        "<int64[4] split = {0, 0, 2, 7}" + STACKED_BODY,
        splits={"a#2": FOUR},
    ),
    "one weight, cut in every head": Case(
        TOKENS,
        "<int64[4] split = {0, 0, 2, 8}, int64[2] half = {4, 4}, " + CUT_BODY,
        {"a": w((3, 16), m(1, x(2, row(FOUR, PLAIN)))), "v": w((3, 2))},
        "<int64[4] split = {0, 0, 2, 14}, int64[2] half = {7, 7}, " + CUT_BODY,
        splits={"a#2": FOUR},
    ),
    "two sums over the same queries": attention(
        "h = MatMul (x, a) q = Add (h, d) g2 = MatMul (x, f) t2 = Transpose <perm = [0, 2, 1]> (g2)"
        " s2 = MatMul (q, t2)",
        KEYS,
        PLAIN_WEIGHTS | {"d": w((4,), m(0)), "f": w((3, 4), c(1))},
    ),
    "Gemm": Case(
        "real[5,3] x",
        "{ q = Gemm (x, a, d) k = Gemm <transB = 1> (x, b, f) s = Gemm <transB = 1> (q, k) p = Softmax (s)"
        " y = MatMul (p, x) }",
        {"a": w((3, 4), m(1)), "d": w((4,), m(0)), "b": w((4, 3), c(0)), "f": w((4,), c(0))},
    ),
    "Einsum": Case(
        TOKENS,
        '{ q = MatMul (x, a) k = MatMul (x, b) s = Einsum <equation = "nid,njd->nij"> (q, k)'
        " p = Softmax (s) y = MatMul (p, x) }",
        PLAIN_WEIGHTS,
    ),
    "Conv": Case(
        "real[n,3,6] x",
        "{ q = Conv (x, a, d) k = Conv (x, b) t = Transpose <perm = [0, 2, 1]> (q) s = MatMul (t, k)"
        " p = Softmax (s) y = MatMul (x, p) }",
        {"a": w((4, 3, 1), m(0)), "d": w((4,), m(0)), "b": w((4, 3, 1), c(0))},
    ),
    "Attention keeps its scale": Case(
        TOKENS,
        "{ q = MatMul (x, a) k = MatMul (x, b) v = MatMul (x, d)"
        " z = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v) y = MatMul (z, e) }",
        {
            "a": w((3, 8), m(1, x(2, FOUR))),
            "b": w((3, 8), c(1, x(2, FOUR))),
            "d": w((3, 6)),
            "e": w((6, 2)),
        },
        "{ q = MatMul (x, a) k = MatMul (x, b) v = MatMul (x, d)"
        " z = Attention <q_num_heads = 2, kv_num_heads = 2, scale = 0.5> (q, k, v) y = MatMul (z, e) }",
        splits={"a#2": FOUR},
        opset=23,
    ),
    "norms with a learned scale": attention(
        "h = MatMul (x, a) c = Mul (h, h) n = ReduceMean (c, axes) r = Sqrt (n) i = Div (h, r)"
        " q = Mul (g, i)",
        "k = MatMul (x, b) z = Mul (k, k) l = ReduceMean (z, axes) o = Sqrt (l) j = Div (k, o)"
        " f = Mul (d, j) t = Transpose <perm = [0, 2, 1]> (f)",
        {
            "a": w((3, 4), c(1, TWICE)),
            "b": w((3, 4), c(1, TWICE)),
            "g": w((4,), m(0, TWICE)),
            "d": w((4,), c(0, TWICE)),
        },
        ints=("int64[1] axes = {-1}", "int64[1] axes = {-1}"),
        splits={"a": TWICE},
    ),
    "heads": Case(
        TOKENS,
        "<int64[4] split = {0, 0, 2, 4}, int64[4] values = {0, 0, 2, 3}, " + HEADS_BODY,
        {
            "a": w((3, 8), m(1, x(HEADS, FOUR))),
            "b": w((3, 8), c(1, x(TWO, FOUR))),
            "v": w((3, 6), c(1, x(TWO, 3))),
            "d": w((6, 2), m(0, x(TWO, 3))),
        },
        "<int64[4] split = {0, 0, 4, 7}, int64[4] values = {0, 0, 4, 3}, " + HEADS_BODY,
        splits={"a#2": FOUR, "a": TWO},
    ),
    "heads that are folded into the batch": Case(
        "real[5,n,3] x",
        folded("i = Reshape (h, w)", "j = Reshape (g, w)", "z = Reshape (u, w)", "l = Reshape (f, m)", ""),
        {
            "a": w((3, 8), m(1, x(HEADS, FOUR))),
            "b": w((3, 8), c(1, x(TWO, FOUR))),
            "v": w((3, 8), c(1, x(TWO, 4))),
            "d": w((8, 2), m(0, x(TWO, 4))),
        },
        folded(
            "w1 = Mul (w, twice) w2 = Where (not2, w1, seven) i = Reshape (h, w2)",
            "w3 = Mul (w, twice) w4 = Where (not2, w3, seven) j = Reshape (g, w4)",
            "w5 = Mul (w, twice) z = Reshape (u, w5)",
            "m1 = Where (not2, m, sixteen) l = Reshape (f, m1)",
            ", int64[3] twice = {1, 2, 1}, bool[3] not2 = {1, 1, 0}, int64[3] seven = {0, 0, 7}, "
            "int64[3] sixteen = {0, 0, 16}",
        ),
        splits={"a#2": FOUR, "a": TWO},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_queries_and_keys_are_grown_as_written(case):
    assert_grown_as_written(case)
