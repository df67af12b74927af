"""Structure: is this a model that every runtime will read the same way, and does it run?"""

from __future__ import annotations

from collections import Counter

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx import GraphProto, NodeProto, TensorProto

from growpipe.checks.context import Context
from growpipe.checks.measure.protos import all_graphs, all_nodes, placed_nodes
from growpipe.checks.measure.trace import module_of
from growpipe.checks.registry import register
from growpipe.checks.report import Finding, Outcome, failed, passed, skipped
from growpipe.graph_ops.onnx_tools.process import check_file
from growpipe.graph_ops.onnx_tools.width_check import contradicting_widths, wrong_declarations
from growpipe.graph_ops.operators import is_onnx, plain_domain

__all__: list[str] = []


@register("structure/checker", "the ONNX checker accepts it")
def checker(context: Context) -> Outcome:
    """The checker of the onnx package: required fields, operators known in their opset, attributes of the
    right type, nodes in topological order. It runs in the child process, external data included.
    """
    check_file(context.path)
    return passed("the ONNX checker accepts it")


@register("structure/shapes", "strict shape inference agrees with the declared shapes")
def shapes(context: Context) -> Outcome:
    """Shape inference with data propagation, where any contradiction is an error: stale shapes after an edit,
    operators that get inputs of wrong rank or type. Without strictness onnx leaves such models silently as
    they are.

    Remove stale `value_info` and infer anew, or export again.
    """
    inference = context.inference
    problems = list(inference.problems)
    if inference.model is None:
        return failed("; ".join(problems))
    problems += wrong_declarations(context.model, inference.model)
    if problems:
        return failed(
            problems[0] if len(problems) == 1 else f"{len(problems)} shapes contradict each other",
            *(Finding(problem) for problem in problems if len(problems) > 1),
        )
    outputs = [value for graph in inference.model.graphs() for node in graph for value in node.outputs]
    known = sum(value.shape is not None for value in outputs)
    return passed(f"the shapes of {known} of {len(outputs)} values were inferred")


@register("structure/widths", "every layer gets as many channels as its weights take")
def widths(context: Context) -> Outcome:
    """The ONNX checker and even session creation accept a convolution whose weights take another number of
    channels than its input has; only running it fails. This compares the widths of Conv, ConvTranspose, Gemm,
    MatMul, BatchNormalization, groups, Reshape and Concat with what reaches them.
    """
    inferred = context.inference.model
    if inferred is None:
        return skipped("its shapes cannot be inferred (see structure/shapes)")
    problems = contradicting_widths(inferred)
    if problems:
        return failed(f"{len(problems)} layers have inconsistent widths", *(Finding(p) for p in problems))
    return passed("all widths are consistent")


@register("structure/names", "names are unique and not empty")
def names(context: Context) -> Outcome:
    """Values must be produced once (ONNX is in SSA form); nodes need no names, but two nodes of one name make
    profiles and error messages ambiguous. Inputs and outputs must have names.
    """
    findings = []
    proto = context.proto
    for graph in all_graphs(proto):
        made = Counter(i.name for i in graph.input)
        made.update(
            set(t.name for t in graph.initializer) - set(made)  # an input may have a default value
        )
        made.update(name for node in graph.node for name in node.output if name)
        findings += [
            Finding("it is produced more than once", tensor=name) for name, n in made.items() if n > 1
        ]
        repeated = Counter(t.name for t in graph.initializer)
        findings += [
            Finding("two initializers have this name", tensor=name) for name, n in repeated.items() if n > 1
        ]
        nodes = Counter(node.name for node in graph.node if node.name)
        findings += [Finding(f"{n} nodes have this name", node=name) for name, n in nodes.items() if n > 1]
    for kind, values in (("input", proto.graph.input), ("output", proto.graph.output)):
        counted = Counter(v.name for v in values)
        findings += [Finding(f"an {kind} has no name") for name in counted if not name]
        findings += [
            Finding(f"{n} {kind}s have this name", tensor=name) for name, n in counted.items() if n > 1
        ]
    if findings:
        return failed(f"{len(findings)} names are ambiguous", *findings)
    return passed("all names are unique")


