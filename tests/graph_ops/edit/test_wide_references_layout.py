"""Every family of rules that rearranges, joins, cuts or measures channels, against a wide graph by hand."""

from __future__ import annotations

import pytest

from tests.helpers.wide import FOUR, THREE, TWO, Case, Move, Split, assert_grown_as_written, image
from tests.helpers.wide import beside as row
from tests.helpers.wide import copied as c
from tests.helpers.wide import mixed as m
from tests.helpers.wide import times as x
from tests.helpers.wide import weight as w

B = w((2, 4, 1, 1), m(1))
PAIRS = w((4, 3, 3, 3), c(0, x(2, TWO)))
BOTH = {"a": TWO, "a#2": THREE}


def rows(z: str, b=None, wide: str | None = None, ints=("", ""), **rest) -> Case:
    """As `image`, with channels on the last axis: [n, 5, 4]."""
    weights = {"a": w((3, 4), c(1)), "b": b or w((4, 2), m(0)), **rest.pop("weights", {})}
    narrow, wider = (
        f"{f'<{integers}>' if integers else ''} {{ h = MatMul (x, a) {body} y = MatMul (z, b) }}"
        for body, integers in ((z, ints[0]), (wide or z, ints[1]))
    )
    return Case("real[n,5,3] x", narrow, weights, wider, **rest)


def classifier(z: str, b, ints=("", ""), **rest) -> Case:
    """A matrix on the flattened z."""
    narrow, wider = (
        f"{f'<{integers}>' if integers else ''} {{ h = Conv (x, a) {z} y = MatMul (z, b) }}"
        for integers in ints
    )
    weights = {"a": rest.pop("a", w((4, 3, 3, 3), c(0))), "b": b}
    return Case("real[n,3,6,6] x", narrow, weights, wider, **rest)


FLAT = w((64, 2), m(0, x(FOUR, 16)))

