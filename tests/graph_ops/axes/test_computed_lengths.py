"""Lengths that a graph computes from the batch and from numbers: what it grows to is right, or it stays.

Attention flattens the batch n and the heads into one axis of n · 2 rows. Exporters then write the heads as a
number into other nodes: a mask is expanded to 2 · n rows, an index is repeated so often. The number follows
the heads where it is a factor of a length, and the factors may stand in any order.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from tests.helpers.growing import assert_same_function, signed_plan
from tests.helpers.text_models import text_model

WEIGHTS = {"a": (4, 8), "b": (8, 3), "one": (1, 5, 4), "many": (64, 5, 4)}
INTEGERS = {
    "i0": [0], "i1": [1], "i2": [2], "i4": [4], "i5": [5], "none": [], "ones": [1, 1], "rest": [5, 4],
    "heads": [5, 2, 4], "flat": [-1, 5, 4], "picks": [[[3, 1, 0, 0], *[[2, 1, 4, 0]] * 4]],
}  # fmt: skip

PARTS = "its inputs divide this axis into different parts"
PART = "its length is part of a computed length"
COMPUTED = "the operator computes this length"

# By name: how z is made from the rows f [n · 2, 5, 4] and from count, which is [n · 2]. Then why the 2 heads
# stay if the batch is open and count is n · 2, if it is 2 · n, and if the batch is 3; empty if they grow.
BODIES = {
    "Expand": (
        "w = Concat <axis = 0> (count, rest) e = Expand (one, w) z = Mul (f, e)",
        "", PARTS, "",
    ),
    "an index that is expanded": (
        "w = Concat <axis = 0> (count, rest) e = Expand (picks, w) z = GatherElements <axis = 1> (f, e)",
        "", PARTS, "",
    ),
    "ConstantOfShape": (
        "w = Concat <axis = 0> (count, rest) e = ConstantOfShape <value = float[1] {0.5}> (w) z = Mul (f, e)",
        "", PARTS, "",
    ),
    "Tile": (
        "w = Concat <axis = 0> (count, ones) e = Tile (one, w) z = Mul (f, e)",
        *["the number of repetitions cannot change"] * 3,
    ),
    "Reshape": (
        "w = Concat <axis = 0> (count, rest) z = Reshape (t, w)",
        "", "", "",
    ),
    "Reshape to a sum": (
        "more = Add (count, i1) less = Sub (more, i1) w = Concat <axis = 0> (less, rest) z = Reshape (t, w)",
        PART, PART, "",
    ),
    "Slice": ("e = Slice (many, i0, count, i0) z = Mul (f, e)", COMPUTED, COMPUTED, ""),
    "Range": (
        "o = Squeeze (count) zero = Squeeze (i0) step = Squeeze (i1) k = Range (zero, o, step) "
        "e = Cast <to = 1> (k) g = Unsqueeze (e, axes) z = Mul (f, g)",
        *[COMPUTED] * 3,
    ),
    "Resize": (
        "w = Concat <axis = 0> (count, rest) e = Resize <mode = \"nearest\"> (one, , , w) z = Mul (f, e)",
        *[COMPUTED] * 3,
    ),
    "Pad": (
        "more = Sub (count, i1) w = Concat <axis = 0> (i0, i0, i0, more, i0, i0) "
        "e = Pad <mode = \"edge\"> (one, w) z = Mul (f, e)",
        *[COMPUTED] * 3,
    ),
    "TopK": ("e, k = TopK <axis = 0> (many, count) z = Mul (f, e)", *[COMPUTED] * 3),
    "Split": (
        "more = Sub (sixty, count) w = Concat <axis = 0> (count, more) "
        "e, k = Split <axis = 0> (many, w) z = Mul (f, e)",
        *["the rank of input 1 is not known"] * 2, "",
    ),
}  # fmt: skip
ORDERS = {"batch first": "count = Mul (n, i2)", "heads first": "count = Mul (i2, n)"}
READ = "k2 = Shape <start = 2, end = 3> (v)"


def attention_rows(rows: str, count: str, body: str) -> ir.Model:
    """Rows of n · 2 heads of 4 channels, a body that uses them, and a layer that mixes them."""
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        rows (float[{rows},5,4] x) => (float y)
        {{ h = MatMul (x, a) n = Shape <start = 0, end = 1> (x) apart = Concat <axis = 0> (n, heads)
           v = Reshape (h, apart) t = Transpose <perm = [0, 2, 1, 3]> (v) f = Reshape (t, flat)
           {count} {body}
           again = Concat <axis = 0> (n, i2, rest) d = Reshape (z, again)
           u = Transpose <perm = [0, 2, 1, 3]> (d) joined = Concat <axis = 0> (n, i5, last)
           m = Reshape (u, joined) y = MatMul (m, b) }}
    """)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    rng = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        values = rng.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    for name, numbers in {**INTEGERS, "last": [-1], "axes": [1, 2], "sixty": [64]}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
    return ir.from_proto(proto)


