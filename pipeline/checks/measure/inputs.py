"""What a model is run on: seeded random inputs that fit its signature, and the user's own."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from growpipe.checks.measure.dimensions import computed_from, size_of
from growpipe.checks.measure.memory import MemoryRoom
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.arrays import MAX_ARRAYS, read_npz

__all__ = [
    "Dataset",
    "InputSpec",
    "batch_dims",
    "can_be_random",
    "input_specs",
    "is_batch_name",
    "load_dataset",
    "random_inputs",
    "sizes_of",
    "symbols",
]

TARGETS = ("targets", "target", "labels", "label")
"""The names under which a data file gives the targets."""

_BLOCK = 2**20
"""Values that are made at once."""

_THROUGH = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Slice", "Concat"}


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: of the input.
        shape: per axis a size, or the name of a symbolic dimension (made up where it has none).
        dtype: numpy's.
        bound: integers must lie below it; None if nothing is known.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: np.dtype[Any]
    bound: int | None = None

    @property
    def is_mask(self) -> bool:
        """Whether it is of integers of which nothing is known; bytes are images."""
        return self.dtype.kind in "iu" and self.dtype.itemsize > 1 and self.bound is None

    @property
    def first(self) -> str | None:
        """The name of the symbolic dimension on axis 0, if it is one."""
        return self.shape[0] if self.shape and isinstance(self.shape[0], str) else None


@dataclass(frozen=True, eq=False)
class Dataset:
    """User data: inputs by name [samples, ...], and targets [samples, ...] if there are any."""

    path: str
    inputs: Mapping[str, AnyArray]
    targets: AnyArray | None


def input_specs(model: ir.Model) -> tuple[InputSpec, ...] | None:
    """What a model asks for; None when an input is not a tensor or has no known rank.

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
    names = symbols(specs)
    named = {d for d in names if is_batch_name(d) and not computed_from(d, names)}
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


def sizes_of(specs: Sequence[InputSpec], batch: int, dims: Mapping[str, int], default: int) -> dict[str, int]:
    """A size for every symbolic dimension.

    Args:
        specs: the inputs.
        batch: size of the batch, and of other symbolic dimensions on axis 0.
        dims: sizes by name, which come first.
        default: size of what is neither in ``dims`` nor the batch, and does not follow from other sizes.
    """
    batches = batch_dims(specs)
    names = symbols(specs)
    own = {name for name in names if not computed_from(name, names)}
    sizes = {name: dims.get(name, batch if name in batches else default) for name in own}
    for name in names - own:
        sizes[name] = (
            dims[name] if name in dims else size_of(name, {**dict.fromkeys(names, default), **sizes})
        )
    return sizes


def symbols(specs: Sequence[InputSpec]) -> set[str]:
    """The names of all symbolic dimensions."""
    return {d for spec in specs for d in spec.shape if isinstance(d, str)}


def can_be_random(spec: InputSpec) -> bool:
    """Whether random values of the input's type can be made."""
    return spec.dtype.kind in "fciubO" or spec.dtype == ml_dtypes.bfloat16


def random_inputs(
    specs: Sequence[InputSpec], sizes: Mapping[str, int], seed: int, room: MemoryRoom
) -> dict[str, AnyArray]:
    """Seeded inputs: normal numbers, bytes over their whole range, integers below their bound.

    Integers without a bound are 0 or 1, and the first of every row is 1: as a mask they mask something and
    never everything.

    Args:
        specs: the inputs.
        sizes: of every symbolic dimension.
        seed: the same seed gives the same inputs.
        room: for all inputs together.

    Raises:
        UsageError: an input is of a type that cannot be random.
        CheckFailed: the inputs do not fit into ``room``.
    """
    shapes = [tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape) for spec in specs]
    needed = sum(spec.dtype.itemsize * math.prod(shape) for spec, shape in zip(specs, shapes, strict=True))
    room.require(needed, f"inputs of {', '.join(str(list(shape)) for shape in shapes)}")
    random = np.random.default_rng(seed)
    return {spec.name: _random(spec, shape, random) for spec, shape in zip(specs, shapes, strict=True)}


def _random(spec: InputSpec, shape: tuple[int, ...], random: np.random.Generator) -> AnyArray:
    if not can_be_random(spec):
        raise UsageError(
            f"no random input of type {spec.dtype} can be made for {spec.name!r}; give inputs with --data"
        )
    if spec.dtype.kind == "O":
        return np.full(shape, "growpipe", dtype=object)
    array = np.empty(math.prod(shape), spec.dtype)
    for start in range(0, array.size, _BLOCK):  # the generator's own types are larger than most inputs
        part = array[start : start + _BLOCK]
        part[...] = _random_block(spec, part.size, random)
    array = array.reshape(shape)
    if spec.is_mask and array.ndim:
        array[..., :1] = 1
    return array


def _random_block(spec: InputSpec, count: int, random: np.random.Generator) -> AnyArray:
    match spec.dtype.kind:
        case "b":
            return random.integers(0, 2, count).astype(bool)
        case "c":
            return random.standard_normal(count) + 1j * random.standard_normal(count)
        case "i" | "u" if spec.bound is None and spec.dtype.itemsize == 1:
            ends = np.iinfo(spec.dtype)
            return random.integers(ends.min, ends.max, count, dtype=spec.dtype, endpoint=True)
        case "i" | "u":
            return random.integers(0, spec.bound or 2, count)
    return random.standard_normal(count)


def load_dataset(path: str | os.PathLike[str], *, most: int = MAX_ARRAYS) -> Dataset:
    """Read inputs, and targets where there are any, from an ``.npz`` file.

    The arrays are named as the inputs of the model; the targets are under one of `TARGETS`.

    Args:
        path: the file.
        most: the most bytes that all arrays may take together.

    Raises:
        UsageError: the file cannot be read, is damaged, holds more than ``most`` bytes of arrays, or arrays
            of different lengths.
    """
    arrays = read_npz(path, "the data", most=most)
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
