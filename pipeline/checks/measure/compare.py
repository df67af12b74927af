"""Running a model, and how far the outputs of two models are apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from growpipe.checks.measure.sessions import Device, Model, open_session
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import CheckFailed, UsageError

__all__ = ["Divergence", "compare", "compare_each", "run_model"]

_BLOCK = 2**20
"""Values that are compared at once."""


def run_model(
    model: Model,
    inputs: Mapping[str, AnyArray],
    *,
    optimised: bool = True,
    device: Device = "cpu",
) -> dict[str, AnyArray]:
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
            outputs of at least two dimensions and two columns; None if there is no such output.
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
    reference_outputs: Mapping[str, AnyArray], candidate_outputs: Mapping[str, AnyArray]
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
    reference_outputs: Mapping[str, AnyArray], candidate_outputs: Mapping[str, AnyArray]
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


def _compare_arrays(name: str, reference: AnyArray, candidate: AnyArray) -> Divergence:
    if reference.shape != candidate.shape:
        raise CheckFailed(f"output {name!r} has shape {candidate.shape}; the reference has {reference.shape}")
    if not (_is_number(reference) and _is_number(candidate)):
        if _is_number(reference) != _is_number(candidate):
            raise CheckFailed(f"output {name!r} is {candidate.dtype}; the reference is {reference.dtype}")
        differ = int(np.count_nonzero(reference != candidate))
        distance = math.inf if differ else 0.0
        share = 1.0 - differ / max(reference.size, 1)
        return Divergence(distance, 1.0, distance, distance, share, None, 0, name)
    finite = [(_finite_max(x), _finite_max(y)) for x, y in _blocks(reference, candidate)]
    scale, other = (max((pair[side] for pair in finite), default=0.0) for side in (0, 1))
    kept = reference.size - math.ceil(0.999 * max(reference.size - 1, 0))
    largest = np.empty(0)
    non_finite, products = 0, np.zeros(3)
    for a, b in _blocks(reference, candidate):
        difference, both = _difference(a, b)
        largest = _largest(np.concatenate([largest, difference]), kept)
        non_finite += int(np.count_nonzero(~np.isfinite(b)))
        # Scaled first: the squares of float32's largest values are fine in float64, those of float64 are not.
        x, y = a[both] / (scale or 1.0), b[both] / (other or 1.0)
        products += (x @ y, x @ x, y @ y)
    max_abs = float(largest.max(initial=0.0))
    return Divergence(
        max_abs=max_abs,
        scale=scale,
        relative=_over(max_abs, scale),
        quantile=_over(float(largest.min(initial=max_abs)), scale),
        cosine=_cosine(*products),
        top1_agreement=_top1_agreement(reference, candidate),
        non_finite=non_finite,
        output=name,
    )


def _blocks(*arrays: AnyArray) -> Iterator[tuple[npt.NDArray[np.float64], ...]]:
    """The values in float64, some at a time: as many copies of a large output would not fit into memory."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, _BLOCK):
        yield tuple(part[start : start + _BLOCK].astype(np.float64) for part in flat)


def _finite_max(values: npt.NDArray[np.float64]) -> float:
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def _difference(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """|b - a|, and where both are finite."""
    finite = np.isfinite(a) & np.isfinite(b)
    # A mask of -inf or a NaN that is in both is not a divergence; one that is in one of them alone is.
    alike = finite | (a == b) | (np.isnan(a) & np.isnan(b))
    difference = np.where(finite, np.abs(np.where(finite, b, 0.0) - np.where(finite, a, 0.0)), 0.0)
    difference[~alike] = math.inf
    return difference, finite


def _largest(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    return values if values.size <= count else np.partition(values, -count)[-count:]


def _top1_agreement(reference: AnyArray, candidate: AnyArray) -> float | None:
    """The share of rows whose largest entry is in the same place; None if there are no such rows."""
    columns = reference.shape[-1] if reference.ndim >= 2 else 0
    if reference.dtype.kind != "f" or columns < 2 or not reference.size:
        return None
    rows = [array.reshape(-1, columns) for array in (reference, candidate)]
    step = max(1, _BLOCK // columns)
    same = sum(
        int(np.count_nonzero(a.argmax(axis=1) == b.argmax(axis=1)))
        for start in range(0, len(rows[0]), step)
        for a, b in [[part[start : start + step].astype(np.float64) for part in rows]]
    )
    return same / len(rows[0])


def _is_number(array: AnyArray) -> bool:
    # Kind V is what the extension types (bfloat16, float8) have; numpy casts them to float64.
    return array.dtype.kind in "biufV"


def _over(value: float, scale: float) -> float:
    if value == 0.0:
        return 0.0
    return value / scale if scale > 0.0 else math.inf


def _cosine(product: float, a_squared: float, b_squared: float) -> float:
    if a_squared == 0.0 or b_squared == 0.0:
        return 1.0 if a_squared == b_squared else 0.0
    return float(np.clip(product / math.sqrt(a_squared * b_squared), -1.0, 1.0))