RESHAPED = {
    "Flatten": classifier("z = Flatten (h)", FLAT, moves={"a": Move(0)}),
    "Flatten before the channels": image(
        "f = Flatten <axis = 2> (h) r = Tanh (f) z = Reshape (r, back)",
        B,
        ints=("int64[4] back = {-1, 4, 4, 4}", "int64[4] back = {-1, 7, 4, 4}"),
    ),
    "Reshape merges": classifier(
        "z = Reshape (h, flat)", FLAT, ("int64[2] flat = {-1, 64}", "int64[2] flat = {-1, 112}")
    ),
    "Reshape infers the merged axis": classifier(
        "z = Reshape (h, flat)", FLAT, ("int64[2] flat = {0, -1}", "int64[2] flat = {0, -1}")
    ),
    "Reshape merges space": image(
        "k = Reshape (h, flat) s = Softmax (k) z = Reshape (s, back)",
        B,
        ints=(
            "int64[3] flat = {0, 4, -1}, int64[4] back = {0, 0, 4, 4}",
            "int64[3] flat = {0, 7, -1}, int64[4] back = {0, 0, 4, 4}",
        ),
    ),
    "channels last, then flat": classifier(
        "t = Transpose <perm = [0, 2, 3, 1]> (h) z = Flatten (t)", w((64, 2), m(0, x(16, FOUR)))
    ),
    "Transpose": Case(
        "real[n,3,6,6] x",
        "{ h = Conv (x, a) z = Transpose <perm = [0, 2, 3, 1]> (h) y = MatMul (z, b) }",
        {"a": w((4, 3, 3, 3), c(0)), "b": w((4, 2), m(0))},
    ),
    "a bias reshaped": image(
        "k = Reshape (d, up) z = Add (h, k)",
        B,
        ints=("int64[4] up = {1, 4, 1, 1}", "int64[4] up = {1, 7, 1, 1}"),
        weights={"d": w((4,), c(0))},
        moves={"d": Move(0)},
    ),
    "channel shuffle": image(
        "u = Reshape (h, split) t = Transpose <perm = [0, 2, 1, 3, 4]> (u) z = Reshape (t, back)",
        w((2, 6, 1, 1), m(1, x(THREE, TWO))),
        a=w((6, 3, 3, 3), c(0, x(TWO, THREE))),
        ints=(
            "int64[5] split = {0, 2, 3, 4, 4}, int64[4] back = {-1, 6, 4, 4}",
            "int64[5] split = {0, 4, 4, 4, 4}, int64[4] back = {-1, 16, 4, 4}",
        ),
        splits=BOTH,
    ),
    "channel shuffle, one factor": image(
        "u = Reshape (h, split) t = Transpose <perm = [0, 2, 1, 3, 4]> (u) z = Reshape (t, back)",
        w((2, 6, 1, 1), m(1, x(THREE, 2))),
        a=w((6, 3, 3, 3), c(0, x(2, THREE))),
        ints=(
            "int64[5] split = {0, 2, 3, 4, 4}, int64[4] back = {-1, 6, 4, 4}",
            "int64[5] split = {0, 2, 4, 4, 4}, int64[4] back = {-1, 8, 4, 4}",
        ),
        splits={"a#2": THREE},
        moves={"a": Move(0, 3, (3, 7), "a#2")},
    ),
    "pixel shuffle by hand": image(
        "u = Reshape (h, split) t = Transpose <perm = [0, 1, 4, 2, 5, 3]> (u) z = Reshape (t, back)",
        w((2, 2, 1, 1), m(1, TWO)),
        a=w((8, 3, 3, 3), c(0, x(TWO, 4))),
        ints=(
            "int64[6] split = {0, 2, 2, 2, 4, 4}, int64[4] back = {0, 2, 8, 8}",
            "int64[6] split = {0, 4, 2, 2, 4, 4}, int64[4] back = {0, 4, 8, 8}",
        ),
        splits={"a": TWO},
    ),
    "DepthToSpace": image(
        "z = DepthToSpace <blocksize = 2> (h)",
        w((2, 2, 1, 1), m(1, TWO)),
        a=w((8, 3, 3, 3), c(0, x(4, TWO))),
        splits={"a#2": TWO},
        moves={"a": Move(0, 3, (3, 7, 11, 15), "a#2")},
    ),
    "DepthToSpace CRD": image(
        'z = DepthToSpace <blocksize = 2, mode = "CRD"> (h)',
        w((2, 2, 1, 1), m(1, TWO)),
        a=w((8, 3, 3, 3), c(0, x(TWO, 4))),
        splits={"a": TWO},
    ),
    "SpaceToDepth": image("z = SpaceToDepth <blocksize = 2> (h)", w((2, 16, 1, 1), m(1, x(4, FOUR)))),
    "Squeeze and Unsqueeze": image(
        "p = GlobalAveragePool (h) s = Squeeze (p, last) r = Tanh (s) z = Unsqueeze (r, last)",
        B,
        ints=("int64[2] last = {2, 3}",) * 2,
    ),
    "Squeeze of opset 11": image(
        "p = GlobalAveragePool (h) s = Squeeze <axes = [2, 3]> (p) z = Unsqueeze <axes = [2, 3]> (s)",
        B,
        opset=11,
    ),
    "a target computed from the input": rows(
        "t = Reshape (h, all) s = Shape <start = 0, end = 2> (x) k = Concat <axis = 0> (s, four) "
        "z = Reshape (t, k)",
        wide="t = Reshape (h, all) s = Shape <start = 0, end = 2> (x) k = Concat <axis = 0> (s, four) "
        "p = Where (kept, k, numbers) z = Reshape (t, p)",
        ints=(
            "int64[1] four = {4}, int64[1] all = {-1}",
            "int64[1] four = {4}, int64[1] all = {-1}, bool[3] kept = {1, 1, 0}, "
            "int64[3] numbers = {0, 0, 7}",
        ),
    ),
    "a target computed from the channels": image(
        "s = Shape (h) n = Gather (s, zero) c = Gather (s, one) k = Concat <axis = 0> (n, c, rest) "
        "f = Reshape (h, k) r = Softmax (f) z = Reshape (r, s)",
        B,
        ints=("int64[1] zero = {0}, int64[1] one = {1}, int64[1] rest = {-1}",) * 2,
    ),
}

