"""How large a difference may be: from the policy, from the model's precision, or from a float64 reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy.typing as npt
import onnx_ir as ir

from growpipe.checks.measure.compare import Divergence, compare
from growpipe.graph_ops.errors import CheckFailed

__all__ = ["Tolerance", "default_relative", "with_float64"]

NOISE_FACTOR = 32.0
"""Another order of summation, another kernel, a fused layer: each within a few times the rounding error."""
LEAST = 4e-6
"""No float32 model is asked for less: 32 units in the last place of its largest output."""
DOUBTFUL_NOISE = 1e-3
"""A float32 model further than this from its float64 self: the two do not compute the same."""

_QUANTISED = (
    "QuantizeLinear",
    "QLinear",
    "ConvInteger",
    "MatMulInteger",
    "QAttention",
    "QGemm",
    "MatMulNBits",
)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Limits of a `Divergence`; None: not looked at.

    Attributes:
        relative: of ``relative``; a difference below ``absolute`` is never too large.
        absolute: of ``max_abs``.
        quantile, cosine, top1: of the fields of these names.
    """

    relative: float
    absolute: float | None = None
    quantile: float | None = None
    cosine: float | None = None
    top1: float | None = None

    def problems(self, divergence: Divergence) -> list[str]:
        """In words, what is too large or too small."""
        problems = []
        small = self.absolute is not None and divergence.max_abs <= self.absolute
        if divergence.relative > self.relative and not small:
            problems.append(
                f"relative difference {divergence.relative:.3g} of output {divergence.output!r} "
                f"(absolute {divergence.max_abs:.3g}) is above {self.relative:.3g}"
            )
        if self.quantile is not None and divergence.quantile > self.quantile and not small:
            problems.append(f"its 99.9 % quantile {divergence.quantile:.3g} is above {self.quantile:.3g}")
        if self.cosine is not None and divergence.cosine < self.cosine:
            problems.append(f"cosine similarity {divergence.cosine:.6f} is below {self.cosine}")
        agreement = divergence.top1_agreement
        if self.top1 is not None and agreement is not None and agreement < self.top1:
            problems.append(f"top-1 agreement {agreement:.4f} is below {self.top1}")
        return problems


def default_relative(*models: ir.Model) -> float:
    """The limit of the relative difference for the coarsest arithmetic in any of the models."""
    return max(_relative(model) for model in models)


def _relative(model: ir.Model) -> float:
    for node in model.graph.all_nodes():
        if any(node.op_type.startswith(mark) for mark in _QUANTISED):
            return 1e-1
    types = {v.dtype for g in model.graphs() for v in g.initializers.values() if v.dtype is not None}
    types |= {v.dtype for v in (*model.graph.inputs, *model.graph.outputs) if v.dtype is not None}
    for node in model.graph.all_nodes():
        if node.op_type == "Cast" and "to" in node.attributes:
            types.add(ir.DataType(node.attributes["to"].as_int()))
    if ir.DataType.BFLOAT16 in types:
        return 5e-2
    return 1e-2 if ir.DataType.FLOAT16 in types else 1e-4


def with_float64(
    tolerance: Tolerance,
    doubles: Mapping[str, npt.NDArray],
    reference: Mapping[str, npt.NDArray],
    default: float,
) -> tuple[Tolerance, float, str]:
    """Scale the relative limit by the reference's own rounding error.

    Args:
        tolerance: its other limits are kept.
        doubles: the reference's outputs from a float64 run on the same inputs.
        reference: its outputs as it is.
        default: the limit for the precision of the models; above float32's it is kept as the least.

    Returns:
        The tolerance, the rounding error (relative), and why the float64 run was not used, if it was not.
    """
    try:
        noise = compare(doubles, reference).relative
    except CheckFailed as error:
        return tolerance, 0.0, f"not used: {error}"
    if noise > DOUBTFUL_NOISE:
        return tolerance, noise, f"not used: it differs by {noise:.2g} from the reference itself"
    coarse = default if default > 1e-4 else 0.0
    return replace(tolerance, relative=max(NOISE_FACTOR * noise, LEAST, coarse)), noise, ""
