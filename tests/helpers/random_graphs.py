"""Random graphs out of the operators that growth supports, built from a list of small integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Step = tuple[int, int, int, int]
BATCH, CHANNELS, LENGTH = 2, 4, 6


class Builder:
    """Grows a graph step by step on a pool of tensors [batch, channels, length]."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.pool: list[tuple[str, int, int]] = [("x", CHANNELS, LENGTH)]
        self.shared: dict[tuple, str] = {}

    def weight(self, *shape: int, scale: float | None = None) -> str:
        fan_in = int(np.prod(shape[1:])) or 1
        values = self.rng.normal(size=shape) * (scale if scale is not None else fan_in**-0.5)
        return self.constant(values.astype(np.float32))

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.initializers)}"
        if self.rng.random() < 0.2:  # in a node instead
            value = numpy_helper.from_array(array)
            return self.node("Constant", value=value)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def zeros(self, size: int) -> str:
        """One tensor of zeros for everybody who needs that many."""
        if ("zeros", size) not in self.shared:
            name = f"zeros{size}"
            self.initializers.append(numpy_helper.from_array(np.zeros(size, np.float32), name))
            self.shared["zeros", size] = name
        return self.shared["zeros", size]

    def node(self, operator: str, *inputs: str, outputs: int = 1, **attributes) -> str | list[str]:
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def add(self, name: str, channels: int, length: int) -> None:
        self.pool.append((name, channels, length))

    def model(self) -> onnx.ModelProto:
        """Every tensor of the pool is mixed into two channels; the outputs are their means over space."""
        heads = []
        for name, channels, _ in self.pool[-4:]:
            mixed = self.node("Conv", name, self.weight(2, channels, 1))
            heads.append(self.node("GlobalAveragePool", mixed))
        total = heads[0]
        for head in heads[1:]:
            total = self.node("Add", total, head)
        self.nodes.append(helper.make_node("Tanh", [total], ["y"]))
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", CHANNELS, LENGTH])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            self.initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


Operation = Callable[[Builder, str, int, int, int, int], None]
OPERATIONS: list[Operation] = []


def operation(build: Operation) -> Operation:
    OPERATIONS.append(build)
    return build


def build_graph(steps: list[Step], seed: int) -> onnx.ModelProto:
    builder = Builder(seed)
    # Begin with channels of the network's own.
    plain_conv(builder, "x", CHANNELS, LENGTH, 2, 0)
    plain_conv(builder, "x", CHANNELS, LENGTH, 4, 0)
    del builder.pool[0]
    for operator, source, a, b in steps:
        name, channels, length = builder.pool[-1 - max(0, source % 8 - 4) % len(builder.pool)]
        OPERATIONS[operator % len(OPERATIONS)](builder, name, channels, length, a, b)
    return builder.model()


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


