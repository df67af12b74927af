"""What the graph says of itself: operators, shapes, widths, names, versions and dimensions."""

from __future__ import annotations

from collections import Counter

from growpipe.checks.context import Context
from growpipe.checks.measure.protos import all_graphs, all_nodes
from growpipe.checks.registry import register
from growpipe.checks.report import Finding, Outcome, failed, passed, skipped, warned
from growpipe.graph_ops.onnx_tools.process import check_file
from growpipe.graph_ops.onnx_tools.width_check import contradicting_widths, wrong_declarations
from growpipe.graph_ops.operators import is_onnx, plain_domain

__all__: list[str] = []

_OLDEST = {"opset": 11, "ir_version": 4}
"""Older versions have other semantics and miss fusions."""


@register(
    "structure/checker",
    "the ONNX checker accepts it",
    "export again with a newer exporter; if that does not help, report this line to its authors",
)
def checker(context: Context) -> Outcome:
    """The checker of the onnx package: required fields, operators known in their opset, attributes of the
    right type, nodes in topological order. It runs in the child process, external data included.
    """
    check_file(context.path)
    return passed("the ONNX checker accepts it")


@register(
    "structure/widths",
    "every layer gets as many channels as its weights take",
    "undo the edit that changed the width of one of these layers alone, or export again",
)
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


@register(
    "structure/shapes",
    "strict shape inference agrees with the declared shapes",
    "remove the declared shapes (value_info) and infer them again, or export again",
)
def shapes(context: Context) -> Outcome:
    """Shape inference with data propagation, where any contradiction is an error: stale shapes after an edit,
    operators that get inputs of wrong rank or type. Without strictness onnx leaves such models silently as
    they are.

    Remove stale `value_info` and infer again, or export again.
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


@register(
    "structure/names",
    "names are unique and not empty",
    "rename what is ambiguous (onnx_ir's NameFixPass does), or export again",
)
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


@register(
    "structure/versions",
    "opset and IR version are within the policy",
    "export again with opset_version=17 or above, or convert it with onnx.version_converter",
)
def versions(context: Context) -> Outcome:
    """A too new opset does not load on the runtimes that are out there, a too old one has other semantics and
    misses fusions. An opset below 11 or an IR version below 4 is a warning, and an error in the profile
    `release`; limits that the policy sets are errors.

    Policy: `structure.min_opset`, `max_opset`, `min_ir`, `max_ir`.
    """
    policy = context.policy.structure
    declared = Counter(plain_domain(entry.domain) for entry in context.proto.opset_import)
    twice = [domain for domain, count in declared.items() if count > 1]
    opsets = {plain_domain(entry.domain): entry.version for entry in context.proto.opset_import}
    found = {"opset": opsets.get("", 0), "ir_version": context.proto.ir_version}
    problems = [f"the opset of domain {domain or 'ai.onnx'!r} is declared twice" for domain in twice]
    if not found["opset"] and any(is_onnx(node) for node in all_nodes(context.proto)):
        problems.append("it declares no opset")
    is_asked = False
    for name, key, least, most in (
        ("opset", "opset", policy.min_opset, policy.max_opset),
        ("IR version", "ir_version", policy.min_ir, policy.max_ir),
    ):
        version = found[key]
        lowest = _OLDEST[key] if least is None else least
        if version and not lowest <= version <= (most or version):
            problems.append(f"its {name} is {version}, wanted is {lowest} to {most or 'the newest'}")
            is_asked |= least is not None or version > lowest
    if not problems:
        return passed(f"opset {found['opset']}, IR version {found['ir_version']}", **found)
    # Nobody asked for a newer version: runtimes keep old ones running.
    judged = failed if is_asked or context.policy.is_strict else warned
    return judged("; ".join(problems), **found)


@register(
    "structure/dynamic_dims",
    "dynamic dimensions are where the policy wants them",
    "export with other dynamic_shapes, or change structure.dynamic_dims",
)
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


@register(
    "structure/unused",
    "no unused initializers",
    "remove them, or set structure.allow_unused_initializers = true",
)
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
            f"{len(idle)} initializers are never read",
            *(Finding("it is never read", tensor=name) for name in idle),
            value=len(idle),
        )
    return passed(f"{len(idle)} unused initializers", value=len(idle))
