"""Random graphs with damage: rewired inputs, other attributes, other lengths, dropped and doubled nodes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["mutate"]


def mutate(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """A copy of the model with one to four mutations. It mostly still parses, and mostly does not run."""
    rng = np.random.default_rng(seed)
    damaged = onnx.ModelProto()
    damaged.CopyFrom(model)
    for _ in range(rng.integers(1, 5)):
        mutation = _MUTATIONS[rng.integers(len(_MUTATIONS))]
        if damaged.graph.node:
            mutation(damaged.graph, rng)
    return damaged


def _rewire(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    """One input of one node becomes any value that is there before it."""
    position = int(rng.integers(len(graph.node)))
    node = graph.node[position]
    earlier = [name for before in graph.node[:position] for name in before.output]
    earlier += [value.name for value in graph.input] + [tensor.name for tensor in graph.initializer]
    if node.input and earlier:
        node.input[int(rng.integers(len(node.input)))] = earlier[int(rng.integers(len(earlier)))]


def _drop(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    """One node goes, and its readers read its first input instead."""
    position = int(rng.integers(len(graph.node)))
    node = graph.node[position]
    if not node.input:
        return
    for reader in graph.node:
        for index, name in enumerate(reader.input):
            if name in node.output:
                reader.input[index] = node.input[0]
    del graph.node[position]


def _double(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    """One node is applied once more to its own result."""
    position = int(rng.integers(len(graph.node)))
    node = graph.node[position]
    if not node.input or not node.output:
        return
    again = onnx.NodeProto()
    again.CopyFrom(node)
    again.input[0] = node.output[0]
    again.output[:] = [f"{name}_again{rng.integers(1 << 40)}" for name in node.output]
    for reader in graph.node[position + 1 :]:
        for index, name in enumerate(reader.input):
            if name == node.output[0]:
                reader.input[index] = again.output[0]
    graph.node.insert(position + 1, again)


def _attribute(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    """One integer of one attribute becomes another."""
    attributes = [a for node in graph.node for a in node.attribute if a.ints or a.type == a.INT]
    if not attributes:
        return
    attribute = attributes[int(rng.integers(len(attributes)))]
    number = int(rng.choice([-2, -1, 0, 1, 2, 3, 4, 7, 1 << 40]))
    if attribute.ints:
        attribute.ints[int(rng.integers(len(attribute.ints)))] = number
    else:
        attribute.i = number


def _length(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    """One element of one integer tensor becomes another, as in the target of a Reshape."""
    tensors = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT64 and t.dims]
    if not tensors:
        return
    tensor = tensors[int(rng.integers(len(tensors)))]
    array = numpy_helper.to_array(tensor).copy()
    if array.size:
        array.flat[int(rng.integers(array.size))] = int(rng.choice([-1, 0, 1, 2, 3, 4, 6, 1 << 40]))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _shape(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    """One weight gets another shape: transposed, or with an axis of length 1 more."""
    if not graph.initializer:
        return
    tensor = graph.initializer[int(rng.integers(len(graph.initializer)))]
    array = numpy_helper.to_array(tensor)
    array = array.T if rng.random() < 0.5 else array[None]
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


_MUTATIONS = [_rewire, _rewire, _drop, _double, _attribute, _length, _length, _shape]
