"""Models that are fine, of many kinds. Every check must let them pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

GOOD: dict[str, Callable[[], onnx.ModelProto]] = {}


def good(function: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
    GOOD[function.__name__] = function
    return function


def build(
    signature: str, body: str, weights: Mapping[str, np.ndarray] | None = None, opset: str = '"": 17'
) -> onnx.ModelProto:
    """A model from ONNX's text form, with weights given as arrays."""
    text = f"<ir_version: 8, opset_import: [{opset}]>\nmodel {signature}\n{{\n{body}\n}}"
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in (weights or {}).items())
    return model


def save(model: onnx.ModelProto, folder: Path, name: str = "model.onnx", external: bool = False) -> Path:
    path = folder / name
    onnx.save(
        model, path, save_as_external_data=external, location=f"{name}.data", size_threshold=0
    ) if external else onnx.save(model, path)
    return path


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def cnn_weights(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "features.0.weight": normal(6, 3, 3, 3, seed=seed + 1, scale=0.3),
        "features.1.weight": random.uniform(0.5, 1.5, 6).astype(np.float32),
        "features.1.bias": normal(6, seed=seed + 2, scale=0.2),
        "features.1.running_mean": normal(6, seed=seed + 3, scale=0.2),
        "features.1.running_var": random.uniform(0.02, 1.5, 6).astype(np.float32),
        "features.3.weight": normal(8, 6, 3, 3, seed=seed + 4, scale=0.2),
        "features.3.bias": normal(8, seed=seed + 5, scale=0.2),
        "head.weight": normal(5, 8, seed=seed + 6, scale=0.5),
        "head.bias": normal(5, seed=seed + 7, scale=0.2),
    }


CNN_BODY = """
    c0 = Conv <pads = [1,1,1,1]> (image, "features.0.weight")
    b0 = BatchNormalization <epsilon = 0.00001> (c0, "features.1.weight", "features.1.bias",
        "features.1.running_mean", "features.1.running_var")
    r0 = Relu (b0)
    c1 = Conv <pads = [1,1,1,1], strides = [2,2]> (r0, "features.3.weight", "features.3.bias")
    r1 = Relu (c1)
    pooled = GlobalAveragePool (r1)
    flat = Flatten (pooled)
    logits = Gemm <transB = 1> (flat, "head.weight", "head.bias")
"""
CNN_SIGNATURE = "(float[N, 3, 12, 12] image) => (float[N, 5] logits)"


def cnn(seed: int = 0, body: str = CNN_BODY, signature: str = CNN_SIGNATURE, **changed: np.ndarray):
    """A small CNN; ``changed`` replaces weights, with ``__`` for the dots of their names."""
    weights = cnn_weights(seed) | {name.replace("__", "."): array for name, array in changed.items()}
    model = build(signature, _plain_names(body), {_plain(n): a for n, a in weights.items()})
    for position, node in enumerate(model.graph.node):
        node.name = f"node_{position}"
        scope = {"c0": "features.0", "b0": "features.1", "c1": "features.3", "logits": "head"}.get(
            node.output[0]
        )
        if scope:
            entry = node.metadata_props.add()
            entry.key, entry.value = "pkg.torch.onnx.name_scopes", repr(["", scope, node.op_type.lower()])
    return model


def _plain(name: str) -> str:
    return name.replace(".", "_")


def _plain_names(body: str) -> str:
    # The text form has no names with dots.
    parts = body.split('"')
    return "".join(_plain(p) if i % 2 else p for i, p in enumerate(parts))


@good
def convolutional() -> onnx.ModelProto:
    return cnn()


@good
def fixed_batch() -> onnx.ModelProto:
    return cnn(signature="(float[1, 3, 12, 12] image) => (float[1, 5] logits)")


@good
def residual_depthwise() -> onnx.ModelProto:
    return build(
        "(float[N, 4, H, W] x) => (float[N, 4, H, W] y)",
        """
        d = Conv <group = 4, pads = [1,1,1,1]> (x, wd)
        h = HardSwish (d)
        p = Conv (h, wp)
        y = Add (x, p)
        """,
        {"wd": normal(4, 1, 3, 3), "wp": normal(4, 4, 1, 1, seed=1, scale=0.3)},
    )


@good
def deep_pooling() -> onnx.ModelProto:
    """Too deep for the smallest image that is tried."""
    steps = "\n".join(f"p{i + 1} = MaxPool <kernel_shape = [2,2], strides = [2,2]> (p{i})" for i in range(4))
    return build(
        "(float[N, 2, H, W] p0) => (float[N, 2, A, B] y)", f"{steps}\n y = MaxPool<kernel_shape = [1,1]>(p4)"
    )