JOINED = {
    "Concat": image(
        "k = Conv (x, d) z = Concat <axis = 1> (k, h, k)",
        w((2, 10, 1, 1), m(1, row(THREE, FOUR, THREE))),
        weights={"d": w((3, 3, 3, 3), c(0, THREE))},
        splits={"a": FOUR, "d": THREE},
        moves={"a": Move(0), "d": Move(0, 3, (3,), "d")},
    ),
    "Concat, one part": image(
        "k = Conv (x, d) z = Concat <axis = 1> (k, h, k)",
        w((2, 10, 1, 1), m(1, row(3, FOUR, 3))),
        weights={"d": w((3, 3, 3, 3))},
    ),
    "Concat of Concat, flattened": classifier(
        "k = Concat <axis = 1> (h, h) l = Concat <axis = -3> (k, h) z = Flatten (l)",
        w((192, 2), m(0, x(row(FOUR, FOUR, FOUR), 16))),
    ),
    "Concat over space": image("z = Concat <axis = 2> (h, h)", B),
    "Split": image(
        "p, q = Split <axis = 1> (h, parts) r = Tanh (q) z = Concat <axis = 1> (r, p)",
        w((2, 5, 1, 1), m(1, row(THREE, TWO))),
        a=w((5, 3, 3, 3), c(0, row(TWO, THREE))),
        ints=("int64[2] parts = {2, 3}", "int64[2] parts = {4, 4}"),
        splits=BOTH,
        moves={"a": Move(0, 3, (7,), "a#2")},
    ),
    "Split in equal parts": image(
        "p, q = Split <axis = 1, num_outputs = 2> (h) z = Concat <axis = 1> (q, p)",
        w((2, 4, 1, 1), m(1, row(TWO, 2))),
        "p, q = Split <axis = 1> (h, parts) z = Concat <axis = 1> (q, p)",
        w((4, 3, 3, 3), c(0, row(2, TWO))),
        ints=("", "int64[2] parts = {2, 4}"),
        splits={"a#2": TWO},
    ),
    "Split of opset 11": image(
        "p, q = Split <axis = 1, split = [2, 3]> (h) z = Concat <axis = 1> (q, p)",
        w((2, 5, 1, 1), m(1, row(3, TWO))),
        "p, q = Split <axis = 1, split = [4, 3]> (h) z = Concat <axis = 1> (q, p)",
        w((5, 3, 3, 3), c(0, row(TWO, 3))),
        splits={"a": TWO},
        opset=11,
    ),
    "gated halves": image(
        "p, q = Split <axis = 1> (h, parts) s = Sigmoid (p) z = Mul (q, s)",
        w((2, 3, 1, 1), m(1, THREE)),
        a=w((6, 3, 3, 3), c(0, row(THREE, THREE))),
        ints=("int64[2] parts = {3, 3}", "int64[2] parts = {4, 4}"),
        splits={"a": THREE},
        moves={"a": Move(0, 3, (3, 7))},
    ),
    "SplitToSequence": image(
        "s = SplitToSequence <axis = 1> (h, parts) p = SequenceAt (s, i) q = SequenceAt (s, j) "
        "z = Concat <axis = 1> (q, p)",
        w((2, 5, 1, 1), m(1, row(3, TWO))),
        a=w((5, 3, 3, 3), c(0, row(TWO, 3))),
        ints=(
            "int64[2] parts = {2, 3}, int64 i = {0}, int64 j = {1}",
            "int64[2] parts = {4, 3}, int64 i = {0}, int64 j = {1}",
        ),
        splits={"a": TWO},
    ),
    "Slice": image(
        "p = Slice (h, cut, end, axis) q = Slice (h, zero, cut, axis) z = Concat <axis = 1> (p, q)",
        w((2, 5, 1, 1), m(1, row(THREE, TWO))),
        "p = Slice (h, cut, end, axis) q = Slice (h, zero, cut, axis) z = Concat <axis = 1> (p, q)",
        w((5, 3, 3, 3), c(0, row(TWO, THREE))),
        ints=(
            "int64[1] cut = {2}, int64[1] end = {5}, int64[1] zero = {0}, int64[1] axis = {1}",
            "int64[1] cut = {4}, int64[1] end = {8}, int64[1] zero = {0}, int64[1] axis = {1}",
        ),
        splits=BOTH,
    ),
    "Slice from the end": image(
        "z = Slice (h, start, end, axis)",
        w((2, 3, 1, 1), m(1, THREE)),
        a=w((5, 3, 3, 3), c(0, row(2, THREE))),
        ints=(
            "int64[1] start = {-3}, int64[1] end = {9223372036854775807}, int64[1] axis = {1}",
            "int64[1] start = {2}, int64[1] end = {6}, int64[1] axis = {1}",
        ),
        splits={"a#2": THREE},
    ),
    "Slice up to a length of the input, in int32": Case(
        "real[n,l,3] x",
        "<int32[1] four = {4}, int32[2] start = {0, 1}, int32[2] axes = {1, 2}> {"
        "h = MatMul (x, a) s = Shape <start = 1, end = 2> (x) i = Cast <to = 6> (s) "
        "k = Concat <axis = 0> (i, four) z = Slice (h, start, k, axes) y = MatMul (z, b) }",
        {"a": w((3, 4), c(1, row(1, THREE))), "b": w((3, 2), m(0, THREE))},
        "<int32[1] four = {4}, int32[2] start = {0, 1}, int32[2] axes = {1, 2}, "
        "bool[2] kept = {1, 0}, int32[2] numbers = {0, 5}> {"
        "h = MatMul (x, a) s = Shape <start = 1, end = 2> (x) i = Cast <to = 6> (s) "
        "k = Concat <axis = 0> (i, four) e = Where (kept, k, numbers) z = Slice (h, start, e, axes) "
        "y = MatMul (z, b) }",
        {"a": THREE},
    ),
    "Slice over space": image(
        "z = Slice (h, start, end, axis, step)",
        B,
        ints=(
            "int64[2] start = {1, -1}, int64[2] end = {3, -9}, "
            "int64[2] axis = {2, 3}, int64[2] step = {1, -1}",
        )
        * 2,
    ),
    "Pad": image(
        "z = Pad (h, pads)",
        w((2, 7, 1, 1), m(1, row(1, FOUR, 2))),
        ints=("int64[8] pads = {0, 1, 1, 0, 0, 2, 0, 1}",) * 2,
    ),
    "Pad over space": image(
        'z = Pad <mode = "reflect"> (h, pads)', B, ints=("int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}",) * 2
    ),
    "Tile": image(
        "z = Tile (h, counts)",
        w((2, 8, 1, 1), m(1, x(2, FOUR))),
        ints=("int64[4] counts = {1, 2, 1, 3}",) * 2,
    ),
    "Expand": image(
        "p = GlobalAveragePool (h) z = Expand (p, shape)",
        B,
        ints=("int64[4] shape = {1, 4, 4, 4}", "int64[4] shape = {1, 7, 4, 4}"),
    ),
    "Expand one number": image(
        "e = Expand (d, shape) z = Mul (h, e)",
        B,
        ints=("int64[3] shape = {4, 1, 1}", "int64[3] shape = {7, 1, 1}"),
        weights={"d": w((1, 1, 1))},
    ),
    "ConstantOfShape": image(
        "f = ConstantOfShape <value = real[1] {0.5}> (shape) z = Mul (h, f)",
        B,
        ints=("int64[3] shape = {4, 1, 1}", "int64[3] shape = {7, 1, 1}"),
    ),
}

