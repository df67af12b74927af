"""Mutations of what is declared of values and of what tensors hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from benchmarks.graph.mutation_draws import FLOATS, INTEGERS, NAMES, TYPES, Random, choice, graph_of, names_of

__all__ = ["VALUES", "harm"]


def _shape(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    graph = graph_of(model, random)
    infos = choice(random, (graph.input, graph.output, graph.value_info))
    info = choice(random, infos)
    tensor = info.type.tensor_type
    action = random.integers(7)
    if action == 0:
        tensor.ClearField("shape")
    elif action == 1:
        tensor.shape.dim.add().dim_value = choice(random, INTEGERS)
    elif action == 2 and tensor.shape.dim:
        del tensor.shape.dim[int(random.integers(len(tensor.shape.dim)))]
    elif action == 3:
        tensor.elem_type = choice(random, TYPES)
    elif action == 4:
        choice(random, tensor.shape.dim).dim_param = choice(random, ("N", "", "batch", "a" * 50, "N+1"))
    elif action == 5:
        kind = TensorProto.FLOAT
        info.type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(kind, None)))
    else:
        choice(random, tensor.shape.dim).dim_value = choice(random, INTEGERS)


def _declare(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    """Declare the shape of a value that has no declaration, rightly or wrongly."""
    graph = graph_of(model, random)
    name = choice(random, [name for node in graph.node for name in node.output if name])
    shape = [
        int(random.integers(0, 9)) if random.random() < 0.7 else "N" for _ in range(random.integers(0, 5))
    ]
    graph.value_info.append(helper.make_tensor_value_info(name, choice(random, (1, 7, 10)), shape))


def _array(tensor: TensorProto) -> np.ndarray:
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ValueError("its data lies elsewhere")
    if tensor.data_type not in TensorProto.DataType.values():
        raise ValueError("an earlier mutation took its type")
    return numpy_helper.to_array(tensor)


def harm(tensor: TensorProto, random: Random) -> None:
    """Change the shape, the type, the place or a number of a tensor."""
    action = random.integers(7)
    if action == 0 and tensor.dims:
        tensor.dims[int(random.integers(len(tensor.dims)))] = choice(random, INTEGERS)
    elif action == 1:
        tensor.data_type = choice(random, TYPES)
    elif action == 2:
        tensor.raw_data = tensor.raw_data[:-1]
    elif action == 3:
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", choice(random, (*NAMES, "/etc/passwd", "model.onnx", "x/", "."))
    elif action == 4:
        tensor.dims[:] = [int(i) for i in random.permutation(list(tensor.dims))]
    elif action == 5:
        array = _array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(array.reshape(-1, *array.shape[1:])[:-1].copy(), tensor.name))
    else:
        array = np.array(_array(tensor))
        where = int(random.integers(max(array.size, 1)))
        if array.dtype.kind == "f":
            array.flat[where] = choice(random, FLOATS)
        elif array.dtype.kind in "iu":
            bounds = np.iinfo(array.dtype)
            array.flat[where] = min(max(choice(random, INTEGERS), bounds.min), bounds.max)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _initializer(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    harm(choice(random, graph_of(model, random).initializer), random)


def _precision(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    """Store a float tensor in another type, with or without the Cast that it takes."""
    graph = model.graph
    position = int(random.integers(len(graph.initializer)))
    tensor = graph.initializer[position]
    array = _array(tensor)
    if array.dtype != np.float32:
        raise ValueError("no float32 tensor")
    kind = choice(random, (np.float16, np.float64))
    name = tensor.name
    stored = numpy_helper.from_array(array.astype(kind), f"{name}_stored")
    tensor.CopyFrom(stored)
    if random.random() < 0.8:
        graph.node.insert(0, helper.make_node("Cast", [stored.name], [name], to=TensorProto.FLOAT))
    else:
        tensor.name = name


def _as_constant(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    """An initializer as what a Constant, an Identity, a Transpose or a DequantizeLinear gives."""
    graph = graph_of(model, random)
    position = int(random.integers(len(graph.initializer)))
    tensor = TensorProto.FromString(graph.initializer[position].SerializeToString())
    name, array = tensor.name, _array(tensor)
    kind = choice(random, ("Constant", "Identity", "Transpose", "DequantizeLinear"))
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
    chosen = choice(random, graph.initializer)
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


def _output(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    """Outputs that are inputs, initializers, inner values or twice the same."""
    graph = graph_of(model, random)
    name = choice(random, names_of(graph))
    info = onnx.ValueInfoProto()
    info.CopyFrom(choice(random, (*graph.output, *graph.input)))
    info.name = name
    if random.random() < 0.5:
        graph.output.append(info)
    else:
        choice(random, graph.output).CopyFrom(info)


VALUES: dict[str, Callable[[ModelProto, Sequence[bytes], Random], None]] = {
    "shape": _shape,
    "declare": _declare,
    "initializer": _initializer,
    "precision": _precision,
    "constant": _as_constant,
    "default input": _as_input,
    "output": _output,
}
