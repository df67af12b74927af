"""Running a model, and how far the outputs of two models are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from growpipe.checks.measure.sessions import Device, Model, open_session
from growpipe.graph_ops.errors import CheckFailed, UsageError

__all__ = ["Divergence", "compare", "compare_each", "run_model"]


def run_model(
    model: Model,
    inputs: Mapping[str, npt.NDArray],
    *,
    optimised: bool = True,
    device: Device = "cpu",
) -> dict[str, npt.NDArray]:
    """The outputs of a model by name, from onnxruntime in this process.

    Args:
        model: path, or serialised bytes.
        inputs: by name; what the model does not ask for is ignored.
        optimised: the highest level of graph optimisation, or none.
        device: ``cpu`` or ``cuda``; that it is really used is asserted.

    Raises:
        UsageError: an input is missing.
        MissingEnvironment: onnxruntime or the device is not there.
        CheckFailed: onnxruntime cannot load or run the model.
    """
    return open_session(model, optimised=optimised, device=device).run(inputs)


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far candidate outputs are from reference outputs; the worst case over the outputs compared.

    Attributes:
        max_abs: max |candidate - reference|, of the output named in ``output``.
        scale: max |reference|, of the same output.
        relative: max_abs / scale; infinite where a value is not finite in one of them alone, or where the
            reference is all zero and the candidate is not.
        quantile: the 99.9 % quantile of |candidate - reference| over ``scale``, of the same output.
        cosine: the lowest cosine similarity of any output, flattened; 1 for two zero outputs.
        top1_agreement: the lowest share of rows whose largest entry is in the same place, over floating
            outputs of at least two dimensions and two columns; None where there is no such output.
        non_finite: how many values of the candidate are NaN or infinite, over all outputs.
        output: the output with the largest ``relative``; empty where nothing was compared.
    """

    max_abs: float
    scale: float
    relative: float
    quantile: float
    cosine: float
    top1_agreement: float | None
    non_finite: int
    output: str

    def __post_init__(self) -> None:
        if math.isnan(self.relative) or self.relative < 0:
            raise UsageError(f"a relative divergence cannot be {self.relative}")


def compare(
    reference_outputs: Mapping[str, npt.NDArray], candidate_outputs: Mapping[str, npt.NDArray]
) -> Divergence:
    """How far the candidate is from the reference, worst output first.

    Outputs are matched by name. When no name agrees and the numbers of outputs are equal, they are matched
    by position: a reference from another exporter has other names.

    Raises:
        CheckFailed: an output is missing, or has another shape or kind of values.
    """
    each = compare_each(reference_outputs, candidate_outputs)
    worst = max(each.values(), key=lambda d: (d.relative, d.max_abs))
    agreements = [d.top1_agreement for d in each.values() if d.top1_agreement is not None]
    return Divergence(
        max_abs=worst.max_abs,
        scale=worst.scale,
        relative=worst.relative,
        quantile=worst.quantile,
        cosine=min(d.cosine for d in each.values()),
        top1_agreement=min(agreements, default=None),
        non_finite=sum(d.non_finite for d in each.values()),
        output=worst.output,
    )


def compare_each(
    reference_outputs: Mapping[str, npt.NDArray], candidate_outputs: Mapping[str, npt.NDArray]
) -> dict[str, Divergence]:
    """`compare`, output by output, under the candidate's names.

    Raises:
        CheckFailed: as in `compare`.
    """
    if not reference_outputs:
        raise CheckFailed("the reference has no outputs: nothing to compare")
    pairs = {name: name for name in reference_outputs}
    missing = [name for name in pairs if name not in candidate_outputs]
    if missing and len(missing) == len(pairs) == len(candidate_outputs):
        pairs = dict(zip(reference_outputs, candidate_outputs, strict=True))
    elif missing:
        raise CheckFailed(
            f"outputs {missing} of the reference are not there; the candidate has {list(candidate_outputs)}"
        )
    return {
        candidate: _compare_arrays(candidate, reference_outputs[reference], candidate_outputs[candidate])
        for reference, candidate in pairs.items()
    }


def _compare_arrays(name: str, reference: npt.NDArray, candidate: npt.NDArray) -> Divergence:
    if reference.shape != candidate.shape:
        raise CheckFailed(f"output {name!r} has shape {candidate.shape}; the reference has {reference.shape}")
    if not (_is_number(reference) and _is_number(candidate)):
        if _is_number(reference) != _is_number(candidate):
            raise CheckFailed(f"output {name!r} is {candidate.dtype}; the reference is {reference.dtype}")
        differ = int(np.count_nonzero(reference != candidate))
        distance = math.inf if differ else 0.0
        share = 1.0 - differ / max(reference.size, 1)
        return Divergence(distance, 1.0, distance, distance, share, None, 0, name)
    a, b = reference.astype(np.float64), candidate.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    # A mask of -inf or a NaN that is in both is no divergence; one that is in one of them alone is.
    alike = finite | (a == b) | (np.isnan(a) & np.isnan(b))
    difference = np.where(finite, np.abs(np.where(finite, b, 0.0) - np.where(finite, a, 0.0)), 0.0)
    difference[~alike] = math.inf
    max_abs = float(difference.max(initial=0.0))
    scale = float(np.abs(a[np.isfinite(a)]).max(initial=0.0))
    quantile = float(np.quantile(difference, 0.999, method="higher")) if difference.size else 0.0
    top1: float | None = None
    if reference.dtype.kind == "f" and a.ndim >= 2 and a.shape[-1] >= 2 and a.size:
        top1 = float(np.mean(np.argmax(a, axis=-1) == np.argmax(b, axis=-1)))
    return Divergence(
        max_abs=max_abs,
        scale=scale,
        relative=_over(max_abs, scale),
        quantile=_over(quantile, scale),
        cosine=_cosine(a[finite], b[finite]),
        top1_agreement=top1,
        non_finite=int(np.count_nonzero(~np.isfinite(b))),
        output=name,
    )


def _is_number(array: npt.NDArray) -> bool:
    # Kind V is what the extension types (bfloat16, float8) have; numpy casts them to float64.
    return array.dtype.kind in "biufV"


def _over(value: float, scale: float) -> float:
    if value == 0.0:
        return 0.0
    return value / scale if scale > 0.0 else math.inf


def _cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    # Scaled first: the squares of float32's largest values are fine in float64, those of float64 are not.
    top_a, top_b = np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0)
    if top_a == 0.0 or top_b == 0.0:
        return 1.0 if top_a == top_b else 0.0
    a, b = (a / top_a).ravel(), (b / top_b).ravel()
    return float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1.0, 1.0))
