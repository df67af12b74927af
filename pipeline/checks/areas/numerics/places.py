"""What the checks of numerics share: limits, words and figures of a difference, and where it begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from growpipe.checks.context import Context
from growpipe.checks.measure.compare import Divergence
from growpipe.checks.measure.tolerance import Tolerance, default_relative, rounding_floors
from growpipe.checks.measure.trace import Place
from growpipe.checks.report import Finding
from growpipe.graph_ops.errors import GrowpipeError

__all__ = ["figures", "in_words", "tolerance_of", "where", "worse"]


def tolerance_of(context: Context, *others: ir.Model) -> Tolerance:
    """The policy's limits, or those for the precision of the model and of those it is compared with."""
    settings = context.policy.numerics
    default = default_relative(context.model, *others)
    return Tolerance(
        default if settings.relative is None else settings.relative,
        settings.absolute,
        settings.quantile,
        settings.cosine,
        settings.top1,
        rounding_floors(context.model),
    )


def where(what: str, find: Callable[[], Place | None]) -> tuple[Finding, ...]:
    """Where a difference begins, as far as it can be found: the failure stands without.

    Args:
        what: what is looked for, such as "the first diverging node".
        find: looks for it.
    """
    try:
        place = find()
    except GrowpipeError as error:
        return (Finding(f"{what} was not found: {error}"),)
    if place is None:
        return ()
    return (Finding(f"{what}: {place.detail}", place.node, place.operator, place.tensor, place.module),)


def figures(divergence: Divergence) -> dict[str, Any]:
    """What a check reports as measured."""
    return {
        "relative": divergence.relative,
        "max_abs": divergence.max_abs,
        "quantile": divergence.quantile,
        "cosine": divergence.cosine,
        "top1_agreement": divergence.top1_agreement,
        "output": divergence.output,
    }


def worse(a: Divergence | None, b: Divergence) -> Divergence:
    """The one with the larger relative difference."""
    return b if a is None or b.relative > a.relative else a


def in_words(divergence: Divergence) -> str:
    return f"relative difference {divergence.relative:.1e}"
