"""LSTM, GRU and RNN: inputs and hidden units split, each against a wide graph."""

from __future__ import annotations

import pytest

from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from tests.helpers.wide import FOUR, TWO, Case, Move, Weight, assert_grown_as_written, times
from tests.helpers.wide import copied as c
from tests.helpers.wide import mixed as m
from tests.helpers.wide import weight as w

ROWS = "real[n,5,3] x"  # two steps of five samples
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INTEGERS = {
    name: f"int64[{len(values)}] {name} = {{{', '.join(map(str, values))}}}"
    for name, values in {"zero": [0], "one": [1], "flat": [0, 0, -1]}.items()
}
BOTH = {"a": FOUR, "w": TWO}
BLOCKS = w((2, 2), m(0, TWO))
PAIRED = w((4, 2), m(0, times(2, TWO)))


def recurrent(body: str, rows: int, directions: int = 1, splits=BOTH, **rest) -> Case:
    """``body`` computes y from h, which ``a`` makes, by layers of ``rows`` rows for each hidden unit."""
    weights: dict[str, Weight] = {
        "a": w((3, 4), c(1)),
        "w": w((directions, 2 * rows, 4), c(1, times(rows, TWO)), m(2)),
        "r": w((directions, 2 * rows, 2), c(1, times(rows, TWO)), m(2, TWO)),
        "b": BLOCKS if directions == 1 else PAIRED,
        **rest.pop("weights", {}),
    }
    integers = [text for name, text in INTEGERS.items() if f" {name})" in body]
    text = f"<{', '.join(integers)}> {{ h = MatMul (x, a) {body} }}"
    wide = text.replace("hidden_size = 2", "hidden_size = 4")
    used = {name: weight for name, weight in weights.items() if f" {name} =" not in text}
    return Case(ROWS, text, used, wide, splits, **rest)


def displaced(name: str) -> Case:
    """The last copy, of unit 0, moves away in W and R."""
    gates = GATES[name]
    move = Move(1, channel=3, entries=tuple(4 * gate + 3 for gate in range(gates)), group="w")
    outputs = "s, t, u" if name == "LSTM" else "s, t"
    return recurrent(
        f"{outputs} = {name} <hidden_size = 2> (h, w, r) q = Squeeze (s, one) y = MatMul (q, b)",
        gates,
        moves={"w": move, "r": move},
    )


def bias(gates: int, directions: int = 1) -> Weight:
    return w((directions, 4 * gates), c(1, times(2 * gates, TWO)))


STATE = w((2, 5, 2), c(2, TWO))
AS_TORCH = "p = Transpose <perm = [0, 2, 1, 3]> (s) q = Reshape (p, flat) y = MatMul (q, b)"
CASES = {
    **{name: displaced(name) for name in GATES},
    "both directions, all inputs": recurrent(
        "lengths = Constant <value = int32[5] {1, 2, 2, 1, 2}> () "
        's, t, u = LSTM <hidden_size = 2, direction = "bidirectional", clip = 0.4> '
        "(h, w, r, d, lengths, s0, c0, p0) "
        "p = Transpose <perm = [0, 2, 1, 3]> (s) q = Reshape (p, flat) k = MatMul (q, b) "
        "v = Add (t, u) z = Transpose <perm = [1, 0, 2]> (v) f = Flatten (z) g = MatMul (f, e) "
        "y = Add (k, g)",
        4,
        2,
        weights={
            "d": bias(4, 2),
            "s0": STATE,
            "c0": STATE,
            "p0": w((2, 6), c(1, times(3, TWO))),
            "e": PAIRED,
        },
    ),
    "GRU, reset after the product": recurrent(
        's, t = GRU <hidden_size = 2, direction = "reverse", linear_before_reset = 1> (h, w, r, d) '
        "q = Squeeze (s, one) y = MatMul (q, b)",
        3,
        weights={"d": bias(3)},
    ),
    "other activations": recurrent(
        's, t = RNN <hidden_size = 2, direction = "bidirectional", activations = ["Relu", "Softsign"]> '
        f"(h, w, r) {AS_TORCH}",
        1,
        2,
    ),
    "one layer upon another": recurrent(
        's, t, u = LSTM <hidden_size = 2, direction = "bidirectional"> (h, w, r) '
        "p = Transpose <perm = [0, 2, 1, 3]> (s) k = Reshape (p, flat) "
        "l, o = GRU <hidden_size = 3> (k, w2, r2) q = Squeeze (l, one) y = MatMul (q, b)",
        4,
        2,
        weights={
            "w2": w((1, 9, 4), m(2, times(2, TWO))),
            "r2": w((1, 9, 3)),
            "b": w((3, 2)),
        },
    ),
    "one initial state for two layers": recurrent(
        "s, t = GRU <hidden_size = 2> (h, w, r, , , s0) k = Squeeze (s, one) "
        "l, o = GRU <hidden_size = 2> (k, w2, r2, , , s0) q = Squeeze (l, one) y = MatMul (q, b)",
        3,
        weights={
            "w2": w((1, 6, 2), c(1, times(3, TWO)), m(2, TWO)),
            "r2": w((1, 6, 2), c(1, times(3, TWO)), m(2, TWO)),
            "s0": w((1, 5, 2), c(2, TWO)),
        },
    ),
    "weights joined from gates": recurrent(
        "f = Concat <axis = 0> (w0, w1, w2) w = Unsqueeze (f, zero) "
        "s, t = GRU <hidden_size = 2> (h, w, r) q = Squeeze (s, one) y = MatMul (q, b)",
        3,
        splits={"a": FOUR, "w0": TWO},
        weights={
            **{f"w{i}": w((2, 4), c(0, TWO), m(1)) for i in range(3)},
        },
    ),
    # onnxruntime does not run it.
    "batch first": recurrent(
        "s, t = RNN <hidden_size = 2, layout = 1> (h, w, r, , , s0) v = Reshape (s, flat) y = MatMul (v, b)",
        1,
        weights={"s0": w((5, 1, 2), c(2, TWO))},
        reals=("double",),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_recurrent_layers_grow_as_written(name):
    assert_grown_as_written(CASES[name])


def test_the_cost_counts_the_gates_of_every_step():
    case = CASES["LSTM"]
    groups = find_channel_groups(case.original("float"))
    samples, hidden, wide = 5, 2, 4
    assert groups.cost.macs() == samples * (3 * 4 + 4 * hidden * (4 + hidden) + hidden * 2)
    assert groups.cost.macs({"w": wide}) == samples * (3 * 4 + 4 * wide * (4 + wide) + wide * 2)


def test_an_activation_that_onnx_does_not_have_is_a_barrier():
    case = recurrent(
        's, t = RNN <hidden_size = 2, activations = ["Mystery"]> (h, w, r) q = Squeeze (s, one) '
        "y = MatMul (q, b)",
        1,
    )
    groups = find_channel_groups(case.original("float"))
    assert [barrier.reason for barrier in groups.barriers] == [
        "growpipe does not know the activation 'Mystery'"
    ]
    assert not any(group.splittable for group in groups.groups)
