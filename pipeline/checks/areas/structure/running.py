"""It runs, and what comes out is what it declares."""

from __future__ import annotations

import shlex

import ml_dtypes
import numpy as np
import onnx_ir as ir

from growpipe.checks.child.model_process import ModelCrashed, ModelHung
from growpipe.checks.context import Context
from growpipe.checks.measure.dimensions import computed_from, size_of
from growpipe.checks.measure.memory import NotEnoughRoom
from growpipe.checks.registry import register
from growpipe.checks.report import Finding, Outcome, failed, passed, skipped, warned
from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.onnx_tools.width_check import contradicting_widths

__all__: list[str] = []


@register(
    "structure/run",
    "it runs in onnxruntime",
    "run it on inputs of your own with --data inputs.npz; if it fails on those too, export again",
)
def run(context: Context) -> Outcome:
    """A real run, in a child process with limits of time and memory, on seeded random inputs of several batch
    sizes and on the inputs of --data. A model that crashes, hangs or wants too much memory fails here.

    Some models take no inputs that can be made without knowing them: sizes that must fit each other, numbers
    that must mean something. If such a model runs on no random inputs, and nothing contradicts itself in its
    graph, the check is skipped and says which sizes to give; so it is a warning if the model runs alone and
    not in a batch. The profile `release` fails both.

    Policy: `numerics.batch_sizes`, `numerics.seeds`, `numerics.dims` (sizes of symbolic dimensions),
    `limits.seconds`, `limits.memory_mb`.
    """
    context.process.providers(context.path, context.device)  # a model that cannot be loaded fails here
    runs = context.runs
    if not runs.ran and not runs.errors:
        return skipped("no inputs can be made for it (a sequence, or an unknown rank); give some with --data")
    if not runs.errors:
        return passed(f"it ran on {len(runs.ran)} sets of inputs: {', '.join(runs.outputs)}")
    (label, error), *others = runs.errors.items()
    message = f"it does not run on {label}: {error}"
    findings = [Finding(f"on {on}: {e}") for on, e in others]
    if context.policy.is_strict or not _is_excused(context, error):
        return failed(message, *findings, advice=_sizes_to_give(context))
    if runs.ran:
        advice = f"feed it as on {runs.ran[0].label}, or export it with a batch that is really dynamic"
        return warned(message, *findings, advice=advice)
    return skipped(f"random inputs of these sizes do not fit it: {_sizes_to_give(context)} ({error})")


def _is_excused(context: Context, error: CheckFailed) -> bool:
    """Whether the inputs may be at fault, rather than the model."""
    runs = context.runs
    is_grave = any(
        isinstance(e, (ModelCrashed, ModelHung, NotEnoughRoom)) or "limits.memory_mb" in str(e)
        for e in runs.errors.values()
    )
    if is_grave or any(planned.label in runs.errors for planned in runs.maker.plan(context.datasets, ())):
        return False
    if runs.ran:
        return True
    inference = context.inference
    if inference.problems or inference.model is None or contradicting_widths(inference.model):
        return False
    return bool(runs.maker.open_dims()) or any(spec.is_mask for spec in context.specs or ())


def _sizes_to_give(context: Context) -> str:
    """The command that gives sizes, or inputs if no size is open."""
    model = shlex.quote(str(context.path.name))
    open_dims = sorted(context.runs.maker.open_dims())
    if not open_dims:
        return f"give inputs: growpipe check {model} --data inputs.npz"
    settings = (shlex.quote(f'numerics.dims."{name}"=SIZE') for name in open_dims)
    return (
        f"give sizes: growpipe check {model} {' '.join(f'--set {s}' for s in settings)}, or --data inputs.npz"
    )


@register(
    "structure/outputs",
    "the outputs have the declared types and shapes",
    "declare what comes out, or leave the shape out: servers allocate by the declaration",
    runs=True,
)
def outputs(context: Context) -> Outcome:
    """What comes out is what the model declares: number and names of outputs, type, rank, fixed sizes, and
    symbolic sizes that are equal to each other wherever they have one name. Servers allocate by the
    declaration; onnxruntime itself only warns.
    """
    findings: list[Finding] = []
    for given in context.runs.ran:
        sizes = dict(context.sizes_on(given))
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
        expected = dim if isinstance(dim, int) else _expected(dim, sizes, size)
        if expected != size:
            return f"declared is shape {shown}, it gives {list(actual.shape)}"
    return ""


def _expected(dim: str, sizes: dict[str, int], actual: int) -> int:
    """What a symbolic size must be, from the sizes of the inputs and of the outputs so far."""
    if dim == "?":
        return actual
    if dim not in sizes and computed_from(dim, sizes.keys()):
        return size_of(dim, sizes)
    return sizes.setdefault(dim, actual)
