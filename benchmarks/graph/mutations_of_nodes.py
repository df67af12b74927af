"""Mutations of the nodes of a graph: attributes, operators, inputs, names, and which nodes there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper, numpy_helper

from benchmarks.graph.mutation_draws import (
    FLOATS,
    INTEGERS,
    NAMES,
    Random,
    choice,
    graph_of,
    names_of,
    node_of,
)
from benchmarks.graph.mutations_of_values import harm

__all__ = ["NODES"]

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


def _attribute_value(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    attribute = choice(random, node_of(model, random).attribute)
    if attribute.type == AttributeProto.INT:
        attribute.i = choice(random, INTEGERS)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = choice(random, FLOATS)
    elif attribute.type == AttributeProto.INTS:
        values = list(attribute.ints)
        action = random.integers(4)
        if action == 0 and values:
            values[int(random.integers(len(values)))] = choice(random, INTEGERS)
        elif action == 1:
            values.append(choice(random, INTEGERS))
        elif action == 2:
            values = values[:-1]
        else:
            values = [int(v) for v in random.permutation(values)]
        attribute.ints[:] = values
    elif attribute.type == AttributeProto.STRING:
        attribute.s = choice(random, (b"", b"SAME_UPPER", b"VALID", b"\xff\xfe", b"NOTSET", b"linear"))
    elif attribute.type == AttributeProto.TENSOR:
        harm(attribute.t, random)
    else:
        raise ValueError("no value of this kind")


def _attribute_type(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    attribute = choice(random, node_of(model, random).attribute)
    action = random.integers(5)
    if action == 0:
        attribute.type = int(random.integers(0, 15))
    elif action == 1:
        attribute.ClearField("type")
    elif action == 2:
        attribute.i, attribute.type = choice(random, INTEGERS), AttributeProto.INT
    elif action == 3:
        attribute.f, attribute.type = choice(random, FLOATS), AttributeProto.FLOAT
    else:
        attribute.ref_attr_name = choice(random, NAMES)


def _attribute_set(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    node = node_of(model, random)
    action = random.integers(4)
    if action == 0:
        del node.attribute[int(random.integers(len(node.attribute)))]
    elif action == 1:
        node.attribute.append(choice(random, node.attribute))
    elif action == 2:
        node.attribute.append(choice(random, node_of(model, random).attribute))
    else:
        name = choice(random, ATTRIBUTES.split())
        values = (*INTEGERS[:8], 1.5, math.nan, "text", [0], [1, 2], [0, 0], [0.5], np.float32(2))
        value = values[int(random.integers(len(values)))]
        node.attribute.append(
            helper.make_attribute(name, float(value) if isinstance(value, np.float32) else value)
        )


def _operator(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    node = node_of(model, random)
    node.op_type = choice(random, OPERATORS.split())
    if random.random() < 0.1:
        node.domain = choice(random, ("ai.onnx.ml", "com.microsoft", "custom", "ai.onnx"))


def _input(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    graph = graph_of(model, random)
    node = choice(random, graph.node)
    action = random.integers(4)
    if action == 0 and node.input:
        node.input[int(random.integers(len(node.input)))] = choice(random, names_of(graph))
    elif action == 1:
        node.input.append(choice(random, names_of(graph)))
    elif action == 2 and node.input:
        del node.input[int(random.integers(len(node.input)))]
    elif node.input:
        node.input[:] = [node.input[int(i)] for i in random.permutation(len(node.input))]


def _node_set(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    graph = graph_of(model, random)
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
    graph = graph_of(model, random)
    position = int(random.integers(len(graph.node)))
    value = choice(random, [name for name in graph.node[position].input if name])
    fresh = f"inserted_{int(random.integers(10**6))}"
    kind = choice(
        random, ("Identity", "Relu", "Cast", "Transpose", "Flatten", "Dropout", "Sigmoid", "Neg", "Unsqueeze")
    )
    attributes: dict[str, object] = {}
    inputs = [value]
    if kind == "Cast":
        attributes["to"] = choice(random, (1, 10, 11, 16, 7))
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


def _name(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    graph = graph_of(model, random)
    old, new = choice(random, names_of(graph)), choice(random, (*NAMES, *names_of(graph)))
    if random.random() < 0.3:
        choice(random, graph.node).name = new
        return
    for node in graph.node:  # the value is called something else, everywhere
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for info in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        info.name = new if info.name == old else info.name


NODES: dict[str, Callable[[ModelProto, Sequence[bytes], Random], None]] = {
    "attribute value": _attribute_value,
    "attribute type": _attribute_type,
    "attributes": _attribute_set,
    "operator": _operator,
    "input": _input,
    "nodes": _node_set,
    "insert": _insert,
    "name": _name,
}
