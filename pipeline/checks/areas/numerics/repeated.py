"""The same numbers again: in a second run, without optimisation, alone and in a batch."""

from __future__ import annotations

from functools import partial

import numpy as np

from growpipe.checks.areas.numerics.places import figures, in_words, tolerance_of, where, worse
from growpipe.checks.context import Context
from growpipe.checks.measure.compare import Divergence, compare
from growpipe.checks.measure.inputs import batch_dims, is_batch_name
from growpipe.checks.measure.tolerance import default_relative
from growpipe.checks.measure.trace import OtherModel
from growpipe.checks.registry import register
from growpipe.checks.report import Finding, Outcome, failed, passed, skipped, warned

__all__: list[str] = []


@register("numerics/determinism", "the same inputs give the same outputs", runs=True)
def determinism(context: Context) -> Outcome:
    """Runs twice on the same inputs. Dropout in training mode and random operators differ.

    Policy: `numerics.relative` or the default of the model's precision.
    """
    given = context.first()
    tolerance = tolerance_of(context.policy.numerics, default_relative(context.model))
    again = context.run(given.inputs)
    divergence = compare(context.runs.outputs[given.label], again)
    problems = tolerance.problems(divergence)
    if problems:
        return failed(
            f"two runs on the same inputs differ: {'; '.join(problems)}",
            *_random_nodes(context),
            **figures(divergence),
        )
    return passed("two runs agree", **figures(divergence))


@register("numerics/optimisation", "optimisation does not change the outputs", runs=True)
def optimisation(context: Context) -> Outcome:
    """Compares onnxruntime's highest level of graph optimisation with none at all: a fusion that is wrong for
    this model shows here, before a user meets it.

    Policy: `numerics.relative` or the default of the model's precision.
    """
    tolerance = tolerance_of(context.policy.numerics, default_relative(context.model))
    worst: Divergence | None = None
    for given in context.runs.ran:
        plain = context.run(given.inputs, optimised=False)
        divergence = compare(plain, context.runs.outputs[given.label])
        problems = tolerance.problems(divergence)
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


@register("numerics/batch", "a sample gives the same alone and in a batch", runs=True)
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
    size = max(2, *settings.batch_sizes, 2)
    given = context.runs.maker.random(size, 101, f"a batch of {size}", context.room)
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
    problems = tolerance_of(settings, default_relative(context.model)).problems(divergence)
    if problems:
        text = f"samples differ alone and in a batch of {size}: {'; '.join(problems)}"
        if settings.batch_dim or is_batch_name(dims[0]):
            return failed(text, **figures(divergence))
        return warned(
            f"{text}; if {dims[0]!r} on axis 0 is the batch this is wrong: name it in numerics.batch_dim",
            **figures(divergence),
        )
    return passed(f"they agree: {in_words(divergence)}", **figures(divergence))


def _random_nodes(context: Context) -> list[Finding]:
    names = ("Dropout", "RandomNormal", "RandomUniform", "Bernoulli", "Multinomial")
    return [
        Finding("it may be random", str(node.name or ""), node.op_type)
        for node in context.model.graph.all_nodes()
        if node.op_type.startswith(names)
    ]
