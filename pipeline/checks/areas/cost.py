"""Cost: parameters, MACs, bytes, memory and operators, against budgets and the baseline."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from growpipe.checks.areas.safety import total_bytes
from growpipe.checks.context import Context
from growpipe.checks.policy import Budget
from growpipe.checks.registry import check
from growpipe.checks.report import Outcome, failed, passed, skipped
from growpipe.graph_ops.cost.cost import is_running_statistic
from growpipe.graph_ops.groups.channel_groups import find_channel_groups

__all__: list[str] = []


@check("cost/parameters", "no more parameters than the budget allows")
def parameters(context: Context) -> Outcome:
    """The elements of all floating-point weights, those of quantised ones included.

    Policy: `cost.parameters.max` (absolute) and `cost.parameters.max_growth` (0.1: 10 % more than the
    baseline, or than the reference where there is no baseline).
    """
    return _judged(
        context,
        "cost/parameters",
        "parameters",
        count_parameters(context.model),
        context.policy.cost.parameters,
        lambda: None if context.reference_model is None else count_parameters(context.reference_model),
    )


@check("cost/macs", "no more multiply-accumulates than the budget allows", runs=True)
def macs(context: Context) -> Outcome:
    """Multiply-accumulates of convolutions and matrix products for one sample; an axis of unknown length
    other than the batch counts as 1.

    Policy: `cost.macs.max` and `cost.macs.max_growth`.
    """
    other = context.reference_model
    return _judged(
        context,
        "cost/macs",
        "MACs per sample",
        find_channel_groups(context.model).cost.macs(),
        context.policy.cost.macs,
        lambda: None if other is None else find_channel_groups(other).cost.macs(),
    )


@check("cost/file_size", "no more bytes than the budget allows")
def file_size(context: Context) -> Outcome:
    """Bytes of the file and of its external data.

    Policy: `cost.file_bytes.max` and `cost.file_bytes.max_growth`.
    """

    def of_reference() -> int | None:
        if context.reference is None or context.reference_model is None:
            return None
        return total_bytes(context.reference, context.reference_model)

    return _judged(
        context,
        "cost/file_size",
        "bytes",
        total_bytes(context.path, context.model),
        context.policy.cost.file_bytes,
        of_reference,
    )


@check("cost/peak_memory", "no more memory than the budget allows", runs=True)
def peak_memory(context: Context) -> Outcome:
    """How far the resident memory of a process rises by loading the model and running it once. Measured where
    the system tells (Linux).

    Policy: `cost.peak_memory_bytes.max` and `cost.peak_memory_bytes.max_growth`.
    """
    inputs = context.first().inputs

    def measure(path: Path, reference: bool) -> int | None:
        given = context.reference_inputs(inputs) if reference else inputs
        arguments = {"model": str(path), "device": context.device}
        value = context.sandbox.call("peak_memory", arguments, given).data["bytes"]
        return None if value is None else int(value)

    value = measure(context.path, False)
    if value is None:
        return skipped("this system does not tell the peak memory of a process")
    return _judged(
        context,
        "cost/peak_memory",
        "bytes at the peak",
        value,
        context.policy.cost.peak_memory_bytes,
        lambda: None if context.reference is None else measure(context.reference, True),
    )


@check("cost/operators", "the operators after optimisation are the expected ones", runs=True)
def operators(context: Context) -> Outcome:
    """A census of the operators that remain after onnxruntime's optimisation: fused ones show that the
    fusions still happen. A lost fusion costs latency and changes no output.

    Policy: `cost.require_operators`, `cost.forbid_operators`. With a baseline, a fused operator of then
    that is gone now fails.
    """
    found: dict[str, int] = context.census["operators"]
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
    """Elements of the tensors that hold weights: floating, or integers that are dequantised."""
    total = 0
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or not len(tensor.shape) or is_running_statistic(value):
                continue
            quantised = any(
                node.op_type in ("DequantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger")
                or node.op_type.startswith("ConvInteger")
                for node, _ in value.uses()
            )
            if tensor.dtype.is_floating_point() or quantised:
                total += tensor.size
    return total


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


def _judged(context: Context, check_id: str, unit: str, value: int, budget: Budget, other: object) -> Outcome:
    """Against the absolute budget, and the growth over the baseline or the reference."""
    assert callable(other)
    problems = []
    if budget.max is not None and value > budget.max:
        problems.append(f"the budget is {budget.max}")
    before = None if context.baseline is None else context.baseline.value(check_id)
    what = "baseline"
    if before is None and budget.max_growth is not None:
        before, what = other(), "reference"
    text = f"{value} {unit}"
    if before is not None:
        text += f", {what} {before:.0f}"
        growth = (value - before) / before if before else float(value > 0)
        if budget.max_growth is not None and growth > budget.max_growth:
            problems.append(f"allowed growth is {budget.max_growth:.1%}, it is {growth:.1%}")
    elif budget.max_growth is not None:
        return failed(
            f"{text}: max_growth is set, and there is neither a baseline nor a reference", value=value
        )
    if problems:
        return failed(f"{text}: {'; '.join(problems)}", value=value)
    return passed(text, value=value)