def images(batch: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(batch).normal(size=(batch, 5, 4)).astype(np.float32)}


@pytest.mark.parametrize("batch", ["batch", "3"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", BODIES)
def test_heads_follow_or_stay(name: str, order: str, batch: str) -> None:
    body, *reasons = BODIES[name]
    wanted = reasons[2 if batch == "3" else list(ORDERS).index(order)]
    model = attention_rows(batch, ORDERS[order], body)
    heads = find_channel_groups(model)["a"]
    assert heads.width == 2
    assert (heads.barrier.reason if heads.barrier else "") == wanted
    sizes = [3] if batch == "3" else [1, 2, 3]
    grown = grow_graph(model, signed_plan(model, growth=0.5))
    assert_same_function(model, grown, [images(size) for size in sizes])


@pytest.mark.parametrize("name", ["Expand", "an index that is expanded", "ConstantOfShape", "Reshape"])
def test_heads_that_are_read_from_a_shape_follow_in_their_order(name: str) -> None:
    body = BODIES[name][0]
    model = attention_rows("batch", f"{READ} count = Mul (n, k2)", body)
    assert find_channel_groups(model)["a"].splittable
    grown = grow_graph(model, signed_plan(model, growth=0.5))
    assert_same_function(model, grown, [images(batch) for batch in (1, 2, 3)])
    swapped = attention_rows("batch", f"{READ} count = Mul (k2, n)", body)
    barrier = find_channel_groups(swapped)["a"].barrier
    assert (barrier.reason if barrier else "") == BODIES[name][2]
    grown = grow_graph(swapped, signed_plan(swapped, growth=0.5))
    assert_same_function(swapped, grown, [images(batch) for batch in (1, 2, 3)])


@pytest.mark.parametrize("count", ["Mul (i4, n)", "Mul (n, i4)"])
def test_what_stands_before_the_batch_is_no_factor_of_it(count: str) -> None:
    """Four heads are folded into the batch, behind 4 x 4 places: the 4 are not those of the places."""
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 8), "b": (8, 3)}
    numbers = {"i4": [4], "i16": [16], "two": [2], "eight": [8]}
    model = text_model(
        "n = Shape <start = 2, end = 3> (x) c = Concat <axis = 0> (i16, n, i4) f = Reshape (x, c) "
        f"h = MatMul (f, a) count = {count} w = Concat <axis = 0> (i16, count, two) v = Reshape (h, w) "
        "t = Softmax <axis = 0> (v) d = Concat <axis = 0> (i16, n, eight) j = Reshape (t, d) "
        "y = MatMul (j, b)",
        "float[4,4,batch,4] x",
        **{key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()},
        **{key: np.array(values) for key, values in numbers.items()},
    )
    assert [g.width for g in find_channel_groups(model).groups if g.splittable] == [4, 2]
    grown = grow_graph(model, signed_plan(model, growth=0.5))
    feeds = [{"x": rng.normal(size=(4, 4, batch, 4)).astype(np.float32)} for batch in (1, 2, 3)]
    assert_same_function(model, grown, feeds)


