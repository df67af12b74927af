"""What a model is run on: seeded random inputs that fit its signature, and the user's own."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from growpipe.graph_ops.errors import UsageError

__all__ = [
    "Dataset",
    "InputSpec",
    "batch_dims",
    "input_specs",
    "is_batch_name",
    "load_dataset",
    "random_inputs",
]

TARGETS = ("targets", "target", "labels", "label")
"""The names under which a data file gives the classes."""

_THROUGH = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Slice", "Concat"}


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: of the input.
        shape: per axis a size, or the name of a symbolic dimension (made up where it has none).
        dtype: numpy's.
        bound: integers must lie below it; None where nothing is known.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: np.dtype[Any]
    bound: int | None = None

    @property
    def first(self) -> str | None:
        """The name of the symbolic dimension on axis 0, if it is one."""
        return self.shape[0] if self.shape and isinstance(self.shape[0], str) else None


@dataclass(frozen=True, eq=False)
class Dataset:
    """User data: inputs by name [samples, ...], and the classes [samples, ...] where there are any."""

    path: str
    inputs: Mapping[str, npt.NDArray]
    targets: npt.NDArray | None


def input_specs(model: ir.Model) -> tuple[InputSpec, ...] | None:
    """What a model asks for; None when an input is no tensor or has no known rank.

    Integer inputs that index a table get its length as their bound.
    """
    specs = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue  # a default value, as old models have
        if not isinstance(value.type, ir.TensorType) or value.shape is None or value.name is None:
            return None
        shape = tuple(
            d if isinstance(d, int) else (d.value or f"{value.name}.{axis}")
            for axis, d in enumerate(value.shape)
        )
        try:
            dtype = np.dtype(value.type.dtype.numpy())
        except TypeError:
            return None
        specs.append(InputSpec(value.name, shape, dtype, _bound(value)))
    return tuple(specs)


def batch_dims(specs: Sequence[InputSpec]) -> tuple[str, ...]:
    """The symbolic dimensions that are the batch: those of a usual name, else all that stand on axis 0."""
    named = {d for s in specs for d in s.shape if isinstance(d, str) and is_batch_name(d)}
    return tuple(sorted(named or {s.first for s in specs if s.first is not None}))


def is_batch_name(name: str) -> bool:
    """Is this what people call the batch?"""
    return name.lower() in ("n", "b", "bs", "bsz") or "batch" in name.lower()


def _bound(value: ir.Value) -> int | None:
    """The length of the shortest table that ``value`` indexes."""
    lengths = []
    waiting, seen = [value], set()
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        for node, position in current.uses():
            if node.op_type == "Gather" and position == 1 and node.inputs[0] is not None:
                table = node.inputs[0].shape
                axis = node.attributes.get_int("axis", 0)
                if table is not None and -len(table) <= axis < len(table) and isinstance(table[axis], int):
                    lengths.append(int(table[axis]))  # type: ignore[arg-type]
            elif node.op_type in _THROUGH:
                waiting += node.outputs
    return min(lengths, default=None)


def random_inputs(
    specs: Sequence[InputSpec],
    batch: int,
    seed: int,
    dims: Mapping[str, int] | None = None,
    default: int = 8,
) -> dict[str, npt.NDArray]:
    """Seeded inputs: normal numbers, bytes over their whole range, integers below their bound.

    Integers without a bound are 0 or 1, and the first of every row is 1: as a mask they mask something and
    never everything.

    Args:
        specs: the inputs.
        batch: size of the batch, and of other symbolic dimensions on axis 0.
        seed: the same seed gives the same inputs.
        dims: sizes of symbolic dimensions by name.
        default: size of symbolic dimensions that ``dims`` does not name.
    """
    sizes = dict(dims or {})
    for name in batch_dims(specs):
        sizes.setdefault(name, batch)
    random = np.random.default_rng(seed)
    inputs = {}
    for spec in specs:
        shape = tuple(sizes.get(d, default) if isinstance(d, str) else d for d in spec.shape)
        inputs[spec.name] = _random(spec, shape, random)
    return inputs


def _random(spec: InputSpec, shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray:
    kind = spec.dtype.kind
    if kind == "f" or spec.dtype == ml_dtypes.bfloat16:
        return random.standard_normal(shape).astype(spec.dtype)
    if kind == "c":
        return (random.standard_normal(shape) + 1j * random.standard_normal(shape)).astype(spec.dtype)
    if kind in "iu" and (spec.bound is not None or spec.dtype.itemsize > 1):
        values = random.integers(0, spec.bound or 2, shape)
        if spec.bound is None and values.ndim:
            values[..., :1] = 1
        return values.astype(spec.dtype)
    if kind in "iu":
        ends = np.iinfo(spec.dtype)
        return random.integers(ends.min, ends.max, shape, dtype=spec.dtype, endpoint=True)
    if kind == "b":
        return np.asarray(random.integers(0, 2, shape).astype(bool))
    if kind == "O":
        return np.full(shape, "growpipe", dtype=object)
    raise UsageError(
        f"no random input of type {spec.dtype} can be made for {spec.name!r}; give inputs with --data"
    )


def load_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Read inputs, and targets where there are any, from an ``.npz`` file.

    The arrays are named as the inputs of the model; the classes are under one of `TARGETS`.

    Raises:
        UsageError: the file is not there or is no such file, or its arrays have different lengths.
    """
    try:
        with np.load(Path(path), allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array; save it by name with np.savez")
            arrays = {name: file[name] for name in file.files}
    except OSError as error:
        raise UsageError(f"the data {path} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"the data {path} is no .npz of plain arrays: {error}") from None
    names = [name for name in TARGETS if name in arrays]
    targets = arrays.pop(names[0]) if names else None
    if not arrays:
        raise UsageError(f"the data {path} holds no inputs")
    lengths = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    if targets is not None:
        lengths[names[0]] = len(targets) if targets.ndim else 0
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise UsageError(f"the arrays of {path} do not have the same number of samples: {lengths}")
    return Dataset(str(path), arrays, targets)
