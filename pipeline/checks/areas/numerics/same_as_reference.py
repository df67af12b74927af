"""The same numbers as a reference: another model, or the torch module that the model was exported from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from growpipe.checks.areas.numerics.places import figures, in_words, tolerance_of, where, worse
from growpipe.checks.context import Context, TorchReference
from growpipe.checks.input_sets import InputSet
from growpipe.checks.measure.compare import Divergence
from growpipe.checks.measure.tolerance import Tolerance, with_float64
from growpipe.checks.measure.trace import KnownValues, OtherModel, Place, last_of_module
from growpipe.checks.registry import register
from growpipe.checks.report import Outcome, failed, passed, skipped
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import CheckFailed, GrowpipeError, UsageError

__all__: list[str] = []

Outputs = Mapping[str, AnyArray]


@dataclass(frozen=True)
class _Expected:
    """What the model must compute.

    Attributes:
        runs: inputs and right outputs; the first pair belongs to ``doubles``.
        doubles: computes the outputs of the first pair in float64.
        tolerance: without a float64 run.
        first_diverging: where the model departs from the reference, on these inputs and above this limit.
    """

    runs: Sequence[tuple[InputSet, Outputs]]
    doubles: Callable[[], Outputs]
    tolerance: Tolerance
    first_diverging: Callable[[InputSet, float], Place | None]


@register(
    "numerics/reference",
    "it computes what the reference computes",
    "look at the node that is named: up to it both compute the same",
    runs=True,
)
def reference(context: Context) -> Outcome:
    """Compares all outputs with those of --reference on the same inputs, such as the parent of a grown model,
    which at ε = 0 must compute the same. Where the reference can be evaluated in float64 the tolerance is a
    multiple of its own rounding error, else a default of the model's precision. On failure the first
    diverging node is named, and the module it was exported from.

    Policy: `numerics.relative`, `absolute`, `quantile`, `cosine`, `top1`, `float64`.
    """
    other = context.reference
    if other is None:
        return skipped("no reference model; give one with --reference")

    def doubles() -> Outputs:
        inputs = context.reference_inputs(context.first().inputs)
        seconds = context.policy.numerics.float64_seconds
        return context.process.run_float64(other.path, inputs, seconds, context.room)

    def first_diverging(given: InputSet, limit: float) -> Place | None:
        against = OtherModel(other.path)
        return context.process.first_diverging(context.path, given.inputs, limit, against, context.device)

    expected = _Expected(
        runs=[(given, context.reference_run(given)) for given in context.runs.ran],
        doubles=doubles,
        tolerance=tolerance_of(context, other.model),
        first_diverging=first_diverging,
    )
    return _against(context, expected)


@register(
    "numerics/torch",
    "it computes what the torch module computes",
    "look at the module that is named: up to it both compute the same",
    runs=True,
)
def torch(context: Context) -> Outcome:
    """Compares all outputs with those of the module of --torch, in eval mode, on the same inputs. The inputs
    go in by name if `forward` has parameters of these names; a dict or a list is put together from the names
    that the exporter gave its parts. If the names do not tell, the ways to call `forward` are tried in turn,
    and the first that agrees counts. The tolerance is a multiple of the module's own rounding error, found
    by running it in float64.

    Policy: as `numerics/reference`.
    """
    module = context.torch
    if module is None:
        return skipped("no torch module; give one with --torch my_net.py:build")
    names = [str(v.name) for v in context.model.graph.outputs]
    tensors = last_of_module(context.proto)
    way = _way_to_call(context, module, names)

    def doubles() -> Outputs:
        return _by_name(names, module.run(context.first().inputs, way=way, double=True).outputs)

    def first_diverging(given: InputSet, limit: float) -> Place | None:
        inner = module.run(given.inputs, way=way, modules=list(tensors)).inner
        values = KnownValues({tensors[name]: value for name, value in inner.items()})
        return context.process.first_diverging(context.path, given.inputs, limit, values, context.device)

    expected = _Expected(
        runs=[
            (given, _by_name(names, module.run(given.inputs, way=way).outputs)) for given in context.runs.ran
        ],
        doubles=doubles,
        tolerance=tolerance_of(context),
        first_diverging=first_diverging,
    )
    return _against(context, expected)


def _way_to_call(context: Context, module: TorchReference, names: Sequence[str]) -> int:
    """The way that agrees with the model; the likeliest if there is one way only, or none agrees."""
    given = context.first()
    tolerance = tolerance_of(context)
    calls = module.calls(list(given.inputs))
    if len(calls) == 1:
        return 0
    raised = 0
    for way in range(len(calls)):
        try:
            outputs = _by_name(names, module.run(given.inputs, way=way).outputs)
            if not tolerance.judge(outputs, context.runs.outputs[given.label])[1]:
                return way
        except CheckFailed:
            raised += 1
    if raised == len(calls):
        raise UsageError(
            f"the torch module cannot be called with the model's inputs {list(given.inputs)}, tried were "
            f"{'; '.join(calls)}; wrap the module in one whose forward takes them"
        )
    return 0


def _by_name(names: Sequence[str], values: Sequence[AnyArray]) -> dict[str, AnyArray]:
    """The outputs of a torch module under the names of the model's outputs."""
    if len(names) != len(values):
        raise CheckFailed(f"the torch module gives {len(values)} outputs, the model {len(names)}")
    return dict(zip(names, values, strict=True))


def _against(context: Context, expected: _Expected) -> Outcome:
    """Compare every run with what is expected."""
    settings = context.policy.numerics
    tolerance = expected.tolerance
    measured: dict[str, Any] = {}
    if settings.float64 and settings.relative is None:
        try:
            doubles = expected.doubles()
        except GrowpipeError as error:
            measured["float64"] = str(error)
        else:
            first = expected.runs[0][1]
            tolerance, noise, note = with_float64(tolerance, doubles, first)
            measured |= {"float64_noise": noise} | ({"float64": note} if note else {})
    measured["limit"] = tolerance.relative
    worst: Divergence | None = None
    for given, right in expected.runs:
        divergence, problems = tolerance.judge(right, context.runs.outputs[given.label])
        if problems:
            return failed(
                f"outputs differ on {given.label}: {'; '.join(problems)}",
                *where(
                    "the first diverging node",
                    partial(expected.first_diverging, given, tolerance.relative),
                ),
                **figures(divergence),
                **measured,
            )
        worst = worse(worst, divergence)
    assert worst is not None
    return passed(
        f"they agree on {len(expected.runs)} sets of inputs: {in_words(worst)}, "
        f"limit {tolerance.relative:.1e}",
        **figures(worst),
        **measured,
    )