PICKED = {
    "Gather over space": rows("z = Gather <axis = 1> (h, i)", ints=("int64[3] i = {0, 3, 3}",) * 2),
    "GatherND over space": rows("z = GatherND (h, i)", ints=("int64[2,2] i = {0, 1, 1, 2}",) * 2),
    "GatherElements over space": rows(
        "i = ConstantOfShape <value = int64[1] {1}> (s) z = GatherElements <axis = 1> (h, i)",
        ints=("int64[3] s = {2, 2, 4}", "int64[3] s = {2, 2, 7}"),
    ),
    "TopK over space": rows("z, i = TopK <axis = 1> (h, k)", ints=("int64[1] k = {3}",) * 2),
    "ReduceMean over space": rows(
        "z = ReduceMean <keepdims = 0> (h, k)", ints=("int64[1] k = {1}",) * 2, moves={"a": Move(1)}
    ),
    "ReduceMax of opset 11": rows("z = ReduceMax <axes = [1]> (h)", opset=11),
    "ArgMax over space": rows("i = ArgMax <axis = 1> (h) f = CastLike (i, h) z = Add (h, f)"),
    "CumSum over space": rows("z = CumSum (h, k)", ints=("int64 k = {1}",) * 2),
    "Resize by scales": image("z = Resize (h, , s)", B, ints=("float[4] s = {1.0, 1.0, 2.0, 2.0}",) * 2),
    "Resize to lengths": image(
        "z = Resize (h, , , s)",
        B,
        ints=("int64[4] s = {1, 4, 6, 6}", "int64[4] s = {1, 7, 6, 6}"),
        batch=1,
    ),
}

