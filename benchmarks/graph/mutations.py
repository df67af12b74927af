"""Seeded mutations of ONNX files: of their bytes, and of the graph within."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["mutate"]

Random = np.random.Generator
T = TypeVar("T")

INTEGERS = (0, 1, -1, 2, 3, 7, 64, 255, 2**31 - 1, 2**31, -(2**31), 2**40, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, math.inf, -math.inf, math.nan)
NAMES = ("", "x", "a" * 300, "ü", "a\nb", "\x1b[31m", "../x", "a/b", "0", "::error::x")
TYPES = (1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 14, 15, 16, 17, 19, 21, 22, 0, 99)
OPERATORS = (
    "Conv ConvTranspose Gemm MatMul Add Mul Sub Div Relu PRelu BatchNormalization LayerNormalization "
    "InstanceNormalization GroupNormalization Reshape Flatten Transpose Squeeze Unsqueeze Concat Split "
    "Slice Gather GatherElements GatherND ScatterND Pad Expand Tile Shape Size Range ConstantOfShape Cast "
    "Identity Dropout Softmax ReduceMean ReduceSum GlobalAveragePool AveragePool MaxPool Resize Upsample "
    "LSTM GRU RNN QuantizeLinear DequantizeLinear QLinearConv MatMulInteger ConvInteger "
    "DynamicQuantizeLinear Where Equal DepthToSpace SpaceToDepth Einsum TopK NonMaxSuppression OneHot "
    "Clip Sigmoid HardSigmoid Erf Pow Sqrt If Loop Scan SequenceConstruct SequenceAt Optional Constant "
    "Trilu CumSum LpNormalization MeanVarianceNormalization Attention RMSNormalization RotaryEmbedding "
    "Mod Unique NonZero Swish"
)

ATTRIBUTES = (
    "axis axes group epsilon alpha beta transA transB perm to keepdims auto_pad strides dilations "
    "kernel_shape pads mode ceil_mode allowzero training_mode spatial consumed_inputs broadcast direction "
    "hidden_size value value_int value_floats split num_outputs block_size equation"
)


def mutate(content: bytes, others: Sequence[bytes], random: Random) -> tuple[bytes, str]:
    """One mutated file, and the kinds of mutation that made it.

    Args:
        content: a well-formed ONNX file.
        others: files from which parts may come.
        random: what decides.
    """
    if random.random() < 0.25:
        kind = _choice(random, tuple(BYTES))
        return BYTES[kind](content, others, random), kind
    model = ModelProto()
    model.ParseFromString(content)
    kinds = []
    for _ in range(1 + min(int(random.geometric(0.5)), 6)):
        kind = _choice(random, tuple(GRAPHS))
        try:
            GRAPHS[kind](model, others, random)
        except (ValueError, TypeError, DecodeError, IndexError):
            continue  # there is nothing of this kind in the model, or a value has no place in its field
        kinds.append(kind)
    return model.SerializeToString(), "+".join(sorted(set(kinds))) or "none"


def _choice(random: Random, options: Sequence[T]) -> T:
    if not options:
        raise IndexError("nothing to choose from")
    return options[int(random.integers(len(options)))]


def _flip_bits(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    array = bytearray(content)
    for _ in range(int(random.integers(1, 9))):
        array[int(random.integers(len(array)))] ^= 1 << int(random.integers(8))
    return bytes(array)


def _truncate(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    return content[: int(random.integers(len(content)))]


def _splice(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    other = _choice(random, others)
    at, begin = int(random.integers(len(content))), int(random.integers(len(other)))
    length = int(random.integers(1, 400))
    return content[:at] + other[begin : begin + length] + content[at + length * int(random.integers(2)) :]


def _repeat(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    at, length = int(random.integers(len(content))), int(random.integers(1, 400))
    return content[:at] + content[at : at + length] * int(random.integers(2, 20)) + content[at + length :]


def _cut(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    at, length = int(random.integers(len(content))), int(random.integers(1, 200))
    return content[:at] + content[at + length :]


def _overwrite(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    at, length = int(random.integers(len(content))), int(random.integers(1, 16))
    fill = _choice(random, (b"\xff", b"\x00", b"\x7f", b"\x80"))
    return content[:at] + fill * length + content[at + length :]


BYTES: dict[str, Callable[[bytes, Sequence[bytes], Random], bytes]] = {
    "bits": _flip_bits,
    "truncated": _truncate,
    "splice": _splice,
    "repeat": _repeat,
    "cut": _cut,
    "overwrite": _overwrite,
}


def _graphs(model: ModelProto) -> list[GraphProto]:
    found = [model.graph]
    for graph in found:
        for node in graph.node:
            for attribute in node.attribute:
                found += [attribute.g] if attribute.HasField("g") else []
                found += attribute.graphs
    return found


def _graph(model: ModelProto, random: Random) -> GraphProto:
    return _choice(random, _graphs(model)) if random.random() < 0.3 else model.graph


def _node(model: ModelProto, random: Random) -> NodeProto:
    return _choice(random, _graph(model, random).node)


def _names(graph: GraphProto) -> list[str]:
    produced = [name for node in graph.node for name in node.output]
    return [*produced, *(i.name for i in graph.input), *(i.name for i in graph.initializer), ""]


def _attribute_value(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    attribute = _choice(random, _node(model, random).attribute)
    if attribute.type == AttributeProto.INT:
        attribute.i = _choice(random, INTEGERS)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = _choice(random, FLOATS)
    elif attribute.type == AttributeProto.INTS:
        values = list(attribute.ints)
        action = random.integers(4)
        if action == 0 and values:
            values[int(random.integers(len(values)))] = _choice(random, INTEGERS)
        elif action == 1:
            values.append(_choice(random, INTEGERS))
        elif action == 2:
            values = values[:-1]
        else:
            values = [int(v) for v in random.permutation(values)]
        attribute.ints[:] = values
    elif attribute.type == AttributeProto.STRING:
        attribute.s = _choice(random, (b"", b"SAME_UPPER", b"VALID", b"\xff\xfe", b"NOTSET", b"linear"))
    elif attribute.type == AttributeProto.TENSOR:
        _harm(attribute.t, random)
    else:
        raise ValueError("no value of this kind")


def _attribute_type(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    attribute = _choice(random, _node(model, random).attribute)
    action = random.integers(5)
    if action == 0:
        attribute.type = int(random.integers(0, 15))
    elif action == 1:
        attribute.ClearField("type")
    elif action == 2:
        attribute.i, attribute.type = _choice(random, INTEGERS), AttributeProto.INT
    elif action == 3:
        attribute.f, attribute.type = _choice(random, FLOATS), AttributeProto.FLOAT
    else:
        attribute.ref_attr_name = _choice(random, NAMES)


def _attribute_set(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    node = _node(model, random)
    action = random.integers(4)
    if action == 0:
        del node.attribute[int(random.integers(len(node.attribute)))]
    elif action == 1:
        node.attribute.append(_choice(random, node.attribute))
    elif action == 2:
        node.attribute.append(_choice(random, _node(model, random).attribute))
    else:
        name = _choice(random, ATTRIBUTES.split())
        values = (*INTEGERS[:8], 1.5, math.nan, "text", [0], [1, 2], [0, 0], [0.5], np.float32(2))
        value = values[int(random.integers(len(values)))]
        node.attribute.append(
            helper.make_attribute(name, float(value) if isinstance(value, np.float32) else value)
        )


def _operator(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    node = _node(model, random)
    node.op_type = _choice(random, OPERATORS.split())
    if random.random() < 0.1:
        node.domain = _choice(random, ("ai.onnx.ml", "com.microsoft", "custom", "ai.onnx"))


def _input(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    graph = _graph(model, random)
    node = _choice(random, graph.node)
    action = random.integers(4)
    if action == 0 and node.input:
        node.input[int(random.integers(len(node.input)))] = _choice(random, _names(graph))
    elif action == 1:
        node.input.append(_choice(random, _names(graph)))
    elif action == 2 and node.input:
        del node.input[int(random.integers(len(node.input)))]
    elif node.input:
        node.input[:] = [node.input[int(i)] for i in random.permutation(len(node.input))]


def _node_set(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    graph = _graph(model, random)
    position = int(random.integers(len(graph.node)))
    action = random.integers(4)
    if action == 0:
        _bypass(graph, position)
    elif action == 1:
        copy = NodeProto()
        copy.CopyFrom(graph.node[position])
        copy.output[:] = [f"{name}_copy" for name in copy.output]
        graph.node.insert(position + 1, copy)
    elif action == 2:
        nodes = [graph.node[int(i)] for i in random.permutation(len(graph.node))]
        copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    else:
        del graph.node[position]


def _bypass(graph: GraphProto, position: int) -> None:
    """Take a node out; what read its output reads its first input."""
    node = graph.node[position]
    source, result = node.input[0], node.output[0]
    for other in graph.node:
        other.input[:] = [source if name == result else name for name in other.input]
    del graph.node[position]


def _insert(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    """Put a node between a value and those that read it."""
    graph = _graph(model, random)
    position = int(random.integers(len(graph.node)))
    value = _choice(random, [name for name in graph.node[position].input if name])
    fresh = f"inserted_{int(random.integers(10**6))}"
    kind = _choice(
        random, ("Identity", "Relu", "Cast", "Transpose", "Flatten", "Dropout", "Sigmoid", "Neg", "Unsqueeze")
    )
    attributes: dict[str, object] = {}
    inputs = [value]
    if kind == "Cast":
        attributes["to"] = _choice(random, (1, 10, 11, 16, 7))
    elif kind == "Transpose" and random.random() < 0.5:
        attributes["perm"] = [int(i) for i in random.permutation(int(random.integers(1, 5)))]
    elif kind == "Flatten":
        attributes["axis"] = int(random.integers(-2, 4))
    elif kind == "Unsqueeze":
        graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), f"{fresh}_axes"))
        inputs.append(f"{fresh}_axes")
    name = f"{fresh}_node" if random.random() < 0.5 else ""
    graph.node.insert(position, helper.make_node(kind, inputs, [fresh], name, **attributes))
    for node in graph.node[position + 1 :] if random.random() < 0.5 else [graph.node[position + 1]]:
        node.input[:] = [fresh if name == value else name for name in node.input]


def _shape(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    graph = _graph(model, random)
    infos = _choice(random, (graph.input, graph.output, graph.value_info))
    info = _choice(random, infos)
    tensor = info.type.tensor_type
    action = random.integers(7)
    if action == 0:
        tensor.ClearField("shape")
    elif action == 1:
        tensor.shape.dim.add().dim_value = _choice(random, INTEGERS)
    elif action == 2 and tensor.shape.dim:
        del tensor.shape.dim[int(random.integers(len(tensor.shape.dim)))]
    elif action == 3:
        tensor.elem_type = _choice(random, TYPES)
    elif action == 4:
        _choice(random, tensor.shape.dim).dim_param = _choice(random, ("N", "", "batch", "a" * 50, "N+1"))
    elif action == 5:
        kind = TensorProto.FLOAT
        info.type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(kind, None)))
    else:
        _choice(random, tensor.shape.dim).dim_value = _choice(random, INTEGERS)


def _declare(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    """Declare the shape of a value that has no declaration, rightly or wrongly."""
    graph = _graph(model, random)
    name = _choice(random, [name for node in graph.node for name in node.output if name])
    shape = [
        int(random.integers(0, 9)) if random.random() < 0.7 else "N" for _ in range(random.integers(0, 5))
    ]
    graph.value_info.append(helper.make_tensor_value_info(name, _choice(random, (1, 7, 10)), shape))


def _array(tensor: TensorProto) -> np.ndarray:
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ValueError("its data lies elsewhere")
    return numpy_helper.to_array(tensor)


def _harm(tensor: TensorProto, random: Random) -> None:
    action = random.integers(7)
    if action == 0 and tensor.dims:
        tensor.dims[int(random.integers(len(tensor.dims)))] = _choice(random, INTEGERS)
    elif action == 1:
        tensor.data_type = _choice(random, TYPES)
    elif action == 2:
        tensor.raw_data = tensor.raw_data[:-1]
    elif action == 3:
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", _choice(random, (*NAMES, "/etc/passwd", "model.onnx", "x/", "."))
    elif action == 4:
        tensor.dims[:] = [int(i) for i in random.permutation(list(tensor.dims))]
    elif action == 5:
        array = _array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(array.reshape(-1, *array.shape[1:])[:-1].copy(), tensor.name))
    else:
        array = np.array(_array(tensor))
        where = int(random.integers(max(array.size, 1)))
        if array.dtype.kind == "f":
            array.flat[where] = _choice(random, FLOATS)
        elif array.dtype.kind in "iu":
            bounds = np.iinfo(array.dtype)
            array.flat[where] = min(max(_choice(random, INTEGERS), bounds.min), bounds.max)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _initializer(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    _harm(_choice(random, _graph(model, random).initializer), random)


def _precision(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    """Store a float tensor in another type, with or without the Cast that it takes."""
    graph = model.graph
    position = int(random.integers(len(graph.initializer)))
    tensor = graph.initializer[position]
    array = _array(tensor)
    if array.dtype != np.float32:
        raise ValueError("no float32 tensor")
    kind = _choice(random, (np.float16, np.float64))
    name = tensor.name
    stored = numpy_helper.from_array(array.astype(kind), f"{name}_stored")
    tensor.CopyFrom(stored)
    if random.random() < 0.8:
        graph.node.insert(0, helper.make_node("Cast", [stored.name], [name], to=TensorProto.FLOAT))
    else:
        tensor.name = name


def _as_constant(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    """An initializer as what a Constant, an Identity, a Transpose or a DequantizeLinear gives."""
    graph = _graph(model, random)
    position = int(random.integers(len(graph.initializer)))
    tensor = TensorProto.FromString(graph.initializer[position].SerializeToString())
    name, array = tensor.name, _array(tensor)
    kind = _choice(random, ("Constant", "Identity", "Transpose", "DequantizeLinear"))
    del graph.initializer[position]
    if kind == "Constant":
        graph.node.insert(0, helper.make_node("Constant", [], [name], value=tensor))
        return
    inputs = [f"{name}_stored"]
    if kind == "Transpose":
        array = np.ascontiguousarray(array.T)
    elif kind == "DequantizeLinear":
        scale = float(np.abs(array).max(initial=0.0)) / 127 or 1.0
        shape = [] if random.random() < 0.5 else [1]
        graph.initializer.append(helper.make_tensor(f"{name}_scale", TensorProto.FLOAT, shape, [scale]))
        inputs.append(f"{name}_scale")
        array = np.round(array / scale).astype(np.int8)
    graph.initializer.append(numpy_helper.from_array(array, f"{name}_stored"))
    graph.node.insert(0, helper.make_node(kind, inputs, [name]))


def _as_input(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    """Initializers that are inputs too, as IR version 3 has them; or inputs alone."""
    graph = model.graph
    chosen = _choice(random, graph.initializer)
    everything = random.random() < 0.5
    taken = {info.name for info in graph.input}
    for tensor in list(graph.initializer) if everything else [chosen]:
        if tensor.name not in taken:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            graph.input.append(info)
    if everything:
        model.ir_version = 3
    elif random.random() < 0.5:
        graph.initializer.remove(chosen)


def _opset(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    action = random.integers(5)
    if action == 0:
        _choice(random, model.opset_import).version = int(random.integers(1, 27))
    elif action == 1:
        _choice(random, model.opset_import).version = _choice(random, INTEGERS)
    elif action == 2:
        model.opset_import.append(_choice(random, model.opset_import))
    elif action == 3:
        entry = model.opset_import.add()
        entry.domain, entry.version = _choice(random, ("ai.onnx", "ai.onnx.ml", "custom", "")), 7
    else:
        model.ir_version = _choice(random, (0, 1, 2, 3, 4, 8, 13, 99, 2**40))


def _name(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    graph = _graph(model, random)
    old, new = _choice(random, _names(graph)), _choice(random, (*NAMES, *_names(graph)))
    if random.random() < 0.3:
        _choice(random, graph.node).name = new
        return
    for node in graph.node:  # the value is called something else, everywhere
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for info in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        info.name = new if info.name == old else info.name


def _output(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    """Outputs that are inputs, initializers, inner values or twice the same."""
    graph = _graph(model, random)
    name = _choice(random, _names(graph))
    info = onnx.ValueInfoProto()
    info.CopyFrom(_choice(random, (*graph.output, *graph.input)))
    info.name = name
    if random.random() < 0.5:
        graph.output.append(info)
    else:
        _choice(random, graph.output).CopyFrom(info)


def _branches(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    """The last nodes of the graph inside both branches of an If, or inside a Loop; they read outer values."""
    graph = model.graph
    at = int(random.integers(len(graph.node)))
    tail = [NodeProto.FromString(node.SerializeToString()) for node in graph.node[at:]]
    del graph.node[at:]
    outputs = [info.name for info in graph.output]
    bodies = []
    for branch in ("then_branch", "else_branch"):
        body = GraphProto(name=branch)
        for node in tail:
            copy = body.node.add()
            copy.CopyFrom(node)
        inner = {name for node in tail for name in node.output}
        for node in body.node:
            node.input[:] = [f"{branch}_{n}" if n in inner else n for n in node.input]
            node.output[:] = [f"{branch}_{n}" if n else n for n in node.output]
        for info in graph.output:
            copied = body.output.add()
            copied.CopyFrom(info)
            copied.name = f"{branch}_{info.name}" if info.name in inner else info.name
        bodies.append(body)
    condition = numpy_helper.from_array(np.array(random.random() < 0.5), "condition")
    graph.initializer.append(condition)
    if random.random() < 0.2:
        graph.input.append(helper.make_tensor_value_info("condition", TensorProto.BOOL, []))
        del graph.initializer[-1]
    node = helper.make_node("If", ["condition"], outputs, then_branch=bodies[0], else_branch=bodies[1])
    graph.node.append(node)


def _function(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    """One node as a function of the model's own."""
    node = _node(model, random)
    inputs = [f"i{k}" for k in range(len(node.input))]
    outputs = [f"o{k}" for k in range(len(node.output))]
    inner = NodeProto.FromString(node.SerializeToString())
    inner.input[:], inner.output[:] = inputs, outputs
    imports = [helper.make_opsetid(entry.domain, entry.version) for entry in model.opset_import]
    model.functions.append(helper.make_function("own", "wrapped", inputs, outputs, [inner], imports))
    node.op_type, node.domain = "wrapped", "own"
    del node.attribute[:]
    model.opset_import.append(helper.make_opsetid("own", 1))


