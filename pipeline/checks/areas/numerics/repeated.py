"""The same numbers again: in a second run, without optimisation, alone and in a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from growpipe.checks.areas.numerics.places import figures, in_words, tolerance_of, where, worse
from growpipe.checks.context import Context
from growpipe.checks.input_sets import InputSet
from growpipe.checks.measure.compare import Divergence
from growpipe.checks.measure.dimensions import computed_from
from growpipe.checks.measure.inputs import InputSpec, batch_dims, is_batch_name, symbols
from growpipe.checks.measure.protos import all_nodes
from growpipe.checks.measure.tolerance import with_float64
from growpipe.checks.measure.trace import OtherModel
from growpipe.checks.registry import register
from growpipe.checks.report import Finding, Outcome, failed, passed, skipped, warned
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import GrowpipeError
from growpipe.graph_ops.operators import is_onnx

__all__: list[str] = []

Outputs = Mapping[str, AnyArray]
_RECURRENT = ("RNN", "LSTM", "GRU", "Scan", "Loop", "CumSum")


@register(
    "numerics/determinism",
    "the same inputs give the same outputs",
    "remove what is random: call model.eval() before the export, or fix the seeds",
    runs=True,
)
def determinism(context: Context) -> Outcome:
    """Runs twice on the same inputs. Dropout in training mode and random operators differ.

    Policy: `numerics.relative` or the default of the model's precision.
    """
    given = context.first()
    again = context.run(given.inputs)
    divergence, problems = tolerance_of(context).judge(context.runs.outputs[given.label], again)
    if problems:
        return failed(
            f"two runs on the same inputs differ: {'; '.join(problems)}",
            *_random_nodes(context),
            **figures(divergence),
        )
    return passed("two runs agree", **figures(divergence))


@register(
    "numerics/optimisation",
    "optimisation does not change the outputs",
    "ship it with a lower graph_optimization_level, or export the part that is named in another way",
    runs=True,
)
def optimisation(context: Context) -> Outcome:
    """Compares onnxruntime's highest level of graph optimisation with none at all: a fusion that is wrong for
    this model shows here, before a user meets it. If the two differ, both are compared with a run in float64,
    as far as that is possible: a difference of either that is not larger than the other's is rounding.

    Policy: `numerics.relative` or the default of the model's precision.
    """
    tolerance = tolerance_of(context)
    worst: Divergence | None = None
    for given in context.runs.ran:
        plain = context.run(given.inputs, optimised=False)
        optimised = context.runs.outputs[given.label]
        divergence, problems = tolerance.judge(plain, optimised)
        if problems and _is_rounding(context, given, plain, optimised):
            problems = []
        if problems:
            return failed(
                f"optimised and plain differ on {given.label}: {'; '.join(problems)}",
                *where(
                    "the first node that differs",
                    partial(
                        context.process.first_diverging,
                        context.path,
                        given.inputs,
                        tolerance.relative,
                        OtherModel(context.path, optimised=True),
                        context.device,
                    ),
                ),
                **figures(divergence),
            )
        worst = worse(worst, divergence)
    assert worst is not None
    return passed(f"they agree: {in_words(worst)}", **figures(worst))


def _is_rounding(context: Context, given: InputSet, plain: Outputs, optimised: Outputs) -> bool:
    """Whether the optimised model is about as close to the model in float64 as the plain one."""
    settings = context.policy.numerics
    if not settings.float64 or settings.relative is not None:
        return False
    try:
        doubles = context.process.run_float64(
            context.path, given.inputs, settings.float64_seconds, context.room
        )
        tolerance, _, doubt = with_float64(tolerance_of(context), doubles, plain)
    except GrowpipeError:
        return False
    return not doubt and not tolerance.judge(doubles, optimised)[1]


@register(
    "numerics/batch",
    "a sample gives the same alone and in a batch",
    "look for a batch size that is fixed in a Reshape, and for statistics over the batch",
    runs=True,
)
def batch(context: Context) -> Outcome:
    """Runs a batch, then its samples one by one. Batch statistics of training mode, a batch size that was
    fixed in a Reshape, and normalisation over the wrong axis make them differ.

    The batch is the symbolic dimension whose name says so (`batch`, `N`), or that of `numerics.batch_dim`; an
    input is cut on the axis where that dimension stands. Outputs that do not list samples are left out. In
    the profile `release` a dimension of another name on axis 0 is tried too, and a difference is a warning.

    Policy: `numerics.batch_dim`; `numerics.relative` or the default of the model's precision.
    """
    dim = _batch_dim(context)
    axes = _axes_of(dim, context.specs or ())
    if not dim or not axes:
        return skipped("no dimension is known to be a dynamic batch; name it in numerics.batch_dim")
    unfit = [label for label in context.runs.errors if "batch" in label]
    if unfit:
        return skipped(f"it does not run on {unfit[0]} (see structure/run)")
    size = max(2, *context.policy.numerics.batch_sizes)
    given = context.runs.maker.random(size, 101, f"a batch of {size}", context.room)
    together = context.run(given.inputs)
    alone = [
        context.run(
            {
                name: _sample(array, axes[name], i) if name in axes else array
                for name, array in given.inputs.items()
            }
        )
        for i in range(size)
    ]
    listed = {
        name: axis for name in together if (axis := _list_axis(together[name], alone[0][name])) is not None
    }
    if not listed:
        return skipped("no output is a list of samples")
    divergence, problems = tolerance_of(context).judge(
        {name: np.concatenate([a[name] for a in alone], axis) for name, axis in listed.items()},
        {name: together[name] for name in listed},
    )
    if not problems:
        return passed(f"they agree: {in_words(divergence)}", **figures(divergence))
    text = f"samples differ alone and in a batch of {size}: {'; '.join(problems)}"
    if not context.policy.numerics.batch_dim and not context.policy.is_strict and _has_state(context):
        return skipped(f"{text}; the graph has recurrent nodes, which may carry state from one to the next")
    if context.policy.numerics.batch_dim or is_batch_name(dim):
        return failed(text, **figures(divergence))
    return warned(
        f"{text}; if {dim!r} on axis 0 is the batch this is wrong: name it in numerics.batch_dim",
        **figures(divergence),
    )


def _batch_dim(context: Context) -> str:
    """The one symbolic dimension that is the batch; empty if there is none, or more than one."""
    settings, specs = context.policy.numerics, context.specs or ()
    if settings.batch_dim:
        return settings.batch_dim
    dims = [dim for dim in batch_dims(specs) if context.policy.is_strict or is_batch_name(dim)]
    return dims[0] if len(dims) == 1 and dims[0] not in settings.dims else ""


def _axes_of(dim: str, specs: Sequence[InputSpec]) -> dict[str, int]:
    """By input, the axis of the batch; empty if an input mixes the batch with something else."""
    names = symbols(specs)
    if any(dim in computed_from(name, names) for name in names):
        return {}
    return {spec.name: spec.shape.index(dim) for spec in specs if dim in spec.shape}


def _sample(array: AnyArray, axis: int, position: int) -> AnyArray:
    return array.take([position], axis)


def _list_axis(together: AnyArray, alone: AnyArray) -> int | None:
    """The axis on which an output lists the samples; None if it is not a list of samples."""
    if together.ndim != alone.ndim:
        return None
    differing = [axis for axis, (n, m) in enumerate(zip(together.shape, alone.shape, strict=True)) if n != m]
    return differing[0] if len(differing) == 1 and alone.shape[differing[0]] == 1 else None


def _has_state(context: Context) -> bool:
    """Whether the graph may carry something from one position of an axis to the next."""
    return any(is_onnx(node, *_RECURRENT) for node in all_nodes(context.proto))


def _random_nodes(context: Context) -> list[Finding]:
    names = ("Dropout", "RandomNormal", "RandomUniform", "Bernoulli", "Multinomial")
    return [
        Finding("it may be random", str(node.name or ""), node.op_type)
        for node in context.model.graph.all_nodes()
        if node.op_type.startswith(names)
    ]