def transformer_weights(width: int = 16, vocabulary: int = 20, positions: int = 32) -> dict[str, np.ndarray]:
    shapes = {"wq": (width, width), "wk": (width, width), "wv": (width, width), "wo": (width, width)}
    shapes |= {
        "w1": (width, 32),
        "w2": (32, width),
        "table": (vocabulary, width),
        "places": (positions, width),
    }
    weights = {n: normal(*s, seed=i, scale=0.3) for i, (n, s) in enumerate(shapes.items())}
    weights["gamma"] = normal(width, seed=30) + 1
    weights["beta"] = normal(width, seed=31)
    return weights


TRANSFORMER = """
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    shape = Shape (tokens)
    length = Gather (shape, one)
    range = Range (zero, length, one)
    place = Gather (places, range)
    embedded = Gather (table, tokens)
    x = Add (embedded, place)
    n = LayerNormalization (x, gamma, beta)
    q = MatMul (n, wq)
    k = MatMul (n, wk)
    v = MatMul (n, wv)
    kt = Transpose <perm = [0, 2, 1]> (k)
    scores = MatMul (q, kt)
    quarter = Constant <value_float = 0.25> ()
    scaled = Mul (scores, quarter)
    axis1 = Constant <value_ints = [1]> ()
    keep = Unsqueeze (mask, axis1)
    kept = Cast <to = 9> (keep)
    low = Constant <value_float = -1e9> ()
    masked = Where (kept, scaled, low)
    attention = Softmax (masked)
    mixed = MatMul (attention, v)
    o = MatMul (mixed, wo)
    x1 = Add (x, o)
    h = MatMul (x1, w1)
    root = Constant <value_float = 1.4142135> ()
    h1 = Div (h, root)
    h2 = Erf (h1)
    unit = Constant <value_float = 1.0> ()
    h3 = Add (h2, unit)
    h4 = Mul (h, h3)
    half = Constant <value_float = 0.5> ()
    h5 = Mul (h4, half)
    f = MatMul (h5, w2)
    hidden = Add (x1, f)
"""


@good
def transformer_two_inputs() -> onnx.ModelProto:
    return build(
        "(int64[batch, seq] tokens, int64[batch, seq] mask) => (float[batch, seq, 16] hidden)",
        TRANSFORMER,
        transformer_weights(),
    )


@good
def causal_mask_of_infinities() -> onnx.ModelProto:
    mask = np.triu(np.full((6, 6), -np.inf, np.float32), 1)
    return build(
        "(float[N, 6, 4] x) => (float[N, 6, 4] y)",
        """
        t = Transpose <perm = [0, 2, 1]> (x)
        s = MatMul (x, t)
        m = Add (s, mask)
        a = Softmax (m)
        y = MatMul (a, x)
        """,
        {"mask": mask},
    )


@good
def lstm() -> onnx.ModelProto:
    return build(
        "(float[T, N, 4] x) => (float[T, 1, N, 5] y, float[1, N, 5] last)",
        "y, last = LSTM <hidden_size = 5> (x, w, r, b)",
        {
            "w": normal(1, 20, 4, scale=0.4),
            "r": normal(1, 20, 5, seed=1, scale=0.4),
            "b": normal(1, 40, seed=2),
        },
    )


@good
def gru() -> onnx.ModelProto:
    return build(
        "(float[T, N, 4] x) => (float[T, 1, N, 3] y)",
        "y = GRU <hidden_size = 3> (x, w, r)",
        {"w": normal(1, 9, 4, scale=0.4), "r": normal(1, 9, 3, seed=1, scale=0.4)},
    )


@good
def quantised_qdq() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    return build(
        "(float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y)",
        """
        xq = QuantizeLinear (x, sx, zx)
        xd = DequantizeLinear (xq, sx, zx)
        wd = DequantizeLinear (w, sw, zw)
        c = Conv (xd, wd)
        cq = QuantizeLinear (c, sc, zx)
        y = DequantizeLinear (cq, sc, zx)
        """,
        {
            "sx": np.float32(0.03),
            "zx": np.uint8(128),
            "w": random.integers(-127, 127, (4, 3, 3, 3)).astype(np.int8),
            "sw": np.float32(0.004),
            "zw": np.int8(0),
            "sc": np.float32(0.08),
        },
    )


