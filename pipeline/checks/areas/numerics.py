"""Numerics: are the numbers finite, the same every time, and the same as those of the reference?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from growpipe.checks.context import Context, InputSet, as_torch_outputs
from growpipe.checks.measure.compare import Divergence, compare
from growpipe.checks.measure.inputs import batch_dims, is_batch_name
from growpipe.checks.measure.tolerance import Tolerance, default_relative, with_float64
from growpipe.checks.measure.trace import last_of_module
from growpipe.checks.registry import check
from growpipe.checks.report import Finding, Outcome, failed, passed, skipped, warned
from growpipe.graph_ops.errors import GrowpipeError

__all__: list[str] = []

SHOWN = 20
Outputs = Mapping[str, npt.NDArray]


@check("numerics/weights", "no NaN and no overflow among the weights")
def weights(context: Context) -> Outcome:
    """A NaN among the weights, or an infinity such as a conversion to float16 leaves where a weight was too
    large. Minus infinity alone is allowed: masks are made of it; and so are scalars, as limits of a Clip.
    """
    findings = []
    for name, tensor in _tensors(context.model):
        if tensor.dtype.is_floating_point():
            values = tensor.numpy()
            if values.dtype.itemsize < 4 or values.dtype.kind == "V":
                values = values.astype(np.float32)
            nans = int(np.isnan(values).sum())
            infinite = int(np.isposinf(values).sum()) if values.size > 1 else 0
            if nans or infinite:
                findings.append(
                    Finding(f"{nans} NaN and {infinite} infinite of {values.size} values", tensor=name)
                )
    if findings:
        return failed(f"{len(findings)} tensors are not finite", *findings[:SHOWN])
    return passed("all weights are finite")


@check("numerics/finite", "no NaN and no infinity in the outputs", runs=True)
def finite(context: Context) -> Outcome:
    """The outputs on random inputs and on those of --data. The first node that makes a NaN or an infinity is
    named. An output that is a mask of minus infinities is allowed.
    """
    for given in context.sets:
        outputs = context.runs[given.label]
        bad = {
            name: count
            for name, value in outputs.items()
            if value.dtype.kind == "f"
            and (count := int(np.count_nonzero(np.isnan(value) | np.isposinf(value))))
        }
        if bad:
            return failed(
                f"outputs on {given.label} are not finite: "
                + ", ".join(f"{count} values of {name!r}" for name, count in bad.items()),
                *_place(context, given, "the first node that is not finite"),
            )
    return passed(f"all outputs on {len(context.sets)} sets of inputs are finite")


@check("numerics/determinism", "the same inputs give the same outputs", runs=True)
def determinism(context: Context) -> Outcome:
    """Runs twice on the same inputs. Dropout in training mode and random operators differ.

    Policy: `numerics.relative` or the default of the model's precision.
    """
    given = context.first()
    tolerance = Tolerance.of(context.policy, default_relative(context.model))
    again = context.run(given.inputs)
    divergence = compare(context.runs[given.label], again)
    problems = tolerance.problems(divergence)
    if problems:
        return failed(
            f"two runs on the same inputs differ: {'; '.join(problems)}",
            *_random_nodes(context),
            **_measured(divergence),
        )
    return passed("two runs agree", **_measured(divergence))


@check("numerics/optimisation", "optimisation does not change the outputs", runs=True)
def optimisation(context: Context) -> Outcome:
    """Compares onnxruntime's highest level of graph optimisation with none at all: a fusion that is wrong for
    this model shows here, before a user meets it.

    Policy: `numerics.relative` or the default of the model's precision.
    """
    tolerance = Tolerance.of(context.policy, default_relative(context.model))
    worst: Divergence | None = None
    for given in context.sets:
        plain = context.run(given.inputs, optimised=False)
        divergence = compare(plain, context.runs[given.label])
        problems = tolerance.problems(divergence)
        if problems:
            return failed(
                f"optimised and plain differ on {given.label}: {'; '.join(problems)}",
                *_place(
                    context,
                    given,
                    "the first node that differs",
                    limit=tolerance.relative,
                    reference=str(context.path),
                    reference_optimised=True,
                ),
                **_measured(divergence),
            )
        worst = _worse(worst, divergence)
    assert worst is not None
    return passed(f"they agree: {_told(worst)}", **_measured(worst))


@check("numerics/batch", "a sample gives the same alone and in a batch", runs=True)
def batch(context: Context) -> Outcome:
    """Runs a batch, then its samples one by one. Batch statistics of training mode, a batch size that was
    fixed in a Reshape, and normalisation over the wrong axis make them differ. Outputs that are no list of
    samples are left out. Where the dynamic dimension on axis 0 has no name that says that it is the batch, a
    difference is a warning only: call it `batch`.

    Policy: `numerics.batch_dim`; `numerics.relative` or the default of the model's precision.
    """
    specs = context.specs or ()
    settings = context.policy.numerics
    dims = (settings.batch_dim,) if settings.batch_dim else batch_dims(specs)
    free = {s.name for s in specs if s.first in dims and s.first not in settings.dims}
    if len(dims) != 1 or not free:
        return skipped("it has no dynamic batch on axis 0")
    size = max(2, *context.policy.numerics.batch_sizes, 2)
    given = context.random_set(size, 101, f"a batch of {size}")
    if given is None:
        return skipped("no random inputs can be made for it")
    tolerance = Tolerance.of(context.policy, default_relative(context.model))
    together = context.run(given.inputs)
    alone = [
        context.run({k: v[i : i + 1] if k in free else v for k, v in given.inputs.items()})
        for i in range(size)
    ]
    listed = [
        name
        for name, value in together.items()
        if value.shape[:1] == (size,) and all(a[name].shape == (1, *value.shape[1:]) for a in alone)
    ]
    if not listed:
        return skipped("no output is a list of samples")
    divergence = compare(
        {name: np.concatenate([a[name] for a in alone]) for name in listed},
        {name: together[name] for name in listed},
    )
    problems = tolerance.problems(divergence)
    if problems:
        text = f"samples differ alone and in a batch of {size}: {'; '.join(problems)}"
        if settings.batch_dim or is_batch_name(dims[0]):
            return failed(text, **_measured(divergence))
        return warned(
            f"{text}; if {dims[0]!r} on axis 0 is the batch this is wrong: name it in numerics.batch_dim",
            **_measured(divergence),
        )
    return passed(f"they agree: {_told(divergence)}", **_measured(divergence))


@check("numerics/reference", "it computes what the reference computes", runs=True)
def reference(context: Context) -> Outcome:
    """Compares all outputs with those of --reference on the same inputs, such as the parent of a grown model,
    which at ε = 0 must compute the same. Where the reference can be evaluated in float64 the tolerance is a
    multiple of its own rounding error, else a default of the model's precision. On failure the first
    diverging node is named, and the module it was exported from.

    Policy: `numerics.relative`, `absolute`, `quantile`, `cosine`, `top1`, `float64`.
    """
    if context.reference is None or context.reference_model is None:
        return skipped("no reference model; give one with --reference")
    names = context.input_names
    doubles: Outputs | None = None
    note = ""
    first = context.first()
    if context.policy.numerics.float64 and context.policy.numerics.relative is None:
        try:
            doubles = context.sandbox.call(
                "run_float64",
                {"model": str(context.reference)},
                {names[k]: v for k, v in first.inputs.items() if k in names},
                seconds=context.policy.numerics.float64_seconds,
            ).arrays
        except GrowpipeError as error:
            note = str(error)
    runs = [(given, context.reference_run(given)) for given in context.sets]
    return _against(
        context,
        runs,
        doubles,
        note,
        default_relative(context.model, context.reference_model),
        {"reference": str(context.reference)},
    )


@check("numerics/torch", "it computes what the torch module computes", runs=True)
def torch(context: Context) -> Outcome:
    """Compares all outputs with those of the module of --torch, in eval mode, on the same inputs. The inputs
    go in by name where `forward` has parameters of these names, else by position. The tolerance is a multiple
    of the module's own rounding error, found by running it in float64.

    Policy: as `numerics/reference`.
    """
    module = context.torch
    if module is None:
        return skipped("no torch module; give one with --torch my_net.py:build")
    names = [str(v.name) for v in context.model.graph.outputs]
    runs = [
        (given, as_torch_outputs(names, module.run(given.inputs, False, ())[0])) for given in context.sets
    ]
    doubles: Outputs | None = None
    note = ""
    if context.policy.numerics.float64 and context.policy.numerics.relative is None:
        try:
            doubles = as_torch_outputs(names, module.run(context.first().inputs, True, ())[0])
        except GrowpipeError as error:
            note = str(error)
    tensors = last_of_module(context.proto)

    def inner(given: InputSet) -> dict[str, Any]:
        _, values = module.run(given.inputs, False, list(tensors))
        return {"expected": {tensors[name]: value for name, value in values.items()}}

    return _against(context, runs, doubles, note, default_relative(context.model), inner)


def _against(
    context: Context,
    runs: Sequence[tuple[InputSet, Outputs]],
    doubles: Outputs | None,
    note: str,
    relative: float,
    trace: Any,
) -> Outcome:
    """Compare every run with the reference's; the first pair is the one that ``doubles`` belongs to."""
    tolerance = Tolerance.of(context.policy, relative)
    measured: dict[str, Any] = {}
    if doubles is not None:
        tolerance, noise, note = with_float64(tolerance, doubles, runs[0][1], relative)
        measured["float64_noise"] = noise
    if note:
        measured["float64"] = note
    worst: Divergence | None = None
    for given, expected in runs:
        actual = context.runs[given.label]
        divergence = compare(expected, actual)
        problems = tolerance.problems(divergence)
        if problems:
            options = trace(given) if callable(trace) else dict(trace)
            return failed(
                f"outputs differ on {given.label}: {'; '.join(problems)}",
                *_place(context, given, "the first diverging node", limit=tolerance.relative, **options),
                **_measured(divergence),
                limit=tolerance.relative,
                **measured,
            )
        worst = _worse(worst, divergence)
    assert worst is not None
    return passed(
        f"they agree on {len(runs)} sets of inputs: {_told(worst)}, limit {tolerance.relative:.1e}",
        **_measured(worst),
        limit=tolerance.relative,
        **measured,
    )


