"""The same numbers as a reference: another model, or the torch module that the model was exported from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from growpipe.checks.areas.numerics.places import figures, in_words, tolerance_of, where, worse
from growpipe.checks.context import Context, TorchReference
from growpipe.checks.input_sets import InputSet
from growpipe.checks.measure.compare import Divergence
from growpipe.checks.measure.informative import any_is_informative, is_informative, paired_hidden_values
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
        behind: the values that an output is computed from, on these inputs: of the reference, of the model.
    """

    runs: Sequence[tuple[InputSet, Outputs]]
    doubles: Callable[[], Outputs]
    tolerance: Tolerance
    first_diverging: Callable[[InputSet, float], Place | None]
    behind: Callable[[str, InputSet], tuple[Outputs, Outputs]] = lambda output, given: ({}, {})


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

    Outputs that hardly depend on the inputs, such as those of a sigmoid that saturates, are compared by the
    values behind their last saturating operators. If no output would show a fault, the check is skipped.

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

    names = [str(output.name) for output in context.model.graph.outputs]
    hidden = dict(zip(names, paired_hidden_values(other.model, context.model), strict=False))

    def behind(output: str, given: InputSet) -> tuple[Outputs, Outputs]:
        pairs = hidden.get(output, {})
        if not pairs:
            return {}, {}
        inputs = context.reference_inputs(given.inputs)
        right = context.process.run_inner(other.path, inputs, list(pairs), context.device, room=context.room)
        ours = context.process.run_inner(
            context.path, given.inputs, list(pairs.values()), context.device, room=context.room
        )
        return {pairs[name]: value for name, value in right.items()}, ours

    expected = _Expected(
        runs=[(given, context.reference_run(given)) for given in context.runs.ran],
        doubles=doubles,
        tolerance=tolerance_of(context, other.model),
        first_diverging=first_diverging,
        behind=behind,
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
    return _Comparison(context, expected, tolerance, measured).outcome()


class _Differs(Exception):
    """The model computes something else; the outcome says what."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


@dataclass(frozen=True)
class _Comparison:
    """Runs of the model beside what is expected of them.

    Attributes:
        context: holds the model and its runs.
        expected: what the model must compute.
        tolerance: how far it may be from that.
        measured: figures for the report.
    """

    context: Context
    expected: _Expected
    tolerance: Tolerance
    measured: dict[str, Any]

    def outcome(self) -> Outcome:
        """Failed at the first difference; skipped if none would have shown."""
        runs = self.expected.runs
        names = list(self._outputs(runs[0][0]))
        try:
            worst: Divergence | None = None
            for given, right in runs:
                worst = worse(worst, self._agreed(given, right, self._outputs(given)))
            unshown = [name for name in names if not self._is_shown(name)]
        except _Differs as differs:
            return differs.outcome
        assert worst is not None
        if len(unshown) == len(names) and self.context.specs:
            return skipped(
                "the inputs hardly change what the model computes, so no fault would show; "
                "give real inputs with --data"
            )
        remark = f"; a fault in {unshown[0]!r} would not show on these inputs" if unshown else ""
        return passed(
            f"they agree on {len(runs)} sets of inputs: {in_words(worst)}, "
            f"limit {self.tolerance.relative:.1e}{remark}",
            **figures(worst),
            **self.measured,
        )

    def _outputs(self, given: InputSet) -> Outputs:
        return self.context.runs.outputs[given.label]

    @cached_property
    def _all_runs(self) -> list[tuple[InputSet, Outputs]]:
        """The runs, and one on random inputs of another seed, of the shapes of the first random ones."""
        runs = [(given, self._outputs(given)) for given, _ in self.expected.runs]
        random = next((given for given, _ in runs if given.is_random), None)
        maker, settings = self.context.runs.maker, self.context.policy.numerics
        if random is not None and maker.specs and len(settings.seeds) == 1:
            try:
                other = maker.random(settings.batch_sizes[0], settings.seeds[0] + 1, "", self.context.room)
                runs.append((other, self.context.run(other.inputs)))
            except (CheckFailed, UsageError):
                pass  # such as an index beyond a table: the model ran on the first by luck
        return runs

    def _agreed(self, given: InputSet, right: Outputs, ours: Outputs) -> Divergence:
        divergence, problems = self.tolerance.judge(right, ours)
        if not problems:
            return divergence
        limit = self.tolerance.relative
        place = where("the first diverging node", partial(self.expected.first_diverging, given, limit))
        raise _Differs(
            failed(
                f"outputs differ on {given.label}: {'; '.join(problems)}",
                *place,
                **figures(divergence),
                **self.measured,
            )
        )

    def _is_shown(self, output: str) -> bool:
        """Whether a fault would have shown in an output, or in what it is computed from."""
        limit = self.tolerance.relative
        if is_informative([outputs[output] for _, outputs in self._all_runs], limit):
            return True
        values: list[Outputs] = []
        for given, _ in self._all_runs:
            try:
                right, ours = self.expected.behind(output, given)
            except CheckFailed:
                return False  # no inner values, such as those of a model of gigabytes
            if not right:
                return False
            self._agreed(given, right, ours)
            values.append(ours)
        return any_is_informative(values, limit)
