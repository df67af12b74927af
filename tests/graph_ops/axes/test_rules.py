"""Every operator's rule on a graph in ONNX text form: grown, it is the same function and the widths follow.

Each case is the body of a graph between ``x`` and ``y`` and what is expected of its groups: the names of
those that split, and the reasons of those that do not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.onnx_tools.width_check import check_widths
from tests.helpers.growing import assert_same_function, signed_plan


@dataclass(frozen=True)
class Case:
    """A graph in text form.

    Attributes:
        inputs: the shape of x.
        body: nodes in ONNX text.
        weights: the shapes of the random initializers.
        integers: the values of integer initializers.
        splits: the names of the groups that must split.
        declined: of other groups made by a weight, the reason.
        evenly: the names of the groups that must split by whole factors.
    """

    inputs: str
    body: str
    weights: dict[str, tuple[int, ...]]
    splits: set[str]
    integers: dict[str, list[int]] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)
    opset: int = 18
    evenly: set[str] = field(default_factory=set)


SUM = "it normalises over this axis by a sum, which copies would enlarge"

IMAGE = "float[n,3,6,6] x"
ROWS = "float[n,5,4] x"
VECTOR = "float[n,4] x"


def image(body: str, weights: dict, splits=("a",), **options) -> Case:
    """The body turns ``h``, made by the convolution ``a`` of 8 channels, into ``z``."""
    stem = "h = Conv (x, a)"
    head = "m = Conv (z, b) y = GlobalAveragePool (m)"
    return Case(IMAGE, f"{stem} {body} {head}", {"a": (8, 3, 3, 3), **weights}, set(splits), **options)


def rows(body: str, weights: dict, splits=("a",), **options) -> Case:
    """The same with a MatMul on the last axis."""
    body = f"h = MatMul (x, a) {body} y = MatMul (z, b)"
    return Case(ROWS, body, {"a": (4, 8), **weights}, set(splits), **options)


def unary(operator: str, attributes: str = "") -> Case:
    return image(f"z = {operator} {attributes} (h)", {"b": (2, 8, 1, 1)})


def reason(text: str) -> dict[str, str]:
    return {"a": text}


UNARY = """
Abs Atan Ceil Celu Cos Elu Erf Exp Floor HardSigmoid HardSwish Identity LeakyRelu Mish Neg Relu
Round Selu Sigmoid Sign Sin Softplus Softsign Tanh ThresholdedRelu Shrink Dropout
"""

CASES: dict[str, Case] = {
    **{name: unary(name) for name in UNARY.split()},
    "Gelu": image("z = Gelu (h)", {"b": (2, 8, 1, 1)}, opset=20),
    "Sqrt": image("q = Mul (h, h) z = Sqrt (q)", {"b": (2, 8, 1, 1)}),
    "Log": image("q = Mul (h, h) r = Add (q, one) z = Log (r)", {"b": (2, 8, 1, 1), "one": (1,)}, opset=18),
    "Reciprocal": image("q = Exp (h) z = Reciprocal (q)", {"b": (2, 8, 1, 1)}),
    "Pow": image("q = Abs (h) z = Pow (q, e)", {"b": (2, 8, 1, 1), "e": (8, 1, 1)}),
    "Clip": image("z = Clip (h, low, high)", {"b": (2, 8, 1, 1), "low": (), "high": ()}),
    "PRelu": image("z = PRelu (h, s)", {"b": (2, 8, 1, 1), "s": (8, 1, 1)}),
    "PRelu scalar": image("z = PRelu (h, s)", {"b": (2, 8, 1, 1), "s": (1,)}),
    "Add constant": image("z = Add (c, h)", {"b": (2, 8, 1, 1), "c": (1, 8, 1, 1)}),
    "Mul constant": image("z = Mul (h, c)", {"b": (2, 8, 1, 1), "c": (8, 1, 1)}),
    "Where": image("p = Greater (h, c) z = Where (p, h, c)", {"b": (2, 8, 1, 1), "c": (8, 1, 1)}),
    "Max": image("z = Max (h, c, d)", {"b": (2, 8, 1, 1), "c": (8, 1, 1), "d": (1,)}),
    "Sum": image("z = Sum (h, h, c)", {"b": (2, 8, 1, 1), "c": (8, 1, 1)}),
    "residual": image("k = Conv (h, c) z = Add (h, k)", {"b": (2, 8, 1, 1), "c": (8, 8, 1, 1)}),
    "gate": image(
        "p = GlobalAveragePool (h) g = Conv (p, c) s = Sigmoid (g) z = Mul (h, s)",
        {"b": (2, 8, 1, 1), "c": (8, 8, 1, 1)},
    ),
    "Cast": image("q = Cast <to = 11> (h) z = Cast <to = 1> (q)", {"b": (2, 8, 1, 1)}),
    "cast weight": image("c = Cast <to = 1> (b) z = Relu (h) w = Identity (c)", {"b": (2, 8, 1, 1)}),
    "BatchNormalization": image(
        "v = Exp (r) z = BatchNormalization (h, s, t, q, positive)",
        {"b": (2, 8, 1, 1), "s": (8,), "t": (8,), "q": (8,), "positive": (8,), "r": (1,)},
    ),
    "InstanceNormalization": image(
        "z = InstanceNormalization (h, s, t)", {"b": (2, 8, 1, 1), "s": (8,), "t": (8,)}
    ),
    "GroupNormalization": image(
        "z = GroupNormalization <num_groups = 2> (h, s, t)",
        {"b": (2, 8, 1, 1), "s": (2,), "t": (2,)},
        evenly={"a#2"},
    ),
    "GroupNormalization per channel": image(
        "z = GroupNormalization <num_groups = 2> (h, s, t)",
        {"b": (2, 8, 1, 1), "s": (8,), "t": (8,)},
        evenly={"a#2"},
        opset=21,
    ),
    "LayerNormalization": rows(
        "z = LayerNormalization (h, s)",
        {"b": (8, 2), "s": (8,)},
        splits=(),
        evenly={"a"},
    ),
    "LRN": image(
        "z = LRN <size = 3> (h)",
        {"b": (2, 8, 1, 1)},
        (),
        declined=reason("it normalises over neighbours on this axis"),
    ),
    "Softmax over channels": rows("z = Softmax (h)", {"b": (8, 2)}, (), declined=reason(SUM)),
    "Softmax over rows": rows("z = Softmax <axis = 1> (h)", {"b": (8, 2)}),
    "Softmax of opset 11": rows(
        "z = Softmax <axis = 1> (h)",
        {"b": (8, 2)},
        (),
        opset=11,
        declined=reason(SUM),
    ),
    "LpNormalization": rows("z = LpNormalization (h)", {"b": (8, 2)}, (), declined=reason(SUM)),
    "Conv over what a weight makes": Case(
        "float[n,3] x",
        "f = MatMul (x, a) h = Reshape (f, parts) k = Conv (h, w) p = GlobalAveragePool (k) q = Flatten (p) "
        "m = MatMul (h, b) s = Flatten (m) t = MatMul (s, c) y = Add (q, t)",
        {"a": (3, 8), "w": (2, 2, 3), "b": (4, 2), "c": (4, 2)},
        {"a", "b"},
        {"parts": [-1, 2, 4]},
        {"a#2": "a window slides along this axis"},
    ),
    "MeanVarianceNormalization": image("z = MeanVarianceNormalization (h)", {"b": (2, 8, 1, 1)}),
    "MaxPool": unary("MaxPool", "<kernel_shape = [2, 2], strides = [2, 2]>"),
    "AveragePool": unary("AveragePool", "<kernel_shape = [3, 3], pads = [1, 1, 1, 1], ceil_mode = 1>"),
    "LpPool": unary("LpPool", "<kernel_shape = [2, 2]>"),
    "GlobalMaxPool": unary("GlobalMaxPool"),
    "Conv with bias": image("z = Conv (h, c, d)", {"b": (2, 6, 1, 1), "c": (6, 8, 1, 1), "d": (6,)}, "ac"),
    "depthwise": image("z = Conv <group = 8> (h, c)", {"b": (2, 8, 1, 1), "c": (8, 1, 3, 3)}),
    "depthwise with multiplier": image(
        "z = Conv <group = 8> (h, c)", {"b": (2, 16, 1, 1), "c": (16, 1, 3, 3)}, "ac"
    ),
    "grouped": image(
        "z = Conv <group = 2> (h, c)", {"b": (2, 6, 1, 1), "c": (6, 4, 3, 3)}, ("a", "a#2", "c")
    ),
    "ConvTranspose": image(
        "z = ConvTranspose <strides = [2, 2]> (h, c, d)",
        {"b": (2, 5, 1, 1), "c": (8, 5, 2, 2), "d": (5,)},
        "ac",
    ),
    "depthwise ConvTranspose": image(
        "z = ConvTranspose <group = 8> (h, c)", {"b": (2, 8, 1, 1), "c": (8, 1, 2, 2)}
    ),
    "grouped ConvTranspose": image(
        "z = ConvTranspose <group = 2> (h, c)",
        {"b": (2, 6, 1, 1), "c": (8, 3, 2, 2)},
        ("a#2", "c"),
        declined=reason("the number of groups of a transposed convolution cannot change"),
    ),
    "shared filter": image(
        "k = Conv <pads = [1, 1, 1, 1]> (h, c) r = Relu (k) z = Conv (r, c)",
        {"b": (2, 8, 1, 1), "c": (8, 8, 3, 3)},
    ),
    "MatMul": rows("z = Tanh (h)", {"b": (8, 2)}),
    "MatMul transposed": Case(
        ROWS,
        "at = Transpose (a) h = MatMul (x, at) r = Relu (h) bt = Transpose <perm = [1, 0]> (b) "
        "y = MatMul (r, bt)",
        {"a": (8, 4), "b": (2, 8)},
        {"a"},
    ),
    "MatMul from the left": Case(
        ROWS, "h = MatMul (a, x) r = Relu (h) y = MatMul (b, r)", {"a": (8, 5), "b": (2, 8)}, {"a"}
    ),
    "MatMul with a vector": Case(
        ROWS, "h = MatMul (x, a) r = Relu (h) y = MatMul (r, b)", {"a": (4, 8), "b": (8,)}, {"a"}
    ),
    "stack of weights": Case(
        ROWS,
        "u = Unsqueeze (x, one) h = MatMul (u, a) r = Relu (h) s = MatMul (r, b) y = ReduceSum (s, one)",
        {"a": (3, 4, 8), "b": (3, 8, 2)},
        {"a#2"},
        {"one": [1]},
        {"a": "it reduces this axis to one value"},
    ),
    "activations contracted": rows(
        "t = Transpose <perm = [0, 2, 1]> (h) s = MatMul (h, t) z = Softmax (s)",
        {"b": (5, 2)},
        (),
        declined=reason(
            "it sums over this axis of two activations, and no weight before them can take the coefficients: "
            "Transpose reads the same channels and MatMul reads the same channels"
        ),
    ),
    "attention values": rows(
        "v = MatMul (x, c) t = Transpose <perm = [0, 2, 1]> (h) s = MatMul (h, t) p = Softmax (s) "
        "z = MatMul (p, v)",
        {"b": (7, 2), "c": (4, 7)},
        ("c",),
        declined=reason(
            "it sums over this axis of two activations, and no weight before them can take the coefficients: "
            "Transpose reads the same channels and MatMul reads the same channels"
        ),
    ),
    "Gemm": Case(
        VECTOR,
        "h = Gemm <transB = 1> (x, a, c) r = Relu (h) y = Gemm <alpha = 0.5> (r, b)",
        {"a": (8, 4), "c": (8,), "b": (8, 2)},
        {"a"},
    ),
    "Gemm with the weight first": Case(
        VECTOR,
        "h = Gemm <transB = 1> (a, x) r = Relu (h) y = Gemm <transA = 1> (b, r)",
        {"a": (8, 4), "b": (8, 2)},
        {"a"},
    ),
    "Einsum": Case(
        ROWS,
        'h = Einsum <equation = "bnc,oc->bno"> (x, a) r = Relu (h) y = Einsum <equation = "bno,op"> (r, b)',
        {"a": (8, 4), "b": (8, 2)},
        {"a"},
    ),
    "Flatten": image(
        "f = Flatten (h) g = Gemm (f, c) z = Reshape (g, shape)",
        {"b": (2, 5, 1, 1), "c": (128, 5)},
        "ac",
        integers={"shape": [-1, 5, 1, 1]},
    ),
    "Reshape": image(
        "f = Reshape (h, flat) g = Gemm (f, c) z = Reshape (g, shape)",
        {"b": (2, 5, 1, 1), "c": (128, 5)},
        "ac",
        integers={"flat": [-1, 128], "shape": [0, 5, 1, -1]},
    ),
    "shuffle": image(
        "u = Reshape (h, split) t = Transpose <perm = [0, 2, 1, 3, 4]> (u) z = Reshape (t, back)",
        {"b": (2, 8, 1, 1)},
        ("a", "a#2"),
        integers={"split": [0, 2, 4, 4, 4], "back": [-1, 8, 4, 4]},
    ),
    "uneven reshape": image(
        "u = Reshape (h, split) r = Softmax <axis = 2> (u) z = Reshape (r, back)",
        {"b": (2, 8, 1, 1)},
        ("a",),
        integers={"split": [0, 4, 2, 4, 4], "back": [0, 8, 4, 4]},
        declined={"a#2": SUM},
    ),
    "Squeeze": image(
        "p = GlobalAveragePool (h) s = Squeeze (p, last) r = Relu (s) z = Unsqueeze (r, last)",
        {"b": (2, 8, 1, 1)},
        integers={"last": [2, 3]},
    ),
    "DepthToSpace": image(
        "z = DepthToSpace <blocksize = 2> (h)",
        {"b": (2, 2, 1, 1)},
        ("a#2",),
        declined=reason("channels become pixels"),
    ),
    "DepthToSpace CRD": image(
        'z = DepthToSpace <blocksize = 2, mode = "CRD"> (h)',
        {"b": (2, 2, 1, 1)},
        declined={"a#2": "channels become pixels"},
    ),
    "SpaceToDepth": image("z = SpaceToDepth <blocksize = 2> (h)", {"b": (2, 32, 1, 1)}),
    "Concat": image(
        "k = Conv (x, c) z = Concat <axis = 1> (k, h, k)", {"b": (2, 18, 1, 1), "c": (5, 3, 3, 3)}, "ac"
    ),
    "Split": image(
        "p, q = Split <axis = 1> (h, parts) r = Relu (q) z = Concat <axis = 1> (r, p)",
        {"b": (2, 8, 1, 1)},
        ("a", "a#2"),
        integers={"parts": [3, 5]},
    ),
    "Split equally": image(
        "p, q = Split <axis = 1, num_outputs = 2> (h) z = Concat <axis = 1> (q, p)",
        {"b": (2, 8, 1, 1)},
        ("a", "a#2"),
    ),
    "Split of opset 11": image(
        "p, q = Split <axis = 1, split = [2, 6]> (h) r = Relu (p) z = Concat <axis = 1> (q, r)",
        {"b": (2, 8, 1, 1)},
        ("a", "a#2"),
        opset=11,
    ),
    "gated halves": image(
        "p, q = Split <axis = 1> (h, parts) s = Sigmoid (p) z = Mul (q, s)",
        {"b": (2, 4, 1, 1)},
        integers={"parts": [4, 4]},
    ),
    "SplitToSequence": image(
        "s = SplitToSequence <axis = 1> (h, size) p = SequenceAt (s, i) q = SequenceAt (s, j) "
        "z = Concat <axis = 1> (q, p)",
        {"b": (2, 8, 1, 1)},
        ("a", "a#2"),
        integers={"size": 5, "i": 0, "j": 1},
    ),
    "Slice": image(
        "p = Slice (h, start, end, axis) q = Slice (h, zero, start, axis) z = Concat <axis = 1> (p, q)",
        {"b": (2, 6, 1, 1)},
        ("a", "a#2"),
        integers={"start": [2], "end": [-2], "axis": [1], "zero": [0]},
    ),
    "Slice backwards": image(
        "z = Slice (h, start, end, axis, step)",
        {"b": (2, 8, 1, 1)},
        (),
        integers={"start": [-1], "end": [-100], "axis": [1], "step": [-1]},
        declined=reason("the slice has a step, or bounds that are not known"),
    ),
    "Pad": image("z = Pad (h, pads)", {"b": (2, 11, 1, 1)}, integers={"pads": [0, 1, 1, 0, 0, 2, 0, 1]}),
    "Pad by reflection": image(
        'z = Pad <mode = "reflect"> (h, pads)',
        {"b": (2, 8, 1, 1)},
        integers={"pads": [0, 0, 1, 1, 0, 0, 1, 1]},
    ),
    "Tile": image("z = Tile (h, times)", {"b": (2, 16, 1, 1)}, integers={"times": [1, 2, 1, 1]}),
    "Expand": image(
        "p = GlobalAveragePool (h) z = Expand (p, shape)",
        {"b": (2, 8, 1, 1)},
        integers={"shape": [1, 8, 4, 4]},
    ),
    "Expand a constant": image(
        "e = Expand (s, shape) z = Mul (h, e)",
        {"b": (2, 8, 1, 1), "s": (1, 1, 1)},
        integers={"shape": [8, 1, 1]},
    ),
    "ConstantOfShape": image(
        "f = ConstantOfShape <value = float[1] {0.5}> (shape) z = Mul (h, f)",
        {"b": (2, 8, 1, 1)},
        integers={"shape": [8, 1, 1]},
    ),
    "Gather along another axis": rows(
        "z = Gather <axis = 1> (h, picked)", {"b": (8, 2)}, integers={"picked": [0, 3, 3]}
    ),
    "Gather channels": rows(
        "z = Gather <axis = 2> (h, picked)",
        {"b": (3, 2)},
        (),
        integers={"picked": [0, 3, 3]},
        declined=reason("it picks entries of this axis by data"),
    ),
    "embedding": Case(
        "int64[n,5] x", "h = Gather (a, x) y = MatMul (h, b)", {"a": (10, 8), "b": (8, 2)}, {"a"}
    ),
    "GatherND": rows(
        "z = GatherND <batch_dims = 0> (h, picked)", {"b": (8, 2)}, integers={"picked": [[0, 1], [0, 2]]}
    ),
    "GatherElements": rows(
        "i = ConstantOfShape <value = int64[1] {1}> (shape) z = GatherElements <axis = 1> (h, i)",
        {"b": (8, 2)},
        integers={"shape": [1, 2, 8]},
    ),
    "TopK": rows("z, i = TopK <axis = 1> (h, k)", {"b": (8, 2)}, integers={"k": [3]}),
    "TopK of channels": rows(
        "z, i = TopK (h, k)",
        {"b": (3, 2)},
        (),
        integers={"k": [3]},
        declined=reason("it sorts along this axis"),
    ),
    "CumSum": rows("z = CumSum (h, k)", {"b": (8, 2)}, integers={"k": 1}),
    "Trilu": rows(
        "z = Trilu (h)", {"b": (8, 2)}, (), declined=reason("it cuts this axis along the diagonal")
    ),
    "ReduceMean": rows("z = ReduceMean <keepdims = 0> (h, k)", {"b": (8, 2)}, integers={"k": [1]}),
    "ReduceMax of opset 11": rows("z = ReduceMax <axes = [1]> (h)", {"b": (8, 2)}, opset=11),
    "ReduceSum of channels": rows(
        "z = ReduceSum (h, k)",
        {"b": (1, 2)},
        (),
        integers={"k": [-1]},
        declined=reason("it reduces this axis to one value"),
    ),
    "ArgMax": rows("i = ArgMax (h) f = Cast <to = 1> (i) z = Add (h, f)", {"b": (8, 2)}),
    "Slice by attributes": image(
        "p = Slice <axes = [1], starts = [0], ends = [3]> (h) "
        "q = Slice <axes = [1], starts = [3], ends = [8]> (h) z = Concat <axis = 1> (p, q)",
        {"b": (2, 8, 1, 1)},
        {"a", "a#2"},
        opset=9,
    ),
    "Slice of space by attributes": image(
        "z = Slice <axes = [2, 3], starts = [0, 0], ends = [2, -1]> (h)", {"b": (2, 8, 1, 1)}, opset=9
    ),
    "Pad by attributes": image(
        "z = Pad <pads = [0, 1, 1, 0, 0, 2, 0, 1]> (h)", {"b": (2, 11, 1, 1)}, opset=9
    ),
    "Upsample by attributes": image(
        "z = Upsample <scales = [1.0, 1.0, 2.0, 2.0]> (h)", {"b": (2, 8, 1, 1)}, opset=8
    ),
    "Upsample by an input": image("z = Upsample (h, scales)", {"b": (2, 8, 1, 1), "scales": (4,)}, opset=9),
    "Resize of opset 10": image("z = Resize (h, scales)", {"b": (2, 8, 1, 1), "scales": (4,)}, opset=10),
    "TopK of opset 9": rows(
        "p, q = TopK <k = 3, axis = -1> (h) z = Cast <to = 1> (q)",
        {"b": (3, 2)},
        (),
        opset=9,
        declined=reason("it sorts along this axis"),
    ),
    "Resize": image("z = Resize (h, , scales)", {"b": (2, 8, 1, 1), "scales": (4,)}),
    "Resize that crops": image(
        'z = Resize <coordinate_transformation_mode = "tf_crop_and_resize"> (h, roi, , sizes)',
        {"b": (2, 8, 1, 1), "roi": (8,)},
        (),
        integers={"sizes": [2, 8, 6, 6]},
        declined=reason("it interpolates along this axis"),
    ),
    "Resize that keeps the proportions": image(
        'z = Resize <keep_aspect_ratio_policy = "not_larger"> (h, , , sizes)',
        {"b": (2, 8, 1, 1)},
        (),
        integers={"sizes": [2, 8, 6, 6]},
        declined=reason("it interpolates along this axis"),
    ),
    "Resize to lengths": image(
        "z = Resize (h, , , sizes)", {"b": (2, 8, 1, 1)}, integers={"sizes": [1, 8, 6, 6]}
    ),
    "GridSample": Case(
        IMAGE,
        "h = Conv (x, a) z = GridSample (h, grid) m = Conv (z, b) y = GlobalAveragePool (m)",
        {"a": (8, 3, 3, 3), "grid": (1, 3, 3, 2), "b": (2, 8, 1, 1)},
        {"a"},
        opset=16,
    ),
    "QuantizeLinear": image(
        "q = QuantizeLinear (h, s) z = DequantizeLinear (q, s)", {"b": (2, 8, 1, 1), "s": ()}
    ),
    "length as a number": rows(
        "s = Shape <start = 2> (h) f = Cast <to = 1> (s) z = Div (h, f)",
        {"b": (8, 2)},
        (),
        declined=reason("the graph computes with the length of this axis"),
    ),
    "length as a count": Case(
        ROWS,
        "h = MatMul (x, a) s = Shape <start = 2> (h) r = Relu (h) z, i = TopK <axis = 1> (r, s) "
        "y = MatMul (z, b)",
        {"a": (4, 3), "b": (3, 2)},
        set(),
        declined=reason("the graph computes with the length of this axis"),
    ),
    "padded up to a length": Case(
        ROWS,
        "h = MatMul (x, a) s = Shape <start = 2> (h) m = Sub (seven, s) p = Concat <axis = 0> (zeros, m) "
        "z = Pad (h, p) y = MatMul (z, b)",
        {"a": (4, 3), "b": (7, 2)},
        {"a"},
        {"seven": [7], "zeros": [0, 0, 0, 0, 0]},
    ),
    "Attention with fewer key heads": Case(
        ROWS,
        "q = MatMul (x, a) k = MatMul (x, c) v = MatMul (x, d) "
        "z = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v) y = MatMul (z, b)",
        {"a": (4, 8), "c": (4, 4), "d": (4, 6), "b": (12, 2)},
        {"a", "a#2", "a#3", "d"},
        opset=23,
    ),
    "Attention on four axes": Case(
        "float[n,2,5,4] x",
        "k = MatMul (x, a) v = MatMul (x, d) z = Attention (k, k, v, mask) y = MatMul (z, b)",
        {"a": (4, 6), "d": (4, 3), "b": (3, 2), "mask": (5, 5)},
        {"d"},
        declined=reason(
            "it sums over this axis of two activations, and no weight before them can take the coefficients: "
            "Attention reads the same channels"
        ),
        opset=23,
    ),
    "LSTM": Case(
        ROWS,
        "h = MatMul (x, a) r, s, t = LSTM <hidden_size = 2> (h, w, u) q = Squeeze (r, one) y = MatMul (q, b)",
        {"a": (4, 8), "w": (1, 8, 8), "u": (1, 8, 2), "b": (2, 2)},
        {"a", "w"},
        {"one": [1]},
    ),
    "LSTM with everything": Case(
        ROWS,
        "h = MatMul (x, a) "
        'r, s, t = LSTM <hidden_size = 2, direction = "bidirectional"> (h, w, u, bias, , s0, c0) '
        "q = Transpose <perm = [0, 2, 1, 3]> (r) f = Reshape (q, flat) m = MatMul (f, c) z = Relu (m) "
        "y = MatMul (z, b)",
        {
            "a": (4, 8),
            "w": (2, 8, 8),
            "u": (2, 8, 2),
            "bias": (2, 16),
            "s0": (2, 5, 2),
            "c0": (2, 5, 2),
            "c": (4, 6),
            "b": (6, 2),
        },
        {"a", "w", "c"},
        {"flat": [0, 0, 4]},
    ),
    "GRU": Case(
        ROWS,
        "h = MatMul (x, a) r, s = GRU <hidden_size = 2> (h, w, u) q = Squeeze (s, zero) m = MatMul (q, c) "
        "z = Relu (m) y = MatMul (z, b)",
        {"a": (4, 8), "w": (1, 6, 8), "u": (1, 6, 2), "c": (2, 6), "b": (6, 2)},
        {"a", "w", "c"},
        {"zero": [0]},
    ),
    "RNN whose last state is an output": Case(
        "float[n,5,3] x",
        "h = MatMul (x, a) r, y = RNN <hidden_size = 2> (h, w, u)",
        {"a": (3, 8), "w": (1, 2, 8), "u": (1, 2, 2)},
        {"a"},
        declined={"w": "an output of the graph"},
    ),
    "RNN with recurrent weights that are computed": Case(
        "float[n,2,2] x",
        "h = MatMul (x, a) u = Softmax (s) r, t = RNN <hidden_size = 2> (h, w, u) q = Squeeze (r, one) "
        "y = MatMul (q, b)",
        {"a": (2, 8), "w": (1, 2, 8), "s": (1, 2, 2), "b": (2, 2)},
        {"a"},
        {"one": [1]},
        declined={"w": "it normalises over this axis by a sum, which copies would enlarge"},
    ),
    "what follows NonMaxSuppression": Case(
        "float[1,3,4] x",
        "q = MatMul (x, p) t = Transpose <perm = [0, 2, 1]> (x) r = Exp (t) "
        "i = NonMaxSuppression (q, r, most) j = Cast <to = 1> (i) "
        "h = MatMul (j, a) z = Relu (h) m = MatMul (z, b) y = ReduceMax <axes = [0]> (m)",
        {"p": (4, 4), "a": (3, 8), "b": (8, 2)},
        {"a"},
        {"most": [2]},
        opset=17,
    ),
    "unknown operator": rows(
        "q = NonZero (h) f = Cast <to = 1> (q) s = ReduceSum (f) g = Add (h, s) z = Relu (g)",
        {"b": (8, 2)},
        (),
        declined=reason("growpipe has no rule for this operator"),
    ),
}


def build(case: Case) -> ir.Model:
    header = f'<ir_version: 11, opset_import: ["" : {case.opset}]>'
    text = f"{header} test ({case.inputs}) => (float y) {{ {case.body} }}"
    proto = onnx.parser.parse_model(text)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    rng = np.random.default_rng(0)
    for name, shape in case.weights.items():
        values = rng.normal(size=shape).astype(np.float32)
        if name == "scales":
            values = np.array([1, 1, 2, 2], np.float32)
        if name in ("positive", "s", "one", "high"):
            values = np.abs(values) + np.float32(0.5)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    for name, numbers in case.integers.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
    return ir.from_proto(proto)


def samples(case: Case, batch: int) -> dict[str, np.ndarray]:
    declared = onnx.parser.parse_graph(f"g ({case.inputs}) => () {{ }}").input[0].type.tensor_type
    shape = [size.dim_value or batch for size in declared.shape.dim]
    rng = np.random.default_rng(batch)
    if declared.elem_type == onnx.TensorProto.INT64:
        return {"x": rng.integers(0, 10, shape)}
    return {"x": rng.normal(size=shape).astype(np.float32)}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    case = CASES[name]
    model = build(case)
    groups = find_channel_groups(model).groups
    assert {group.name for group in groups if group.splittable} == set(case.splits)
    assert {group.name for group in groups if group.whole_factor is not None} == set(case.evenly)
    declined = {group.name: group.barrier.reason for group in groups if group.barrier is not None}
    for group, wanted in case.declined.items():
        assert declined[group] == wanted
    wider = grow_graph(model, signed_plan(model, growth=0.5))
    assert (sizes(wider) > sizes(model)) == bool(case.splits or case.evenly)
    assert check_widths(wider) == []
    batch = 1 if name in ("Resize to lengths", "GridSample") else 2
    assert_same_function(model, wider, [samples(case, batch)])


def sizes(model: ir.Model) -> int:
    return sum(value.const_value.size for value in model.graph.initializers.values())