@register("structure/versions", "opset and IR version are within the policy")
def versions(context: Context) -> Outcome:
    """A too new opset does not load on the runtimes that are out there, a too old one has other semantics and
    misses fusions.

    Policy: `structure.min_opset`, `max_opset`, `min_ir`, `max_ir`.
    """
    policy = context.policy.structure
    opsets: dict[str, int] = {}
    for entry in context.proto.opset_import:
        domain = plain_domain(entry.domain)
        if domain in opsets:
            return failed(f"the opset of domain {domain!r} is declared twice")
        opsets[domain] = entry.version
    opset, ir_version = opsets.get(""), context.proto.ir_version
    problems = []
    uses_onnx = any(is_onnx(node) for node in all_nodes(context.proto))
    if opset is None and uses_onnx:
        problems.append("it declares no opset")
    if opset is not None and not policy.min_opset <= opset <= (policy.max_opset or opset):
        wanted = f"{policy.min_opset} to {policy.max_opset or 'the newest'}"
        problems.append(f"its opset is {opset}, the policy asks for {wanted}")
    if not policy.min_ir <= ir_version <= (policy.max_ir or ir_version):
        wanted = f"{policy.min_ir} to {policy.max_ir or 'the newest'}"
        problems.append(f"its IR version is {ir_version}, the policy asks for {wanted}")
    measured = {"opset": opset or 0, "ir_version": ir_version}
    if problems:
        return failed(f"{'; '.join(problems)}; export again with another opset_version", **measured)
    return passed(f"opset {opset}, IR version {ir_version}", **measured)


@register("structure/dynamic_dims", "dynamic dimensions are where the policy wants them")
def dynamic_dims(context: Context) -> Outcome:
    """A dynamic dimension costs speed on some runtimes and is refused by others; a batch that was fixed by
    accident cannot be served.

    Policy: `structure.dynamic_dims` ("any", "batch": on axis 0 alone, "none") and
    `structure.require_dynamic_batch`.
    """
    policy = context.policy.structure
    findings, dynamic = [], 0
    for value in (*context.model.graph.inputs, *context.model.graph.outputs):
        if value.name in context.model.graph.initializers or value.shape is None:
            continue
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int):
                continue
            dynamic += 1
            allowed = policy.dynamic_dims == "any" or (policy.dynamic_dims == "batch" and axis == 0)
            if not allowed:
                findings.append(
                    Finding(f"axis {axis} is dynamic ({dim.value or 'unnamed'})", tensor=str(value.name))
                )
    if policy.require_dynamic_batch:
        findings += [
            Finding("its batch (axis 0) is fixed", tensor=spec.name)
            for spec in context.specs or ()
            if spec.shape and spec.first is None
        ]
    if findings:
        return failed(
            f"{len(findings)} dimensions are against structure.dynamic_dims = {policy.dynamic_dims!r}",
            *findings,
        )
    return passed(f"{dynamic} dynamic dimensions, allowed is {policy.dynamic_dims!r}")


@register("structure/training", "no dropout and no batch normalisation in training mode")
def training(context: Context) -> Outcome:
    """A model exported in training mode drops activations at random, or normalises by the batch at hand:
    its outputs depend on chance and on what else is in the batch.

    Call `model.eval()` before the export.
    """
    findings = [
        Finding(reason, node.name, node.op_type, module=module_of(node))
        for graph, node in placed_nodes(context.proto)
        if (reason := _trains(graph, node))
    ]
    if findings:
        return failed(
            f"{len(findings)} nodes are in training mode; call model.eval() before the export",
            *findings,
        )
    return passed("no node is in training mode")


@register("structure/unused", "no unused initializers")
def unused(context: Context) -> Outcome:
    """Weights that nothing reads make the file larger, and often show that a layer was cut off by mistake.

    Policy: `structure.allow_unused_initializers`.
    """
    read = {name for node in all_nodes(context.proto) for name in node.input}
    read |= {output.name for graph in all_graphs(context.proto) for output in graph.output}
    idle = [t.name for graph in all_graphs(context.proto) for t in graph.initializer if t.name not in read]
    idle += [t.values.name for t in context.proto.graph.sparse_initializer if t.values.name not in read]
    if idle and not context.policy.structure.allow_unused_initializers:
        return failed(
            f"{len(idle)} initializers are never read; remove them, or allow_unused_initializers",
            *(Finding("it is never read", tensor=name) for name in idle),
            value=len(idle),
        )
    return passed(f"{len(idle)} unused initializers", value=len(idle))


