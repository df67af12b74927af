"""If, Loop and Scan: groups within a body split, each against a wide graph."""

from __future__ import annotations

import pytest

from tests.helpers.wide import FOUR, THREE, TWO, Case, Move, assert_grown_as_written, times, weight
from tests.helpers.wide import copied as c
from tests.helpers.wide import mixed as m

CHOICE = "real[n,3] x, bool c"
OUTER = {"a": weight((3, 4), c(1)), "b": weight((4, 2), m(0))}
OTHER = {"d": weight((3, 3), c(1, THREE)), "e": weight((3, 2), m(0, THREE))}


def branches(then: str, other: str) -> str:
    return f"""
        y = If (c) <then_branch = t () => (real[n,2] p) {{ {then} }},
                    else_branch = o () => (real[n,2] q) {{ {other} }}>
    """


THEN = "h = MatMul (x, a) r = Tanh (h) p = MatMul (r, b)"
ELSE = "g = MatMul (x, d) s = Relu (g) q = MatMul (s, e)"
OWN = branches(
    "h = MatMul (x, w) r = Tanh (h) p = MatMul (r, v)", "h = MatMul (x, w) r = Relu (h) q = MatMul (r, v)"
)
OWNED = {
    "y/then_branch/w": weight((3, 4), c(1)),
    "y/then_branch/v": weight((4, 2), m(0)),
    "y/else_branch/w": weight((3, 3), c(1, THREE)),
    "y/else_branch/v": weight((3, 2), m(0, THREE)),
}
NESTED = branches(
    "p = If (k) <then_branch = tt () => (real[n,2] pp) {"
    "  h = MatMul (x, a) r = Tanh (h) pp = MatMul (r, b)"
    "}, else_branch = te () => (real[n,2] pq) {"
    "  g = MatMul (x, w) s = Tanh (g) pq = MatMul (s, e)"
    "}>",
    "q = MatMul (x, f)",
)
LOOP = """
    <int64 trips = {3}> {
        go = Constant <value = bool {1}> ()
        u = Loop (trips, go, x) <body = b (int64 i, bool on, real[n,3] state) => (bool more, real[n,3] next) {
            more = Identity (on) h = MatMul (state, a) r = Tanh (h) next = MatMul (r, b)
        }>
        y = Neg (u)
    }
"""
SCAN = """
    {
        last, y = Scan <num_scan_inputs = 1, scan_input_axes = [1],
            body = b (real[2,3] state, real[2,3] entry) => (real[2,3] next, real[2,2] out) {
                k = Add (state, entry) h = MatMul (k, a) r = Tanh (h)
                next = MatMul (r, d) out = MatMul (r, b)
            }> (start, x)
    }
"""
IMAGE = """
    {
        y = If (c) <then_branch = t () => (real[n,2,1,1] p) {
                        h = Conv (x, a) k = Conv <group = GROUPS> (h, d) r = Reshape (k, flat)
                        f = MatMul (r, b) p = Reshape (f, cube)
                    }, else_branch = o () => (real[n,2,1,1] q) { q = Conv (x, e) }>
    }
"""
RECURRENT = """
    <int64[1] one = {1}> {
        y = If (c) <then_branch = t () => (real[2,5,2] p) {
                        h, i, j = LSTM <hidden_size = UNITS> (x, w, r) s = Squeeze (h, one) p = MatMul (s, b)
                    }, else_branch = o () => (real[2,5,2] q) { q = MatMul (x, e) }>
    }
"""
CASES = {
    "both branches": Case(
        CHOICE,
        f"{{ {branches(THEN, ELSE)} }}",
        {**OUTER, **OTHER},
        splits={"a": FOUR, "d": THREE},
        moves={"a": Move(1), "d": Move(1, channel=3, entries=(3,), group="d")},
    ),
    "initializers of the branches, of the same names": Case(
        CHOICE, f"{{ {OWN} }}", OWNED, splits={"y/then_branch/w": FOUR, "y/else_branch/w": THREE}
    ),
    "Constant nodes in a branch": Case(
        CHOICE,
        f"{{ {OWN} }}",
        OWNED,
        splits={"y/then_branch/w": FOUR, "y/else_branch/w": THREE},
        constants=("y/then_branch/w", "y/then_branch/v", "y/else_branch/v"),
    ),
    "a branch beside the main graph": Case(
        CHOICE,
        f"{{ {branches(THEN, 'q = MatMul (x, f)').replace('y =', 'z =')} "
        "k = MatMul (x, d) s = Tanh (k) l = MatMul (s, e) y = Add (z, l) }",
        {**OUTER, **OTHER, "f": weight((3, 2))},
        splits={"a": FOUR, "d": THREE},
    ),
    "an If in an If": Case(
        CHOICE,
        f"{{ total = ReduceSum <keepdims = 0> (x) zero = Constant <value_float = 0.0> () "
        f"f32 = Cast <to = 1> (total) k = Greater (f32, zero) {NESTED} }}",
        {
            **OUTER,
            "y/then_branch/p/else_branch/w": weight((3, 3), c(1, THREE)),
            "y/then_branch/p/else_branch/e": weight((3, 2), m(0, THREE)),
            "f": weight((3, 2)),
        },
        splits={"a": FOUR, "y/then_branch/p/else_branch/w": THREE},
    ),
    "Loop": Case(
        "real[n,3] x",
        LOOP,
        {"a": weight((3, 4), c(1)), "b": weight((4, 3), m(0))},
        moves={"a": Move(1)},
    ),
    "Scan": Case(
        "real[2,5,3] x",
        SCAN,
        {**OUTER, "d": weight((4, 3), m(0)), "start": weight((2, 3))},
        moves={"a": Move(1)},
    ),
    "lengths and attributes": Case(
        "real[n,3,5,5] x, bool c",
        "<int64[2] flat = {-1, 4}, int64[4] cube = {-1, 2, 1, 1}>" + IMAGE.replace("GROUPS", "4"),
        {
            "a": weight((4, 3, 3, 3), c(0)),
            "d": weight((4, 1, 3, 3), c(0)),
            "b": weight((4, 2), m(0)),
            "e": weight((2, 3, 5, 5)),
        },
        "<int64[2] flat = {-1, 7}, int64[4] cube = {-1, 2, 1, 1}>" + IMAGE.replace("GROUPS", "7"),
    ),
    "LSTM in a branch": Case(
        "real[2,5,3] x, bool c",
        RECURRENT.replace("UNITS", "2"),
        {
            "w": weight((1, 8, 3), c(1, times(4, TWO))),
            "r": weight((1, 8, 2), c(1, times(4, TWO)), m(2, TWO)),
            "b": weight((2, 2), m(0, TWO)),
            "e": weight((3, 2)),
        },
        RECURRENT.replace("UNITS", "4"),
        splits={"w": TWO},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_grown_as_written(name: str) -> None:
    assert_grown_as_written(CASES[name])
