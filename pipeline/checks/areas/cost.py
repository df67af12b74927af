"""Cost: parameters, MACs, bytes, memory and operators, against budgets and the baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from growpipe.checks.areas.safety import total_bytes
from growpipe.checks.context import Context, ReferenceModel
from growpipe.checks.policy import CostLimit
from growpipe.checks.registry import register
from growpipe.checks.report import Outcome, failed, passed, skipped
from growpipe.graph_ops.cost.cost import is_parameter
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.operators import is_onnx

__all__: list[str] = []


@register(
    "cost/parameters",
    "no more parameters than the budget allows",
    "raise cost.parameters, or ship a smaller model",
)
def parameters(context: Context) -> Outcome:
    """The elements of all parameters: floating-point weights, and quantised ones.

    Policy: `cost.parameters.max` (absolute) and `cost.parameters.max_growth` (0.1: 10 % more than the
    baseline, or than the reference where there is no baseline).
    """
    return _judged(
        context,
        context.policy.cost.parameters,
        Cost("cost/parameters", "parameters", count_parameters(context.model)),
        lambda reference: count_parameters(reference.model),
    )


@register(
    "cost/macs",
    "no more multiply-accumulates than the budget allows",
    "raise cost.macs, or ship a cheaper model",
    runs=True,
)
def macs(context: Context) -> Outcome:
    """Multiply-accumulates of convolutions, matrix products and recurrent layers for one sample; an axis of
    unknown length other than the batch counts as 1. A budget fails if the model has operators whose
    multiply-accumulates are not counted.

    Policy: `cost.macs.max` and `cost.macs.max_growth`.
    """
    cost = find_channel_groups(context.model).cost
    if cost.uncounted and context.policy.cost.macs.max is not None:
        return failed(
            f"at least {cost.macs()} MACs per sample, the budget is {context.policy.cost.macs.max}: "
            f"{len(cost.uncounted)} nodes are not counted, the first is {cost.uncounted[0]}",
            value=cost.macs(),
        )
    return _judged(
        context,
        context.policy.cost.macs,
        Cost("cost/macs", "MACs per sample" + (" at least" if cost.uncounted else ""), cost.macs()),
        lambda reference: find_channel_groups(reference.model).cost.macs(),
    )


@register(
    "cost/file_size",
    "no more bytes than the budget allows",
    "raise cost.file_bytes, or ship a smaller file",
)
def file_size(context: Context) -> Outcome:
    """Bytes of the file and of its external data.

    Policy: `cost.file_bytes.max` and `cost.file_bytes.max_growth`.
    """
    return _judged(
        context,
        context.policy.cost.file_bytes,
        Cost("cost/file_size", "bytes", total_bytes(context.path, context.model)),
        lambda reference: total_bytes(reference.path, reference.model),
    )


@register(
    "cost/peak_memory",
    "no more memory than the budget allows",
    "raise cost.peak_memory_bytes, or ship a model of smaller activations",
    runs=True,
)
def peak_memory(context: Context) -> Outcome:
    """How far the resident memory of a process rises by loading the model and running it once. Measured where
    the system tells (Linux).

    Policy: `cost.peak_memory_bytes.max` and `cost.peak_memory_bytes.max_growth`.
    """
    inputs = context.first().inputs
    value = context.process.peak_memory(context.path, inputs, context.device)
    if value is None:
        return skipped("this system does not tell the peak memory of a process")

    def of_reference(reference: ReferenceModel) -> int | None:
        given = context.reference_inputs(inputs)
        return context.process.peak_memory(reference.path, given, context.device)

    return _judged(
        context,
        context.policy.cost.peak_memory_bytes,
        Cost("cost/peak_memory", "bytes at the peak", value),
        of_reference,
    )


@register(
    "cost/operators",
    "the operators after optimisation are the expected ones",
    "look at what stands between the operators that are no longer fused",
    runs=True,
)
def operators(context: Context) -> Outcome:
    """A census of the operators that remain after onnxruntime's optimisation: fused ones show that the
    fusions still happen. A lost fusion costs latency and changes no output.

    Policy: `cost.require_operators`, `cost.forbid_operators`. With a baseline, a fused operator of then
    that is gone now fails.
    """
    found = dict(context.node_count.operators)
    policy = context.policy.cost
    problems = [f"{name} is missing" for name in policy.require_operators if name not in found]
    problems += [f"{name} is there {found[name]} times" for name in policy.forbid_operators if name in found]
    if context.baseline is not None:
        before = context.baseline.measured.get("cost/operators", {}).get("operators", {})
        lost = [name for name in before if _is_fused(name) and name not in found]
        problems += [f"{name} was there in the baseline and is gone" for name in lost]
    counted = ", ".join(f"{count} {name}" for name, count in found.items())
    if problems:
        return failed(f"{'; '.join(problems)}; found are {counted}", operators=found)
    return passed(counted or "no operators", operators=found)


def count_parameters(model: ir.Model) -> int:
    """Elements of all parameters, in initializers and in Constant nodes, those of subgraphs included."""
    tensors: list[tuple[ir.Value, ir.TensorProtocol]] = []
    for graph in model.graphs():
        held = ((value, value.const_value) for value in graph.initializers.values())
        tensors += [(value, tensor) for value, tensor in held if tensor is not None]
    for node in model.graph.all_nodes():
        if is_onnx(node, "Constant") and "value" in node.attributes:
            tensors.append((node.outputs[0], node.attributes["value"].as_tensor()))
    return sum(tensor.size for value, tensor in tensors if is_parameter(value, tensor))


def _is_fused(operator: str) -> bool:
    return operator.startswith(
        ("Fused", "QLinear", "Skip", "BiasGelu", "FastGelu", "QuickGelu")
    ) or operator in (
        "Attention",
        "MultiHeadAttention",
        "EmbedLayerNormalization",
        "LayerNormalization",
        "Gelu",
    )


@dataclass(frozen=True)
class Cost:
    """One measured cost.

    Attributes:
        check: the id of the check that measured it.
        unit: what is counted.
        value: how many.
    """

    check: str
    unit: str
    value: int


def _judged(
    context: Context,
    limit: CostLimit,
    cost: Cost,
    of_reference: Callable[[ReferenceModel], int | None],
) -> Outcome:
    """Against the absolute limit, and the growth over the baseline or else the reference."""
    problems = []
    value = cost.value
    if limit.max is not None and value > limit.max:
        problems.append(f"the budget is {limit.max}")
    before = None if context.baseline is None else context.baseline.value(cost.check)
    what = "baseline"
    if before is None and limit.max_growth is not None and context.reference is not None:
        before, what = of_reference(context.reference), "reference"
    text = f"{value} {cost.unit}"
    if before is not None:
        text += f", {what} {before:.0f}"
        growth = (value - before) / before if before else float(value > 0)
        if limit.max_growth is not None and growth > limit.max_growth:
            problems.append(f"allowed growth is {limit.max_growth:.1%}, it is {growth:.1%}")
    elif limit.max_growth is not None:
        return failed(
            f"{text}: max_growth is set, and there is neither a baseline nor a reference", value=value
        )
    if problems:
        return failed(f"{text}: {'; '.join(problems)}", value=value)
    return passed(text, value=value)
