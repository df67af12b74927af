"""How large a difference may be: from the policy, from the model's precision, or from a float64 reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from growpipe.checks.measure.compare import Divergence, compare, compare_each
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.operators import is_onnx

__all__ = ["MOVING", "ROUNDING", "Tolerance", "default_relative", "rounding_floors", "with_float64"]

NOISE_FACTOR = 32.0
"""Another order of summation, another kernel, a fused layer: each within a few times the rounding error."""
SINGLE = 1e-4
"""The limit for models of float32, without a float64 run."""
LEAST = 4e-6
"""No float32 model is asked for less: 32 units in the last place of its largest output."""
ROUNDING = 1e-6
"""Outputs of float32 that differ by less, absolutely, differ by rounding inside the model: a saturated
sigmoid of 1e-7 is the difference of two numbers near 1."""
DOUBTFUL_NOISE = 1e-3
"""A float32 model further than this from its float64 self: the two do not compute the same."""

_BOUNDED = ("Sigmoid", "HardSigmoid", "Softmax", "Tanh", "Erf", "Sin", "Cos")
"""Operators whose results are at most 1 whatever their inputs are."""
MOVING = (
    "Cast",
    "Concat",
    "Flatten",
    "Gather",
    "Identity",
    "Pad",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
"""Operators that move numbers and change none."""
_FURTHEST = 100

_QUANTISED = (
    "QuantizeLinear",
    "QLinear",
    "ConvInteger",
    "MatMulInteger",
    "QAttention",
    "QGemm",
    "MatMulNBits",
)


@dataclass(frozen=True)
class Tolerance:
    """Limits of a `Divergence`; None: not looked at.

    Attributes:
        relative: of ``relative``; a difference below ``absolute`` is never too large.
        absolute: of ``max_abs``.
        quantile: of ``quantile``.
        cosine: of ``cosine``.
        top1: of ``top1_agreement``.
        floors: by output, an absolute difference that is never too large: see `rounding_floors`.
    """

    relative: float
    absolute: float | None = None
    quantile: float | None = None
    cosine: float | None = None
    top1: float | None = None
    floors: Mapping[str, float] = field(default_factory=dict)

    def problems(self, divergence: Divergence) -> list[str]:
        """In words, what is too large or too small."""
        problems = []
        small = divergence.max_abs <= max(self.absolute or 0.0, self.floors.get(divergence.output, 0.0))
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

    def judge(
        self, reference: Mapping[str, AnyArray], candidate: Mapping[str, AnyArray]
    ) -> tuple[Divergence, list[str]]:
        """Compare all outputs.

        Returns:
            The divergence of the output that breaks a limit, if one does, else the largest; the problems.

        Raises:
            CheckFailed: as `growpipe.checks.measure.compare.compare`.
        """
        each = compare_each(reference, candidate)
        ranked = sorted(each.values(), key=lambda d: (d.relative, d.max_abs), reverse=True)
        for divergence in ranked:
            problems = self.problems(divergence)
            if problems:
                return divergence, problems
        return compare(reference, candidate), []


def rounding_floors(model: ir.Model) -> dict[str, float]:
    """By output, the absolute difference that mere rounding of float32 makes.

    A sigmoid that saturates gives 6e-8 where the numbers that it is computed from are about 1: the rounding
    error is that of 1, whatever the output is. So it is for all that has a fixed range.
    """
    floors = {}
    for output in model.graph.outputs:
        source, seen = output.producer(), 0
        while source is not None and is_onnx(source, *MOVING) and source.inputs and seen < _FURTHEST:
            first = source.inputs[0]
            source, seen = (None if first is None else first.producer()), seen + 1
        if source is not None and is_onnx(source, *_BOUNDED):
            floors[str(output.name)] = LEAST
    return floors


def default_relative(*models: ir.Model) -> float:
    """The limit of the relative difference for the coarsest arithmetic in any of the models."""
    return max(_relative(model) for model in models)


def _relative(model: ir.Model) -> float:
    for node in model.graph.all_nodes():
        if any(node.op_type.startswith(mark) for mark in _QUANTISED):
            return 1e-1
    types = {v.dtype for g in model.graphs() for v in g.initializers.values() if v.dtype is not None}
    types |= {v.dtype for v in (*model.graph.inputs, *model.graph.outputs) if v.dtype is not None}
    casts = (_type_of_cast(node) for node in model.graph.all_nodes() if is_onnx(node, "Cast"))
    types |= {kind for kind in casts if kind is not None}
    if ir.DataType.BFLOAT16 in types:
        return 5e-2
    return 1e-2 if ir.DataType.FLOAT16 in types else SINGLE


def _type_of_cast(node: ir.Node) -> ir.DataType | None:
    """The type that a Cast gives; None if it names none that there is."""
    attribute = node.attributes.get("to")
    wanted = None if attribute is None or attribute.is_ref() else attribute.value
    # A number, or before version 6 a name.
    return next((kind for kind in ir.DataType if wanted in (kind.value, kind.name)), None)


def with_float64(
    tolerance: Tolerance, doubles: Mapping[str, AnyArray], reference: Mapping[str, AnyArray]
) -> tuple[Tolerance, float, str]:
    """Scale the relative limit by the reference's own rounding error.

    Args:
        tolerance: its relative limit is kept as the least if it is above that of float32; so are all others.
        doubles: the reference's outputs from a float64 run on the same inputs.
        reference: its outputs as it is.

    Returns:
        The tolerance, the rounding error (relative), and why the float64 run was not used, if it was not.
    """
    try:
        noise = compare(doubles, reference).relative
    except CheckFailed as error:
        return tolerance, 0.0, f"not used: {error}"
    if noise > DOUBTFUL_NOISE:
        return tolerance, noise, f"not used: it differs by {noise:.2g} from the reference itself"
    coarse = tolerance.relative if tolerance.relative > SINGLE else 0.0
    return replace(tolerance, relative=max(NOISE_FACTOR * noise, LEAST, coarse)), noise, ""
