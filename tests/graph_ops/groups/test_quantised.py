"""Quantised networks: what can be copied exactly grows, and what would have to be rounded is a barrier."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.onnx_tools.width_check import check_widths
from tests.helpers.growing import assert_same_function, signed_plan

RNG = np.random.default_rng(0)
SCALE, ZERO = np.float32(0.05), np.uint8(128)


def int8(*shape: int) -> np.ndarray:
    return RNG.integers(-100, 100, shape).astype(np.int8)


def scales(count: int) -> np.ndarray:
    return RNG.uniform(0.005, 0.02, count).astype(np.float32)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


# By name: the body between x and y, its tensors, the groups that grow, and MACs of one sample.
PER_CHANNEL = {
    "w": int8(8, 3, 3, 3),
    "ws": scales(8),
    "wz": np.zeros(8, np.int8),
    "b": RNG.integers(-500, 500, 8).astype(np.int32),
    "bs": scales(8),
    "v": floats(4, 8, 1, 1),
}
CASES = {
    "QDQ per channel, then float": (
        """
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        wf = DequantizeLinear <axis = 0> (w, ws, wz)
        bf = DequantizeLinear <axis = 0> (b, bs)
        c = Conv (d, wf, bf)
        r = Relu (c)
        p = QuantizeLinear (r, s, z)
        e = DequantizeLinear (p, s, z)
        y = Conv (e, v)
        """,
        PER_CHANNEL,
        {"w"},
        16 * (27 * 8 + 8 * 4),
    ),
    "QDQ per tensor, then float": (
        """
        d = DequantizeLinear (w, s)
        c = Conv (x, d)
        y = Conv (c, v)
        """,
        {"w": int8(8, 3, 3, 3), "v": floats(4, 8, 1, 1)},
        {"w"},
        16 * (27 * 8 + 8 * 4),
    ),
    "QLinearConv, then float": (
        """
        q = QuantizeLinear (x, s, z)
        c = QLinearConv (q, s, z, w, ws, wz, s, z, b)
        d = DequantizeLinear (c, s, z)
        y = Conv (d, v)
        """,
        {name: PER_CHANNEL[name] for name in ("w", "ws", "wz", "b", "v")},
        {"w"},
        16 * (27 * 8 + 8 * 4),
    ),
    "ConvInteger, then float": (
        """
        q, qs, qz = DynamicQuantizeLinear (x)
        i = ConvInteger (q, w, qz)
        f = Cast <to = 1> (i)
        c = Mul (f, qs)
        y = Conv (c, v)
        """,
        {"w": int8(8, 3, 3, 3), "v": floats(4, 8, 1, 1) / 1000},
        {"w"},
        16 * (27 * 8 + 8 * 4),
    ),
    "float, then QDQ": (
        """
        c = Conv (x, a)
        wf = DequantizeLinear (w, s)
        y = Conv (c, wf)
        """,
        {"a": floats(8, 3, 3, 3), "w": int8(4, 8, 1, 1)},
        set(),
        16 * (27 * 8 + 8 * 4),
    ),
    "a weight that is rounded in the graph": (
        """
        c = Conv (x, a)
        q = QuantizeLinear (v, s, o)
        d = DequantizeLinear (q, s, o)
        y = Conv (c, d)
        """,
        {"a": floats(8, 3, 3, 3), "v": floats(4, 8, 1, 1), "o": np.int8(0)},
        set(),
        16 * (27 * 8 + 8 * 4),
    ),
    "a rounded weight makes channels": (
        """
        q = QuantizeLinear <axis = 0> (a, ws, wz)
        d = DequantizeLinear <axis = 0> (q, ws, wz)
        c = Conv (x, d)
        y = Conv (c, v)
        """,
        {"a": floats(8, 3, 3, 3), "ws": scales(8), "wz": np.zeros(8, np.int8), "v": floats(4, 8, 1, 1)},
        {"a"},
        16 * (27 * 8 + 8 * 4),
    ),
}


def image_model(body: str, tensors: dict[str, np.ndarray], opset: int = 17) -> ir.Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
        f" quantised (float[n,3,6,6] x) => (float[n,4,4,4] y) {{ {body} }}"
    )
    held = {"s": SCALE, "z": ZERO, **tensors}
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in held.items() if name in body
    )
    return ir.from_proto(proto)


@pytest.mark.parametrize("name", CASES)
def test_what_can_be_copied_exactly_grows(name: str) -> None:
    body, tensors, splits, macs = CASES[name]
    model = image_model(body, tensors)
    groups = find_channel_groups(model)
    assert {group.name for group in groups.groups if group.splittable} == splits
    assert groups.cost.macs() == macs
    assert groups.cost.uncounted == ()
    if splits:
        wider = grow_graph(model, signed_plan(model, growth=0.5))
        assert check_widths(wider) == []
        x = RNG.normal(size=(2, 3, 6, 6)).astype(np.float32)
        assert_same_function(model, wider, [{"x": x}])


def test_a_quantised_weight_says_why_it_cannot_take_coefficients() -> None:
    body, tensors, _, _ = CASES["float, then QDQ"]
    barrier = find_channel_groups(image_model(body, tensors))["a"].barrier
    assert barrier is not None
    assert barrier.reason == "the weight w is stored as int8, which cannot hold the coefficients"
    body, tensors, _, _ = CASES["a weight that is rounded in the graph"]
    barrier = find_channel_groups(image_model(body, tensors))["a"].barrier
    assert barrier is not None
    assert barrier.reason == "the weight is quantised, so it cannot hold the coefficients"


def rows_model(body: str, tensors: dict[str, np.ndarray]) -> ir.Model:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'
        f" rows (float[n,32] x) => (float[n,4] y) {{ {body} }}"
    )
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    return ir.from_proto(proto)


PRODUCTS = {
    "MatMulInteger": (
        """
        q, qs, qz = DynamicQuantizeLinear (x)
        i = MatMulInteger (q, w, qz, wz)
        f = Cast <to = 1> (i)
        g = Mul (f, qs)
        h = Mul (g, ws)
        r = Relu (h)
        y = MatMul (r, v)
        """,
        {"w": int8(32, 8), "wz": int8(8), "ws": scales(8), "v": floats(8, 4)},
        {"w"},
        32 * 8 + 8 * 4,
    ),
    "MatMulNBits": (
        """
        a = com.microsoft.MatMulNBits <K = 32, N = 8, bits = 4, block_size = 32> (x, wq, ws)
        b = MatMul (a, w3)
        r = Relu (b)
        y = MatMul (r, v)
        """,
        {
            "wq": RNG.integers(0, 255, (8, 1, 16)).astype(np.uint8),
            "ws": scales(8),
            "w3": floats(8, 6),
            "v": floats(6, 4),
        },
        {"w3"},
        32 * 8 + 8 * 6 + 6 * 4,
    ),
    "FusedMatMul and Gelu": (
        """
        a = com.microsoft.FusedMatMul <alpha = 0.5> (x, w)
        b = com.microsoft.BiasGelu (a, c)
        d = com.microsoft.QuickGelu (b)
        y = com.microsoft.FusedGemm <activation = "Relu"> (d, v, e)
        """,
        {"w": floats(32, 8), "c": floats(8), "v": floats(8, 4), "e": floats(4)},
        {"w"},
        32 * 8 + 8 * 4,
    ),
    "DynamicQuantizeMatMul": (
        """
        a = com.microsoft.DynamicQuantizeMatMul (x, w, ws, wz, c)
        r = Relu (a)
        y = MatMul (r, v)
        """,
        {"w": int8(32, 8), "ws": scales(8), "wz": np.zeros(8, np.int8), "c": floats(8), "v": floats(8, 4)},
        {"w"},
        32 * 8 + 8 * 4,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_quantised_and_contributed_operators(name: str) -> None:
    body, tensors, splits, macs = PRODUCTS[name]
    model = rows_model(body, tensors)
    groups = find_channel_groups(model)
    assert {group.name for group in groups.groups if group.splittable} == splits
    assert groups.cost.macs() == macs
    assert groups.cost.uncounted == ()
    wider = grow_graph(model, signed_plan(model, growth=0.5))
    x = RNG.normal(size=(2, 32)).astype(np.float32)
    assert_same_function(model, wider, [{"x": x}])


def test_operators_that_nobody_counts_are_named() -> None:
    model = rows_model(
        """
        [secret] a = com.acme.Secret (x, w)
        y = MatMul (a, v)
        """,
        {"w": floats(32, 8), "v": floats(8, 4)},
    )
    groups = find_channel_groups(model)
    assert groups.cost.uncounted == ("com.acme::Secret secret", "MatMul y")
    assert [str(barrier) for barrier in groups.barriers] == [
        "com.acme::Secret secret: growpipe has no rule for this operator",
        "MatMul y: the rank of input 0 is not known",
    ]