@register("structure/run", "it runs in onnxruntime")
def run(context: Context) -> Outcome:
    """A real run, in a child process with limits of time and memory, on seeded random inputs of several batch
    sizes and on the inputs of --data. A model that crashes, hangs or wants too much memory fails here.

    Policy: `numerics.batch_sizes`, `numerics.seeds`, `numerics.dims` (sizes of symbolic dimensions),
    `limits.seconds`, `limits.memory_mb`.
    """
    runs = context.runs
    if not runs.ran and not runs.errors:
        return skipped("no inputs can be made for it (a sequence, or an unknown rank); give some with --data")
    if runs.errors:
        (label, error), *others = runs.errors.items()
        return failed(f"it does not run on {label}: {error}", *(Finding(f"on {on}: {e}") for on, e in others))
    return passed(f"it ran on {len(runs.ran)} sets of inputs: {', '.join(runs.outputs)}")


@register("structure/outputs", "the outputs have the declared types and shapes", runs=True)
def outputs(context: Context) -> Outcome:
    """What comes out is what the model declares: number and names of outputs, type, rank, fixed sizes, and
    symbolic sizes that are equal to each other wherever they have one name. Servers allocate by the
    declaration; onnxruntime itself only warns.
    """
    findings: list[Finding] = []
    for given in context.runs.ran:
        sizes: dict[str, int] = {}
        for spec in context.specs or ():
            array = given.inputs.get(spec.name)
            if array is not None and array.ndim == len(spec.shape):
                sizes.update(
                    {d: n for d, n in zip(spec.shape, array.shape, strict=True) if isinstance(d, str)}
                )
        for value in context.model.graph.outputs:
            actual = context.runs.outputs[given.label].get(str(value.name))
            if actual is not None and isinstance(value.type, ir.TensorType):
                problem = _against(value, actual, sizes)
                if problem:
                    findings.append(Finding(f"{problem} ({given.label})", tensor=str(value.name)))
    if findings:
        return failed(f"{len(findings)} outputs are not as declared", *findings)
    return passed("all outputs are as declared")


def _against(value: ir.Value, actual: np.ndarray, sizes: dict[str, int]) -> str:
    assert value.type is not None
    declared = value.type.dtype.numpy()
    # The child hands half-precision types that numpy lacks over as float32.
    if declared != actual.dtype and actual.dtype.kind != "O" and declared != np.dtype(ml_dtypes.bfloat16):
        return f"declared is {declared}, it gives {actual.dtype}"
    if value.shape is None:
        return ""
    shown = [d if isinstance(d, int) else (d.value or "?") for d in value.shape]
    if len(shown) != actual.ndim:
        return f"declared is shape {shown}, it gives {list(actual.shape)}"
    for dim, size in zip(shown, actual.shape, strict=True):
        expected = dim if isinstance(dim, int) else sizes.setdefault(dim, size) if dim != "?" else size
        if expected != size:
            return f"declared is shape {shown}, it gives {list(actual.shape)}"
    return ""


def _trains(graph: GraphProto, node: NodeProto) -> str:
    if not is_onnx(node):
        return ""
    attributes = {a.name: a for a in node.attribute}
    if node.op_type == "BatchNormalization":
        if "training_mode" in attributes and attributes["training_mode"].i:
            return "it normalises by the batch at hand"
        if len([name for name in node.output if name]) > 1:
            return "it gives running statistics, as in training"
    if node.op_type == "Dropout":
        if len(node.input) >= 3 and node.input[2]:
            mode = _constant(graph, node.input[2])
            if mode is None:
                return "whether it drops is decided while it runs"
            if mode.any():
                ratio = _constant(graph, node.input[1]) if node.input[1] else None
                return "" if ratio is not None and not ratio.any() else "it drops activations at random"
        if "is_test" in attributes and not attributes["is_test"].i:
            return "it drops activations at random"
    return ""


def _constant(graph: GraphProto, name: str) -> np.ndarray | None:
    for tensor in graph.initializer:
        if tensor.name == name and tensor.data_location != TensorProto.EXTERNAL:
            return onnx.numpy_helper.to_array(tensor)
    for node in graph.node:
        if node.op_type == "Constant" and name in node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    return onnx.numpy_helper.to_array(attribute.t)
                if attribute.name.startswith("value_"):
                    return np.asarray(onnx.helper.get_attribute_value(attribute))
    return None
