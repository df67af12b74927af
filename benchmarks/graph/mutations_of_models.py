"""Mutations of a whole model: operator sets, branches, functions, parts of other models, metadata."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from benchmarks.graph.mutation_draws import INTEGERS, Random, choice, names_of, node_of

__all__ = ["MODELS"]


def _opset(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    action = random.integers(5)
    if action == 0:
        choice(random, model.opset_import).version = int(random.integers(1, 27))
    elif action == 1:
        choice(random, model.opset_import).version = choice(random, INTEGERS)
    elif action == 2:
        model.opset_import.append(choice(random, model.opset_import))
    elif action == 3:
        entry = model.opset_import.add()
        entry.domain, entry.version = choice(random, ("ai.onnx", "ai.onnx.ml", "custom", "")), 7
    else:
        model.ir_version = choice(random, (0, 1, 2, 3, 4, 8, 13, 99, 2**40))


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
    node = node_of(model, random)
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
    other = ModelProto.FromString(choice(random, others))
    graph = model.graph
    begin = int(random.integers(len(other.graph.node)))
    names = names_of(graph)
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
            copy.input[position] = grafted.setdefault(name, choice(random, names)) if name else ""
        for position, name in enumerate(copy.output):
            grafted[name] = f"graft_{name}"
            copy.output[position] = f"graft_{name}" if name else ""
        graph.node.append(copy)
    if random.random() < 0.5 and grafted:
        choice(random, graph.node).input[0] = choice(random, tuple(grafted.values()))


def _metadata(model: ModelProto, others: Sequence[bytes], random: Random) -> None:
    entry = model.metadata_props.add()
    entry.key = "growpipe.growth"
    step = (
        '{"parent_hash": "a", "parameters_hash": "b", "plan_hash": "c", "scheme": "random", "epsilon": %s, '
        '"widths": %s, "predicted_change": null, "realised_change": %s}'
    )
    numbers = ("0", "1e400", "NaN", '"x"', "1" * 5000, "null", "[]", "-1", "true")
    widths = ("{}", '{"a": [1, 2]}', '{"a": [1]}', "[]", '{"a": [1e400, 2]}', '{"a": ["1", "2"]}')
    filled = step % (choice(random, numbers), choice(random, widths), choice(random, numbers))
    entry.value = choice(random, (f"[{filled}]", f"[{filled}, {filled}]", filled, "[" * 3000, "", "[null]"))


MODELS: dict[str, Callable[[ModelProto, Sequence[bytes], Random], None]] = {
    "opset": _opset,
    "branches": _branches,
    "function": _function,
    "graft": _graft,
    "metadata": _metadata,
}