def test_a_length_is_not_told_from_the_order_of_its_factors() -> None:
    """Exporters write 4 * batch for batch * 4, and let -1 stand for the heads beside it."""
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 6), "b": (6, 3)}
    numbers = {"i0": [0], "i4": [4], "i1": [1], "rest": [5, -1, 3], "back": [0, 0, 6], "rows": [-1, 5, 4]}
    model = text_model(
        "n = Shape <start = 0, end = 1> (x) f = Reshape (x, rows) h = MatMul (f, a) count = Mul (i4, n) "
        "w = Concat <axis = 0> (count, rest) v = Reshape (h, w) t = Transpose <perm = [0, 2, 1, 3]> (v) "
        "u = Transpose <perm = [0, 2, 1, 3]> (t) j = Reshape (u, back) y = MatMul (j, b)",
        "float[batch,4,5,4] x",
        **{key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()},
        **{key: np.array(values) for key, values in numbers.items()},
    )
    assert [(g.name, g.width) for g in find_channel_groups(model).groups if g.splittable] == [
        ("a", 2),
        ("a#2", 3),
    ]
    grown = grow_graph(model, signed_plan(model, growth=0.5))
    feeds = [{"x": rng.normal(size=(batch, 4, 5, 4)).astype(np.float32)} for batch in (1, 2, 3)]
    assert_same_function(model, grown, feeds)


# By name: how g [6, 5, 4] is made from the rows f, whose number n · 2 is not known, and a tensor of 6 rows.
SIX = "first = Slice (x, i0, i1, i0) k = MatMul (first, stack)"
WITH_SIX = {
    "a constant": ("g = Add (f, six)", ""),
    "a stack of weights": (f"{SIX} g = Add (f, k)", "an axis of unknown length may broadcast"),
    "indices": (
        f"{SIX} e = ConstantOfShape <value = int64[1] {{1}}> (shape) p = GatherElements <axis = 1> (k, e) "
        "g = Add (p, f)",
        "an axis of unknown length may broadcast",
    ),
}


@pytest.mark.parametrize("name", WITH_SIX)
def test_rows_of_unknown_number_meet_a_known_number(name: str) -> None:
    body, wanted = WITH_SIX[name]
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 8), "six": (6, 5, 4), "stack": (6, 4, 4), "c": (6, 3)}
    numbers = {"heads": [0, 5, 2, 4], "flat": [-1, 5, 4], "i0": [0], "i1": [1], "shape": [6, 5, 4]}
    model = text_model(
        "h = MatMul (x, a) v = Reshape (h, heads) t = Transpose <perm = [0, 2, 1, 3]> (v) "
        f"f = Reshape (t, flat) {body} u = Transpose <perm = [1, 2, 0]> (g) y = MatMul (u, c)",
        "float[batch,5,4] x",
        **{key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()},
        **{key: np.array(values) for key, values in numbers.items()},
    )
    barrier = find_channel_groups(model)["a"].barrier
    assert (barrier.reason if barrier else "") == wanted
    grown = grow_graph(model, signed_plan(model, growth=0.5))
    assert_same_function(model, grown, [images(3)])


def test_parts_of_unknown_length_in_another_order_are_not_the_same() -> None:
    """[n + 4] is as long as [4 + n], and n is not 4."""
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        rows (float[batch,4] x) => (float[k,3] y)
        <int64[1] eight = {8}, int64[1] rest = {-1}>
        { h = MatMul (x, a) p = Concat <axis = 0> (h, c) q = Concat <axis = 0> (c, h) s = Add (p, q)
          n = Shape <start = 0, end = 1> (x) all = Mul (n, eight) f = Reshape (h, all)
          apart = Concat <axis = 0> (n, rest) d = Reshape (f, apart) m = MatMul (d, b) u = MatMul (s, b)
          most = ReduceMax <axes = [0]> (u) y = Add (m, most) }
    """)
    rng = np.random.default_rng(0)
    for name, shape in {"a": (4, 8), "c": (4, 8), "b": (8, 3)}.items():
        proto.graph.initializer.append(
            numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        )
    model = ir.from_proto(proto)
    assert find_channel_groups(model)["a"].splittable
    grown = grow_graph(model, signed_plan(model, growth=0.5))
    rows = [np.random.default_rng(n).normal(size=(n, 4)).astype(np.float32) for n in (1, 2, 3, 4)]
    assert_same_function(model, grown, [{"x": x} for x in rows])
