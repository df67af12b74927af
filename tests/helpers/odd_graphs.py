"""Random graphs made odd without changing their function, as old exporters and careless editors do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from growpipe.graph_ops.edit.deploy import deploy_form
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import CheckFailed, UsageError
from growpipe.graph_ops.files.load_save import load_model, save_model
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.data_free import random_plan
from tests.helpers.random_graphs import CHANNELS, LENGTH, Step, build_graph

__all__ = ["ODDITIES", "changes_of_function", "odd_graph"]

_TOLERANCE = 2e-3

Rng = np.random.Generator
Oddity = Callable[[onnx.ModelProto, Rng], None]


def odd_graph(steps: list[Step], seed: int, odd: list[int]) -> onnx.ModelProto:
    """A random graph with these oddities, by their position in `ODDITIES`."""
    proto = build_graph(steps, seed)
    rng = np.random.default_rng(seed)
    for position in sorted(set(odd)):
        ODDITIES[position](proto, rng)
    return proto


def wrong_inner_shapes(proto: onnx.ModelProto, rng: Rng) -> None:
    """Declares sizes and ranks that inner values do not have."""
    for node in proto.graph.node:
        for name in node.output:
            if name != "y" and rng.random() < 0.1:
                shape = rng.integers(1, 9, int(rng.integers(1, 5))).tolist()
                kind = TensorProto.INT64 if node.op_type in ("Shape", "Size") else TensorProto.FLOAT
                proto.graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))


def wrong_output_shape(proto: onnx.ModelProto, rng: Rng) -> None:
    """Declares an output of another rank or of other sizes."""
    shape: list[int | str] = rng.integers(1, 9, int(rng.integers(1, 5))).tolist()
    shape[-1] = "length"
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, shape))


def initializers_as_inputs(proto: onnx.ModelProto, rng: Rng) -> None:
    """IR version 3: all initializers are inputs too."""
    proto.ir_version = 3
    _list_as_inputs(proto, list(proto.graph.initializer))


def defaults(proto: onnx.ModelProto, rng: Rng) -> None:
    """Some initializers are inputs too: values that a user may replace."""
    if proto.ir_version > 3:
        _list_as_inputs(proto, [tensor for tensor in proto.graph.initializer if rng.random() < 0.3])


def _list_as_inputs(proto: onnx.ModelProto, tensors: list[onnx.TensorProto]) -> None:
    proto.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in tensors
    )


def constant_nodes(proto: onnx.ModelProto, rng: Rng) -> None:
    """Initializers become Constant nodes of all kinds, some behind an Identity."""
    for tensor in list(proto.graph.initializer):
        if rng.random() < 0.4:
            continue
        proto.graph.initializer.remove(tensor)
        array = numpy_helper.to_array(tensor)
        attribute = {"value": tensor}
        if array.ndim == 1 and array.size and rng.random() < 0.7:
            kinds = {"f": "value_floats", "i": "value_ints"}
            if array.dtype.kind in kinds and array.dtype in (np.float32, np.int64):
                attribute = {kinds[array.dtype.kind]: array.tolist()}
        elif array.ndim == 0 and array.dtype in (np.float32, np.int64):
            attribute = {"value_float" if array.dtype == np.float32 else "value_int": array.item()}
        behind = rng.random() < 0.3
        name = f"{tensor.name}.held" if behind else tensor.name
        if behind:
            proto.graph.node.insert(0, helper.make_node("Identity", [name], [tensor.name]))
        proto.graph.node.insert(0, helper.make_node("Constant", [], [name], **attribute))


_KEPT = ("Constant", "ReduceSum", "Greater", "SplitToSequence", "SequenceAt", "SequenceConstruct")


def branches(proto: onnx.ModelProto, rng: Rng) -> None:
    """Some nodes move into both branches of an If, which read outer values."""
    _add_condition(proto, rng)
    for node in list(proto.graph.node):
        if (
            len(node.output) != 1
            or node.op_type in ("Constant", "ReduceSum", "Greater")
            or rng.random() < 0.8
        ):
            continue
        if any(value.type.HasField("sequence_type") for value in proto.graph.value_info):
            continue
        graphs = [_branch(proto, node, f"{node.output[0]}_{which}", rng) for which in ("then", "else")]
        moved = helper.make_node(
            "If", ["condition"], [node.output[0]], then_branch=graphs[0], else_branch=graphs[1]
        )
        node.CopyFrom(moved)


def _add_condition(proto: onnx.ModelProto, rng: Rng) -> None:
    if any("condition" in node.output for node in proto.graph.node):
        return
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(rng.normal()), "threshold"))
    proto.graph.node.insert(0, helper.make_node("Greater", ["sum", "threshold"], ["condition"]))
    proto.graph.node.insert(0, helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0))


def _branch(proto: onnx.ModelProto, node: onnx.NodeProto, name: str, rng: Rng) -> onnx.GraphProto:
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    inner.output[0] = f"{name}_inner"
    initializers = []
    for position, read in enumerate(node.input):
        tensor = next((t for t in proto.graph.initializer if t.name == read), None)
        if tensor is not None and rng.random() < 0.3:  # a copy of the branch's own
            own = onnx.TensorProto()
            own.CopyFrom(tensor)
            own.name = inner.input[position] = f"{name}_{read}"
            initializers.append(own)
    last = helper.make_node("Identity", [inner.output[0]], [name])
    output = onnx.ValueInfoProto(name=name)
    output.type.tensor_type.elem_type = TensorProto.INT64 if _is_integer(node) else TensorProto.FLOAT
    return helper.make_graph([inner, last], name, [], [output], initializers)


def bodies(proto: onnx.ModelProto, rng: Rng) -> None:
    """Runs of nodes move into both branches of an If, or into a Loop of one pass, some with their weights."""
    _add_condition(proto, rng)
    for _ in range(int(rng.integers(1, 4))):
        runs = _closed_runs(proto.graph)
        if runs:
            first, last, result = runs[
                -1 - int(rng.integers(len(runs)) * rng.random())
            ]  # long ones more often
            _move(proto, first, last, result, rng)


def _closed_runs(graph: onnx.GraphProto) -> list[tuple[int, int, str]]:
    """Runs of nodes, the shortest first: first and last position, and the one float that other nodes read."""
    known = onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph)).graph.value_info
    kinds = {value.name: value.type for value in known}
    fixed = {"sum", "condition", *(value.name for value in graph.output)}
    runs = []
    for first in range(len(graph.node)):
        for last in range(first + 2, len(graph.node)):
            run = graph.node[first : last + 1]
            made = {name for node in run for name in node.output}
            outside = [*graph.node[:first], *graph.node[last + 1 :]]
            read = made & {name for node in outside for name in _read(node)}
            if len(read) == 1 and not made & fixed:
                (result,) = read
                if result in kinds and kinds[result].tensor_type.elem_type == TensorProto.FLOAT:
                    runs.append((first, last, result))
    return sorted(runs, key=lambda run: run[1] - run[0])


def _read(node: onnx.NodeProto) -> list[str]:
    inner = [name for a in node.attribute for each in (*a.g.node, *a.g.output) for name in _names(each)]
    return [*node.input, *inner]


def _names(part: onnx.NodeProto | onnx.ValueInfoProto) -> list[str]:
    return _read(part) if isinstance(part, onnx.NodeProto) else [part.name]


def _move(proto: onnx.ModelProto, first: int, last: int, result: str, rng: Rng) -> None:
    graph = proto.graph
    run = [graph.node.pop(first) for _ in range(last + 1 - first)]
    made = {name for node in run for name in node.output}
    for value in [value for value in graph.value_info if value.name in made]:
        graph.value_info.remove(value)
    if rng.random() < 0.6:
        then, other = (_copy(proto, run, f"{result}_{which}", result, rng) for which in ("then", "else"))
        moved = helper.make_node("If", ["condition"], [result], then_branch=then, else_branch=other)
    else:
        body = _copy(proto, run, f"{result}_body", result, rng)
        body.node.append(helper.make_node("Identity", [f"{result}_on"], [f"{result}_more"]))
        scalars = [helper.make_tensor_value_info(f"{result}_pass", TensorProto.INT64, [])]
        scalars.append(helper.make_tensor_value_info(f"{result}_on", TensorProto.BOOL, []))
        body.input.extend([*scalars, _float(f"{result}_state")])
        body.output.insert(0, helper.make_tensor_value_info(f"{result}_more", TensorProto.BOOL, []))
        passes = f"{result}_passes_{len(graph.initializer)}"
        graph.initializer.append(numpy_helper.from_array(np.int64(1), passes))
        moved = helper.make_node("Loop", [passes, "", "x"], [result], body=body)
    graph.node.insert(first, moved)


def _copy(
    proto: onnx.ModelProto, run: list[onnx.NodeProto], name: str, result: str, rng: Rng
) -> onnx.GraphProto:
    """The nodes under names of their own, some with copies of the weights that they read."""
    renamed = {made: f"{name}_{made}" for node in run for made in node.output}
    own, share = [], float(rng.choice([0.0, 0.8, 1.0]))
    for tensor in proto.graph.initializer:
        if any(tensor.name in _read(node) for node in run) and rng.random() < share:
            held = onnx.TensorProto()
            held.CopyFrom(tensor)
            held.name = renamed[tensor.name] = f"{name}_{tensor.name}"
            own.append(held)
    nodes = [_renamed(node, renamed, name) for node in run]
    return helper.make_graph(nodes, name, [], [_float(renamed[result])], own)


def _renamed(node: onnx.NodeProto, renamed: dict[str, str], prefix: str) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    if copy.name:
        copy.name = f"{prefix}_{copy.name}"
    copy.input[:] = [renamed.get(name, name) for name in node.input]
    copy.output[:] = [renamed.get(name, name) for name in node.output]
    for attribute in copy.attribute:
        if attribute.HasField("g"):
            body = attribute.g
            inner = {name: f"{prefix}_{name}" for each in body.node for name in each.output}
            inner |= {value.name: f"{prefix}_{value.name}" for value in (*body.initializer, *body.input)}
            inner = renamed | inner
            nodes = [_renamed(each, inner, prefix) for each in body.node]
            del body.node[:]
            body.node.extend(nodes)
            for value in (*body.initializer, *body.input, *body.output):
                value.name = inner.get(value.name, value.name)
    return copy


def _float(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _is_integer(node: onnx.NodeProto) -> bool:
    return node.op_type in ("Shape", "Size", "ArgMax")


def repeated_opset(proto: onnx.ModelProto, rng: Rng) -> None:
    """The operator set under its other name, an older entry that does not count, and one nobody uses."""
    version = proto.opset_import[0].version
    del proto.opset_import[:]
    for domain, number in (("", 7), ("nobody", 1), ("ai.onnx", version)):
        proto.opset_import.append(helper.make_opsetid(domain, number))


def odd_outputs(proto: onnx.ModelProto, rng: Rng) -> None:
    """An input and an inner value are outputs too."""
    proto.graph.output.append(proto.graph.input[0])
    inner = proto.graph.node[int(rng.integers(len(proto.graph.node)))]
    if inner.op_type in ("Relu", "Conv", "Tanh", "BatchNormalization", "Identity") and inner.output[0] != "y":
        proto.graph.output.append(helper.make_tensor_value_info(inner.output[0], TensorProto.FLOAT, None))


ODDITIES: list[Oddity] = [
    wrong_inner_shapes,
    wrong_output_shape,
    constant_nodes,
    branches,
    repeated_opset,
    odd_outputs,
    initializers_as_inputs,
    defaults,
    bodies,
]


def changes_of_function(source: Path, seed: int) -> dict[str, str] | None:
    """Deploy and grow an odd graph at ε = 0: what is wrong with each form.

    Args:
        source: the file; the forms are written beside it.
        seed: of the inputs and of the plan.

    Returns:
        by form (``deployed``, and ``grown`` if a group splits) the difference of its outputs from those of
        the file, empty if there is none, or ``refused`` if growpipe makes no such form. None if onnxruntime
        runs the file on no input: it believes some wrong declarations, and refuses some odd files.
    """
    rng = np.random.default_rng(seed)
    batches = [rng.normal(size=(size, CHANNELS, LENGTH)).astype(np.float32) for size in (1, 3)]
    expected = [_run(source, x, optimised) for x in batches for optimised in (False, True)]
    if all(outputs is None for outputs in expected):
        return None
    model = load_model(source)
    groups = find_channel_groups(model)
    made: dict[str, Callable[[], ir.Model]] = {"deployed": lambda: deploy_form(model)}
    if any(group.splittable for group in groups.groups):
        plan = random_plan(groups, model, growth=0.4, seed=seed)
        made["grown"] = lambda: grow_graph(model, plan)
    found = {}
    for what, make in made.items():
        form = source.with_name(f"{what}.onnx")
        try:
            save_model(make(), form)
        except (CheckFailed, UsageError):
            found[what] = "refused"
            continue
        actual = [_run(form, x, optimised) for x in batches for optimised in (False, True)]
        pairs = [(b, a) for b, a in zip(expected, actual, strict=True) if b is not None]
        found[what] = next(filter(None, (_difference(before, after) for before, after in pairs)), "")
    return found


Outputs = dict[str, npt.NDArray]


def _run(path: Path, x: npt.NDArray, optimised: bool) -> Outputs | None:
    """The outputs by name; None if onnxruntime refuses the model or its inputs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(None, {"x": x}), strict=True))
    except Exception as error:
        if "ONNXRuntimeError" not in str(error) and "NOT_IMPLEMENTED" not in str(error):
            raise
        return None


def _difference(before: Outputs, after: Outputs | None) -> str:
    if after is None:
        return "it does not run"
    if list(after) != list(before):
        return f"its outputs are {list(after)}, not {list(before)}"
    for name, values in before.items():
        if after[name].shape != values.shape:
            return f"{name!r} has the shape {after[name].shape}, not {values.shape}"
        if not np.allclose(after[name], values, rtol=0, atol=_TOLERANCE, equal_nan=True):
            return f"{name!r} differs by {np.abs(after[name] - values).max():.1e}"
    return ""