def _graft(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    """Nodes of another model, whose inputs are values of this one."""
    other = ModelProto.FromString(_choice(random, others))
    graph = model.graph
    begin = int(random.integers(len(other.graph.node)))
    names = _names(graph)
    grafted: dict[str, str] = {}
    tensors = {tensor.name: tensor for tensor in other.graph.initializer}
    for node in other.graph.node[begin : begin + int(random.integers(1, 6))]:
        copy = NodeProto.FromString(node.SerializeToString())
        for position, name in enumerate(copy.input):
            if name in tensors and f"graft_{name}" not in names:
                tensor = graph.initializer.add()
                tensor.CopyFrom(tensors[name])
                tensor.name = grafted[name] = f"graft_{name}"
                names.append(tensor.name)
            copy.input[position] = grafted.setdefault(name, _choice(random, names)) if name else ""
        for position, name in enumerate(copy.output):
            grafted[name] = f"graft_{name}"
            copy.output[position] = f"graft_{name}" if name else ""
        graph.node.append(copy)
    if random.random() < 0.5 and grafted:
        _choice(random, graph.node).input[0] = _choice(random, tuple(grafted.values()))


def _metadata(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    entry = model.metadata_props.add()
    entry.key = "growpipe.growth"
    step = (
        '{"parent_hash": "a", "parameters_hash": "b", "plan_hash": "c", "scheme": "random", "epsilon": %s, '
        '"widths": %s, "predicted_change": null, "realised_change": %s}'
    )
    numbers = ("0", "1e400", "NaN", '"x"', "1" * 5000, "null", "[]", "-1", "true")
    widths = ("{}", '{"a": [1, 2]}', '{"a": [1]}', "[]", '{"a": [1e400, 2]}', '{"a": ["1", "2"]}')
    filled = step % (_choice(random, numbers), _choice(random, widths), _choice(random, numbers))
    entry.value = _choice(random, (f"[{filled}]", f"[{filled}, {filled}]", filled, "[" * 3000, "", "[null]"))


GRAPHS: dict[str, Callable[[ModelProto, Sequence[bytes], Random], None]] = {
    "attribute value": _attribute_value,
    "attribute type": _attribute_type,
    "attributes": _attribute_set,
    "operator": _operator,
    "input": _input,
    "nodes": _node_set,
    "insert": _insert,
    "shape": _shape,
    "declare": _declare,
    "initializer": _initializer,
    "precision": _precision,
    "constant": _as_constant,
    "default input": _as_input,
    "opset": _opset,
    "name": _name,
    "output": _output,
    "branches": _branches,
    "function": _function,
    "graft": _graft,
    "metadata": _metadata,
}