HEADS = (
    "q = MatMul (x, a) k = MatMul (x, d) v = MatMul (x, e) "
    "qs = Reshape (q, wide) qt = Transpose <perm = [0, 2, 1, 3]> (qs) "
    "ks = Reshape (k, wide) kt = Transpose <perm = [0, 2, 3, 1]> (ks) "
    "vs = Reshape (v, deep) vt = Transpose <perm = [0, 2, 1, 3]> (vs) "
    "s = MatMul (qt, kt) p = Softmax (s) o = MatMul (p, vt) "
    "ot = Transpose <perm = [0, 2, 1, 3]> (o) z = Reshape (ot, flat) y = MatMul (z, b)"
)


def heads(ints: tuple[str, str], head: Split | int, deep: Split | int, splits: dict[str, Split]) -> Case:
    """Two heads of 5 channels for queries and keys, and 3 for values."""
    return Case(
        "real[n,5,4] x",
        f"<{ints[0]}> {{ {HEADS} }}",
        {
            "a": w((4, 10), c(1, x(head, 5))),
            "d": w((4, 10), c(1, x(head, 5))),
            "e": w((4, 6), c(1, x(head, deep))),
            "b": w((6, 2), m(0, x(head, deep))),
        },
        f"<{ints[1]}> {{ {HEADS} }}",
        splits,
    )


TWO_HEADS = "int64[4] wide = {0, 0, 2, 5}, int64[4] deep = {0, 0, 2, 3}, int64[3] flat = {0, 0, 6}"

ATTENTION = {
    "heads by Reshape, value channels": heads(
        (
            TWO_HEADS,
            "int64[4] wide = {0, 0, 2, 5}, int64[4] deep = {0, 0, 2, 4}, int64[3] flat = {0, 0, 8}",
        ),
        2,
        THREE,
        {"e": THREE},
    ),
    "heads by Reshape, whole heads": heads(
        (
            TWO_HEADS,
            "int64[4] wide = {0, 0, 4, 5}, int64[4] deep = {0, 0, 4, 3}, int64[3] flat = {0, 0, 12}",
        ),
        TWO,
        3,
        {"a": TWO},
    ),
    "Attention": Case(
        "float[n,5,4] x",
        "{ q = MatMul (x, a) k = MatMul (x, d) v = MatMul (x, e) "
        "z = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v) y = MatMul (z, b) }",
        {
            "a": w((4, 20), c(1, x(TWO, 10))),
            "d": w((4, 10), c(1, x(TWO, 5))),
            "e": w((4, 6), c(1, x(TWO, THREE))),
            "b": w((12, 2), m(0, x(x(TWO, 2), THREE))),
        },
        "{ q = MatMul (x, a) k = MatMul (x, d) v = MatMul (x, e) "
        "z = Attention <q_num_heads = 8, kv_num_heads = 4> (q, k, v) y = MatMul (z, b) }",
        {"a": TWO, "e": THREE},
        opset=23,
        reals=("float",),
    ),
}