def _place(
    context: Context,
    given: InputSet,
    what: str,
    *,
    limit: float = 0.0,
    reference: str | None = None,
    reference_optimised: bool = False,
    expected: Mapping[str, npt.NDArray] | None = None,
) -> tuple[Finding, ...]:
    """Where it began, if that can be found: the failure stands without."""
    arrays = dict(given.inputs)
    keys = None
    if expected is not None:
        keys = {tensor: f"expected/{i}" for i, tensor in enumerate(expected)}
        arrays.update({keys[tensor]: value for tensor, value in expected.items()})
    try:
        place = context.sandbox.call(
            "trace",
            {
                "model": str(context.path),
                "reference": reference,
                "limit": limit,
                "device": context.device,
                "reference_optimised": reference_optimised,
                "expected": keys,
            },
            arrays,
        ).data["place"]
    except GrowpipeError as error:
        return (Finding(f"{what} was not found: {error}"),)
    if place is None:
        return ()
    return (
        Finding(
            f"{what}: {place['detail']}", place["node"], place["operator"], place["tensor"], place["module"]
        ),
    )


def _random_nodes(context: Context) -> list[Finding]:
    names = ("Dropout", "RandomNormal", "RandomUniform", "Bernoulli", "Multinomial")
    return [
        Finding("it may be random", str(node.name or ""), node.op_type)
        for node in context.model.graph.all_nodes()
        if node.op_type.startswith(names)
    ][:SHOWN]


def _tensors(model: ir.Model) -> list[tuple[str, ir.TensorProtocol]]:
    found = []
    for graph in model.graphs():
        found += [(str(n), v.const_value) for n, v in graph.initializers.items() if v.const_value is not None]
    for node in model.graph.all_nodes():
        if node.op_type == "Constant" and "value" in node.attributes:
            found.append((str(node.outputs[0].name), node.attributes["value"].as_tensor()))
    return found


def _measured(divergence: Divergence) -> dict[str, Any]:
    return {
        "relative": divergence.relative,
        "max_abs": divergence.max_abs,
        "quantile": divergence.quantile,
        "cosine": divergence.cosine,
        "top1_agreement": divergence.top1_agreement,
        "output": divergence.output,
    }


def _worse(a: Divergence | None, b: Divergence) -> Divergence:
    return b if a is None or b.relative > a.relative else a


def _told(divergence: Divergence) -> str:
    return f"relative difference {divergence.relative:.1e}"