@operation
def conv(g, x, c, n, a, b):
    groups = divisors(c)[b % len(divisors(c))]
    out = groups * (1 + a % 4)
    inputs = [x, g.weight(out, c // groups, 3)]
    match a % 3:
        case 0:
            inputs.append(g.weight(out, scale=0.5))
        case 1:
            inputs.append(g.zeros(out))
    g.add(g.node("Tanh", g.node("Conv", *inputs, group=groups, pads=[1, 1])), out, n)


@operation
def plain_conv(g, x, c, n, a, b):
    out = 2 + a % 5
    g.add(g.node("Relu", g.node("Conv", x, g.weight(out, c, 1), g.weight(out))), out, n)


@operation
def depthwise(g, x, c, n, a, b):
    g.add(g.node("Conv", x, g.weight(c, 1, 3), g.weight(c), group=c, pads=[1, 1]), c, n)


@operation
def transposed_conv(g, x, c, n, a, b):
    groups = divisors(c)[b % len(divisors(c))]
    out = 1 + a % 3
    y = g.node("ConvTranspose", x, g.weight(c, out, 1), g.weight(out * groups), group=groups)
    g.add(g.node("Tanh", y), out * groups, n)


@operation
def batch_norm(g, x, c, n, a, b):
    variance = g.constant(g.rng.uniform(0.5, 2, c).astype(np.float32))
    g.add(g.node("BatchNormalization", x, g.weight(c), g.weight(c), g.zeros(c), variance), c, n)


@operation
def unary(g, x, c, n, a, b):
    operators = ["Sigmoid", "Softplus", "Elu", "HardSigmoid", "Softsign", "Erf", "LeakyRelu", "Identity"]
    g.add(g.node(operators[a % len(operators)], x), c, n)


@operation
def binary(g, x, c, n, a, b):
    others = [name for name, channels, length in g.pool if (channels, length) == (c, n)]
    operator = ["Add", "Mul", "Sub", "Max", "Min"][a % 5]
    g.add(g.node("Tanh", g.node(operator, x, others[b % len(others)])), c, n)


@operation
def per_channel_constant(g, x, c, n, a, b):
    constant = [g.weight(c, 1), g.weight(1, c, 1), g.weight(1), g.weight(c, n), g.weight(n)][a % 5]
    operands = (x, constant) if b % 2 else (constant, x)
    g.add(g.node(["Add", "Mul"][b % 2], *operands), c, n)


@operation
def prelu(g, x, c, n, a, b):
    g.add(g.node("PRelu", x, g.weight(c, 1) if a % 2 else g.weight(1)), c, n)


@operation
def concat(g, x, c, n, a, b):
    others = [(name, channels) for name, channels, length in g.pool if length == n and channels + c <= 12]
    if others:
        other, channels = others[a % len(others)]
        g.add(g.node("Concat", x, other, axis=1), c + channels, n)


@operation
def concat_length(g, x, c, n, a, b):
    if n <= 8:
        g.add(g.node("Concat", x, x, axis=-1), c, 2 * n)


@operation
def split(g, x, c, n, a, b):
    if c < 2:
        return
    first = 1 + a % (c - 1)
    if b % 3 == 0 and c % 2 == 0:
        first = c // 2
        left, right = g.node("Split", x, outputs=2, axis=1, num_outputs=2)
    else:
        left, right = g.node("Split", x, g.ints(first, c - first), outputs=2, axis=1)
    g.add(left, first, n)
    g.add(g.node("Sigmoid", right), c - first, n)


@operation
def sequence_split(g, x, c, n, a, b):
    if c < 2:
        return
    half = (c + 1) // 2
    parts = g.node("SplitToSequence", x, g.constant(np.array(half, np.int64)), axis=1)
    position = np.array(a % 2, np.int64)
    g.add(g.node("SequenceAt", parts, g.constant(position)), c - half if a % 2 else half, n)


@operation
def slice_channels(g, x, c, n, a, b):
    start, end = sorted((a % c, c - b % c))
    if start == end:
        return
    far = 2**40
    variants = [(start, end), (start - c, end), (start, end - c if end < c else far), (start - c, far)]
    low, high = variants[(a + b) % 4]
    kept = end - start if (a + b) % 4 < 3 else c - start
    g.add(g.node("Slice", x, g.ints(low), g.ints(high), g.ints(1)), kept, n)


@operation
def slice_with_step(g, x, c, n, a, b):
    step = [2, -1][a % 2]
    bounds = (-1, -(2**40)) if step < 0 else (0, 2**40)
    y = g.node("Slice", x, g.ints(bounds[0]), g.ints(bounds[1]), g.ints(1), g.ints(step))
    g.add(y, len(range(c)[::step]), n)


@operation
def pad(g, x, c, n, a, b):
    before, after = a % 3, b % 3
    if c + before + after <= 12:
        y = g.node("Pad", x, g.ints(0, before, 0, 0, after, 0), g.constant(np.float32(0.5)))
        g.add(y, c + before + after, n)


@operation
def matmul(g, x, c, n, a, b):
    out = 1 + a % 6
    weight = g.weight(c, out) if b % 2 else g.node("Transpose", g.weight(out, c), perm=[1, 0])
    y = g.node("MatMul", g.node("Transpose", x, perm=[0, 2, 1]), weight)
    y = g.node("Add", y, g.weight(out))
    g.add(g.node("Tanh", g.node("Transpose", y, perm=[0, 2, 1])), out, n)


@operation
def left_matmul(g, x, c, n, a, b):
    out = 1 + a % 6
    g.add(g.node("Tanh", g.node("MatMul", g.weight(out, c), x)), out, n)


@operation
def einsum(g, x, c, n, a, b):
    out = 1 + a % 6
    g.add(g.node("Tanh", g.node("Einsum", x, g.weight(out, c), equation="bcn,oc->bon")), out, n)


@operation
def flatten_gemm(g, x, c, n, a, b):
    out = 1 + a % 6
    flat = g.node("Flatten", x) if b % 2 else g.node("Reshape", x, g.ints(-1, c * n))
    weight = g.weight(out, c * n) if b % 3 else g.weight(c * n, out)
    y = g.node("Gemm", flat, weight, g.weight(out), transB=int(b % 3 > 0))
    g.add(g.node("Tanh", g.node("Unsqueeze", y, g.ints(2))), out, 1)


@operation
def shuffle(g, x, c, n, a, b):
    groups = divisors(c)[a % len(divisors(c))]
    first = [(0, groups, c // groups, n), (-1, groups, c // groups, n), (0, groups, -1, n)][b % 3]
    y = g.node("Transpose", g.node("Reshape", x, g.ints(*first)), perm=[0, 2, 1, 3])
    back = [(0, c, n), (-1, c, n), (0, -1, n)][b % 3]
    g.add(g.node("Reshape", y, g.ints(*back)), c, n)


@operation
def computed_reshape(g, x, c, n, a, b):
    """To [batch, channels x length] and back, by lengths that are read off the tensor."""
    shape = g.node("Shape", x)
    parts = [g.node("Gather", shape, g.ints(axis)) for axis in range(3)]
    flat = [parts[0], g.node("Mul", parts[1], parts[2])] if a % 2 else [parts[0], g.ints(c * n)]
    y = g.node("Reshape", x, g.node("Concat", *flat, axis=0))
    back = [parts[0], g.ints(c), parts[2]] if b % 2 else [parts[0], parts[1], g.ints(n)]
    g.add(g.node("Reshape", y, g.node("Concat", *back, axis=0)), c, n)


@operation
def merge_batch(g, x, c, n, a, b):
    """Channels and batch on one axis: each channel is a sample of its own."""
    y = g.node("Reshape", x, g.ints(-1, 1, n))
    y = g.node("Conv", y, g.weight(1, 1, 3), pads=[1, 1])
    g.add(g.node("Reshape", y, g.ints(-1, c, n)), c, n)


@operation
def squeeze_excite(g, x, c, n, a, b):
    pooled = g.node("ReduceMean", x, g.ints(2), keepdims=1) if b % 2 else g.node("GlobalMaxPool", x)
    hidden = g.node("Relu", g.node("Conv", pooled, g.weight(1 + a % 4, c, 1)))
    gate = g.node("Sigmoid", g.node("Conv", hidden, g.weight(c, 1 + a % 4, 1), g.zeros(c)))
    g.add(g.node("Mul", x, gate), c, n)


@operation
def expand(g, x, c, n, a, b):
    pooled = g.node("GlobalAveragePool", x)
    target = g.ints(1, c, 5) if a % 2 else g.ints(1, 1, 5)
    g.add(g.node("Expand", pooled, target), c, 5)


@operation
def tile(g, x, c, n, a, b):
    if c <= 6:
        g.add(g.node("Tile", x, g.ints(1, 2, 1)), 2 * c, n)


@operation
def normalise(g, x, c, n, a, b):
    if a % 3 == 0:
        y = g.node("Softmax", x, axis=1 + b % 2)
    elif a % 3 == 1:
        y = g.node("LayerNormalization", g.node("Tanh", x), g.weight(n), axis=-1)
    else:
        y = g.node("InstanceNormalization", g.node("Tanh", x), g.weight(c), g.zeros(c))
    g.add(g.node("Tanh", y), c, n)


@operation
def reduce_channels(g, x, c, n, a, b):
    g.add(g.node(["ReduceSum", "ReduceMax", "ReduceMean"][a % 3], x, g.ints(1), keepdims=1), 1, n)


@operation
def normalise_channels(g, x, c, n, a, b):
    """By moments over the channels, with or without a residual path around it."""
    match a % 4:
        case 0:
            y = g.node("Transpose", g.node("Tanh", x), perm=[0, 2, 1])
            y = g.node("LayerNormalization", y, g.weight(c), g.weight(c), epsilon=0.1)
            y = g.node("Transpose", y, perm=[0, 2, 1])
        case 1:
            y = g.node("LayerNormalization", g.node("Tanh", x), g.weight(c, n), axis=1, epsilon=0.1)
        case 2:
            square = g.node("ReduceMean", g.node("Mul", x, x), g.ints(1), keepdims=1)
            root = g.node("Sqrt", g.node("Add", square, g.constant(np.float32(0.1))))
            y = g.node("Mul", g.node("Div", x, root), g.weight(c, 1))
        case _:
            groups = divisors(c)[b % len(divisors(c))]
            y = g.node("Reshape", x, g.ints(0, groups, -1))
            y = g.node("InstanceNormalization", y, g.weight(groups), g.zeros(groups), epsilon=0.1)
            y = g.node("Reshape", y, g.ints(0, c, n))
    y = g.node("Tanh", y)
    g.add(g.node("Add", x, y) if b % 2 else y, c, n)


@operation
def residual_block(g, x, c, n, a, b):
    """A stream that is normalised, mixed, and added to."""
    mean = g.node("ReduceMean", x, g.ints(1), keepdims=1)
    hidden = g.node("Relu", g.node("Conv", g.node("Sub", x, mean), g.weight(2 + a % 3, c, 1)))
    g.add(g.node("Add", x, g.node("Conv", hidden, g.weight(c, 2 + a % 3, 1))), c, n)


@operation
def attend(g, x, c, n, a, b):
    """Activations contracted with activations, over the length or over the channels."""
    weights = g.node("Softmax", g.node("MatMul", g.node("Transpose", x, perm=[0, 2, 1]), x), axis=-1)
    g.add(g.node("MatMul", x, weights), c, n)


@operation
def pick_channels(g, x, c, n, a, b):
    g.add(g.node("Gather", x, g.ints(a % c, b % c, 0), axis=1), 3, n)


@operation
def cumulate(g, x, c, n, a, b):
    g.add(g.node("Tanh", g.node("CumSum", x, g.constant(np.array(1 + a % 2, np.int64)))), c, n)


@operation
def largest(g, x, c, n, a, b):
    values, _ = g.node("TopK", x, g.ints(1), outputs=2, axis=1 + a % 2)
    g.add(values, *((1, n) if a % 2 == 0 else (c, 1)))


@operation
def where(g, x, c, n, a, b):
    positive = g.node("Greater", x, g.constant(np.float32(0)))
    g.add(g.node("Where", positive, x, g.node("Mul", x, g.constant(np.float32(0.3)))), c, n)


@operation
def resize(g, x, c, n, a, b):
    if n <= 8:
        scales = g.constant(np.array([1, 1, 2], np.float32))
        g.add(g.node("Resize", x, "", scales, mode="nearest"), c, 2 * n)


@operation
def pool(g, x, c, n, a, b):
    if n >= 2:
        g.add(g.node("MaxPool", x, kernel_shape=[2], strides=[2]), c, n // 2)


@operation
def same_weight_twice(g, x, c, n, a, b):
    weight = g.weight(c, c, 1)
    y = g.node("Tanh", g.node("Conv", x, weight))
    g.add(g.node("Tanh", g.node("Conv", y, weight)), c, n)


@operation
def filled(g, x, c, n, a, b):
    """Adds a tensor of one value, as long as another one is wide."""
    length = g.node("Shape", x, start=1, end=2)
    if a % 2:
        value = numpy_helper.from_array(np.array([0.25], np.float32))
        fill = g.node("ConstantOfShape", length, value=value)
    else:
        fill = g.node("Expand", g.constant(np.float32(0.25)), length)
    g.add(g.node("Add", x, g.node("Unsqueeze", fill, g.ints(1))), c, n)


@operation
def divided_by_width(g, x, c, n, a, b):
    """The number of channels used as a number: it must not change."""
    width = g.node("Cast", g.node("Gather", g.node("Shape", x), g.ints(1)), to=TensorProto.FLOAT)
    g.add(g.node("Div", x, width), c, n)


@operation
def heads(g, x, c, n, a, b):
    """Channels divided into heads that attend over the length."""
    count = divisors(c)[a % len(divisors(c))]
    split = g.node("Reshape", x, g.ints(0, count, c // count, n))
    value = g.node("Reshape", g.node("Conv", x, g.weight(c, c, 1)), g.ints(-1, count, c // count, n))
    turned = g.node("Transpose", split, perm=[0, 1, 3, 2])
    scores = g.node("Softmax", g.node("MatMul", turned, split), axis=-1)
    mixed = g.node("MatMul", value, scores)
    g.add(g.node("Reshape", mixed, g.ints(0, c, n)), c, n)


@operation
def recur(g, x, c, n, a, b):
    """A recurrent layer over the length; its weights as one tensor, or joined from gates and directions."""
    operator, gates = [("LSTM", 4), ("GRU", 3), ("RNN", 1)][a % 3]
    hidden, directions = 1 + b % 3, 1 + a // 3 % 2

    def weight(columns: int) -> str:
        if b % 2:
            return g.weight(directions, gates * hidden, columns, scale=0.5)
        sides = []
        for _ in range(directions):
            rows = [g.weight(hidden, columns, scale=0.5) for _ in range(gates)]
            sides.append(g.node("Unsqueeze", g.node("Concat", *rows, axis=0), g.ints(0)))
        return g.node("Concat", *sides, axis=0) if directions > 1 else sides[0]

    inputs = [g.node("Transpose", x, perm=[2, 0, 1]), weight(c), weight(hidden)]
    if a % 2:
        inputs.append(g.weight(directions, 2 * gates * hidden))
    direction = "bidirectional" if directions > 1 else ["forward", "reverse"][b // 3 % 2]
    states = g.node(operator, *inputs, hidden_size=hidden, direction=direction)
    turned = g.node("Transpose", states, perm=[2, 1, 3, 0])
    g.add(g.node("Reshape", turned, g.ints(0, directions * hidden, n)), directions * hidden, n)


@operation
def cut_weight(g, x, c, n, a, b):
    """One weight that two convolutions have a part of each."""
    first, second = 1 + a % 3, 1 + b % 3
    weight, length = g.weight(first + second, c, 1), first + second
    if a % 2:
        parts = g.node("Split", weight, g.ints(first, second), outputs=2, axis=0)
    else:
        bounds = ((0, first), (first, length))
        parts = [g.node("Slice", weight, g.ints(low), g.ints(high), g.ints(0)) for low, high in bounds]
    g.add(g.node("Tanh", g.node("Conv", x, parts[0])), first, n)
    g.add(g.node("Relu", g.node("Conv", x, parts[1])), second, n)