PLAIN = Split(4, FOUR.source, (1,) * len(FOUR.source))
QKV = "q = MatMul (x, a) k = MatMul (x, d) v = MatMul (x, e)"
CONTRIBUTED = {
    "MultiHeadAttention": Case(
        "float[n,5,4] x",
        f"{{ {QKV} z = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v) y = MatMul (z, b) }}",
        {
            "a": w((4, 8), c(1, x(TWO, 4))),
            "d": w((4, 8), c(1, x(TWO, 4))),
            "e": w((4, 6), c(1, x(TWO, THREE))),
            "b": w((6, 2), m(0, x(TWO, THREE))),
        },
        f"{{ {QKV} z = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v) y = MatMul (z, b) }}",
        {"a": TWO, "e": THREE},
        reals=("float",),
    ),
    "MultiHeadAttention with a bias": Case(
        "float[n,5,4] x",
        f"{{ {QKV} z = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v, s) y = MatMul (z, b) }}",
        {
            "a": w((4, 8)),
            "d": w((4, 8)),
            "e": w((4, 6), c(1, x(2, THREE))),
            "s": w((22,), c(0, row(16, x(2, THREE)))),
            "b": w((6, 2), m(0, x(2, THREE))),
        },
        splits={"e": THREE},
        reals=("float",),
    ),
    "MultiHeadAttention keeps its scale": Case(
        "float[n,5,4] x",
        f"{{ {QKV} z = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v) y = MatMul (z, b) }}",
        {
            "a": w((4, 8), m(1, x(2, FOUR))),
            "d": w((4, 8), c(1, x(2, FOUR))),
            "e": w((4, 6)),
            "b": w((6, 2)),
        },
        f"{{ {QKV} z = com.microsoft.MultiHeadAttention <num_heads = 2, scale = 0.5> (q, k, v) "
        "y = MatMul (z, b) }",
        {"a#2": FOUR},
        reals=("float",),
    ),
    "packed Attention, heads and value channels": Case(
        "float[n,5,4] x",
        "{ z = com.microsoft.Attention <num_heads = 2, qkv_hidden_sizes = [8, 8, 6]> (x, a, s) "
        "y = MatMul (z, b) }",
        {
            "a": w((4, 22), c(1, row(x(TWO, 4), x(TWO, 4), x(TWO, THREE)))),
            "s": w((22,), c(0, row(x(TWO, 4), x(TWO, 4), x(TWO, THREE)))),
            "b": w((6, 2), m(0, x(TWO, THREE))),
        },
        "{ z = com.microsoft.Attention <num_heads = 4, qkv_hidden_sizes = [16, 16, 16]> (x, a, s) "
        "y = MatMul (z, b) }",
        {"a": TWO, "a#3": THREE},
        reals=("float",),
    ),
    "packed Attention, queries and keys, in equal parts": Case(
        "float[2,5,4] x",
        "<int32[2] m = {5, 3}> { h = MatMul (x, d)"
        "z = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (h, a, s, m) "
        "y = MatMul (z, b) }",
        {
            "d": w((4, 3), c(1, THREE)),
            "a": w((3, 24), m(0, THREE), m(1, row(x(2, FOUR), x(2, PLAIN), 8))),
            "s": w((24,), m(0, row(x(2, FOUR), x(2, PLAIN), 8))),
            "b": w((8, 2)),
        },
        "<int32[2] m = {5, 3}> "
        "{ h = MatMul (x, d) z = com.microsoft.Attention <num_heads = 2, unidirectional = 1, scale = 0.5, "
        "qkv_hidden_sizes = [14, 14, 8]> (h, a, s, m) y = MatMul (z, b) }",
        {"d": THREE, "a#2": FOUR},
        reals=("float",),
    ),
    "GroupQueryAttention": Case(
        "float[1,5,4] x",
        "<int32[1] last = {4}, int32 total = {5}> "
        f"{{ {QKV} z = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> "
        "(q, k, v, , , last, total) y = MatMul (z, b) }",
        {
            "a": w((4, 32), c(1, x(TWO, 16))),
            "d": w((4, 16), c(1, x(TWO, 8))),
            "e": w((4, 16), c(1, x(TWO, 8))),
            "b": w((32, 2), m(0, x(TWO, 16))),
        },
        "<int32[1] last = {4}, int32 total = {5}> "
        f"{{ {QKV} z = com.microsoft.GroupQueryAttention <num_heads = 8, kv_num_heads = 4> "
        "(q, k, v, , , last, total) y = MatMul (z, b) }",
        {"a": TWO},
        reals=("float",),
    ),
}

CASES = RESHAPED | JOINED | PICKED | ATTENTION | CONTRIBUTED


@pytest.mark.parametrize("name", CASES)
def test_grown_is_the_wide_reference(name):
    assert_grown_as_written(CASES[name])