@good
def quantised_dynamically() -> onnx.ModelProto:
    random = np.random.default_rng(1)
    return build(
        "(float[N, 6] x) => (float[N, 4] y)",
        """
        q, s, z = DynamicQuantizeLinear (x)
        i = MatMulInteger (q, w, z)
        f = Cast <to = 1> (i)
        t = Mul (s, sw)
        y = Mul (f, t)
        """,
        {"w": random.integers(-127, 127, (6, 4)).astype(np.int8), "sw": np.float32(0.01)},
    )


@good
def half_precision() -> onnx.ModelProto:
    return build(
        "(float16[N, 6] x) => (float16[N, 3] y)",
        "h = MatMul (x, w)\n r = Relu (h)\n y = MatMul (r, v)",
        {"w": normal(6, 8, scale=0.4).astype(np.float16), "v": normal(8, 3, scale=0.4).astype(np.float16)},
    )


@good
def double_precision() -> onnx.ModelProto:
    return build(
        "(double[N, 6] x) => (double[N, 3] y)",
        "h = MatMul (x, w)\n y = Tanh (h)",
        {"w": normal(6, 3).astype(np.float64)},
    )


@good
def two_inputs_two_outputs() -> onnx.ModelProto:
    return build(
        "(float[N, 4] user, float[N, 6] item) => (float[N, 3] a, float[N, 3] b)",
        "a = MatMul (user, wa)\n i = MatMul (item, wb)\n b = Sigmoid (i)",
        {"wa": normal(4, 3), "wb": normal(6, 3, seed=1)},
    )


@good
def control_flow() -> onnx.ModelProto:
    return onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["": 17]>
    model (float[N, 3] x) => (float[N, 3] y)
    {
        n = Constant <value = int64 {3}> ()
        c = Constant <value = bool {1}> ()
        y = Loop (n, c, x) <body = b (int64 i, bool go, float[N, 3] a) => (bool go2, float[N, 3] a2)
        {
            go2 = Identity (go)
            a2 = Tanh (a)
        }>
    }""")


@good
def local_function() -> onnx.ModelProto:
    return onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["": 17, "mine": 1]>
    model (float[N, 3] x) => (float[N, 3] y) { y = mine.twice (x) }
    <domain: "mine", opset_import: ["": 17]>
    twice (a) => (b) { b = Add (a, a) }
    """)


@good
def contributed_operator() -> onnx.ModelProto:
    return build(
        "(float[N, 3] x) => (float[N, 3] y)",
        "y = com.microsoft.Gelu (x)",
        opset='"": 17, "com.microsoft": 1',
    )


@good
def classical_classifier() -> onnx.ModelProto:
    node = helper.make_node(
        "LinearClassifier",
        ["x"],
        ["label", "scores"],
        domain="ai.onnx.ml",
        coefficients=[0.5, -0.2, 0.1, 0.3, -0.4, 0.2],
        intercepts=[0.1, 0.0, -0.1],
        classlabels_ints=[0, 1, 2],
        post_transform="SOFTMAX",
    )
    graph = helper.make_graph(
        [node],
        "classical",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3]),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@good
def bytes_in_classes_out() -> onnx.ModelProto:
    return build(
        "(uint8[N, 4, 4, 3] pixels) => (int64[N] label)",
        """
        f = Cast <to = 1> (pixels)
        v = Flatten (f)
        s = MatMul (v, w)
        label = ArgMax <axis = 1, keepdims = 0> (s)
        """,
        {"w": normal(48, 5, scale=0.01)},
    )


@good
def inference_dropout() -> onnx.ModelProto:
    return build("(float[N, 4] x) => (float[N, 4] y)", "d = Dropout (x)\n y = Relu (d)")


@good
def batch_and_length_in_one() -> onnx.ModelProto:
    """What linear layers of transformers do: batch times length rows, and back."""
    body = """
    rows = Constant <value = int64[2] {-1, 8}> ()
    back = Constant <value = int64[3] {-1, 6, 8}> ()
    r = Reshape (x, rows)
    h = Gemm (r, w)
    y = Reshape (h, back)
    """
    return build("(float[N, 6, 8] x) => (float[N, 6, 8] y)", body, {"w": normal(8, 8)})


@good
def no_symbols() -> onnx.ModelProto:
    """Dimensions without a name, as some exporters leave them."""
    model = build("(float[?, 4] x) => (float[?, 2] y)", "y = MatMul (x, w)", {"w": normal(4, 2)})
    assert not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    return model
