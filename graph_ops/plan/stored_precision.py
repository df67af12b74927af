"""Which coefficients a weight can take without rounding, in the type that it is stored in.

A coefficient w multiplies stored weights. In float32 the rounding of that product is as small as any other
rounding of the model. In float16, bfloat16 and float8 it is not, above all if the graph casts the weights up
and computes in float32: the function would change at ε = 0 by up to 2⁻⁹, 2⁻⁸ or 2⁻³ of its scale. There only
products are allowed that the stored type holds exactly, which are those by powers of two within its range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.axes.dims import Offspring, atoms_of, axis_map, channel_rows
from growpipe.graph_ops.axes.layouts import TensorLayout

__all__ = ["StoredChannels", "exact_coefficients", "is_exact", "is_low_precision"]

_TRIES = 16


def is_low_precision(dtype: npt.DTypeLike) -> bool:
    """Whether numpy's ``dtype`` is a floating type of less than 32 bits, one of ``ml_dtypes`` included."""
    found = np.dtype(dtype)
    return found.kind in "fV" and found.itemsize < 4


def is_exact(array: AnyArray, layout: TensorLayout, offspring: Mapping[str, Offspring]) -> bool:
    """Whether the array's type holds every product with a coefficient of ``offspring`` exactly."""
    for position, axis in enumerate(layout.axes):
        if axis.role != "mixed" or not any(atom.name in offspring for atom in atoms_of(axis.dim)):
            continue
        mapped = axis_map(axis.dim, offspring)
        for coefficient in np.unique(mapped.coefficient[mapped.coefficient != 1.0]):
            entries = mapped.source[mapped.coefficient == coefficient]
            if not _holds(array.take(entries, position), float(coefficient), layout.offset):
                return False
    return True


def _holds(values: AnyArray, coefficient: float, offset: float) -> bool:
    wanted = (values.astype(np.float64) + offset) * coefficient - offset
    with np.errstate(over="ignore", invalid="ignore"):
        stored = wanted if offset else values * np.asarray(coefficient).astype(values.dtype)
        stored = stored.astype(values.dtype)
    return np.array_equal(stored.astype(np.float64), wanted)


class StoredChannels:
    """The weights in low precision that mix the channels of one group.

    Args:
        group: the name of the group.
        layouts: by name, the axes of every parameter that the group touches.
        read: gives the parameter of a name.
    """

    def __init__(
        self, group: str, layouts: Mapping[str, TensorLayout], read: Callable[[str], AnyArray]
    ) -> None:
        self._mixing: list[tuple[AnyArray, npt.NDArray[np.int64], float]] = []
        for name, layout in layouts.items():
            for position, axis in enumerate(layout.axes):
                if axis.role == "mixed" and any(atom.name == group for atom in atoms_of(axis.dim)):
                    array = read(name)
                    if is_low_precision(array.dtype):
                        rows = channel_rows(axis.dim, group)
                        self._mixing.append((np.moveaxis(array, position, 0), rows, layout.offset))

    def __bool__(self) -> bool:
        return bool(self._mixing)

    def hold(self, channel: int, coefficients: Iterable[float]) -> bool:
        """Whether every weight that mixes the channel holds its product with each of the coefficients."""
        return all(
            _holds(array[rows[channel]], coefficient, offset)
            for coefficient in set(coefficients)
            for array, rows, offset in self._mixing
        )


def exact_coefficients(
    copies: int, rng: np.random.Generator, *, bound: float, signed: bool
) -> Sequence[npt.NDArray[np.float64]]:
    """Some choices of powers of two, up to sign, that sum to 1; the most even one first.

    Each comes from [1] by steps that keep the sum: w → (w/2, w/2), and w → (2w, −w) if ``signed``.

    Args:
        copies: how many coefficients a choice has.
        rng: makes the choices.
        bound: on the size of every coefficient.
        signed: whether there may be negative coefficients.
    """
    choices = []
    for number in range(_TRIES if signed else 1):
        weights = [1.0]
        while len(weights) < copies:
            doubling = signed and number > 0 and rng.random() < 0.5
            largest = int(np.argmax(np.abs(weights)))
            position = int(rng.integers(len(weights))) if number else largest
            weight = weights.pop(position)
            if doubling and abs(2 * weight) <= bound:
                weights += [2 * weight, -weight]
            else:
                weights += [weight / 2, weight / 2]
        choices.append(rng.permutation(weights))
    return choices
