"""The inputs on which a model is run: the user's own, and random ones that fit its signature."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from growpipe.checks.measure.dimensions import computed_from
from growpipe.checks.measure.inputs import (
    Dataset,
    InputSpec,
    batch_dims,
    can_be_random,
    is_batch_name,
    random_inputs,
    sizes_of,
    symbols,
)
from growpipe.checks.measure.memory import MemoryRoom, bytes_of
from growpipe.checks.policy import NumericsPolicy
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import CheckFailed, UsageError

__all__ = ["InputMaker", "InputSet", "Inputs", "PlannedSet", "Runs"]

Inputs = Mapping[str, AnyArray]

DYNAMIC_SIZES = (8, 16, 32, 64, 224)
"""Tried in turn for symbolic dimensions that nothing names: a network can be too deep for a small image."""
OTHER_SIZES, MOST_TRIED = (1, 512, 16000), 2**20
"""Tried next if no input has more elements than this: a step of a decoder, and sound, which is long."""


@dataclass(frozen=True, eq=False)
class InputSet:
    """Inputs for one run.

    Attributes:
        label: what the inputs are called in a message.
        inputs: by the names of the checked model.
        is_random: whether they were made here; False for the user's.
    """

    label: str
    inputs: Inputs
    is_random: bool = True


@dataclass(frozen=True, eq=False)
class PlannedSet:
    """Inputs that are not made yet.

    Attributes:
        label: what the inputs are called in a message.
        make: makes them if there is room.
    """

    label: str
    make: Callable[[MemoryRoom], InputSet]


@dataclass(frozen=True)
class Runs:
    """The runs of a model at the highest optimisation.

    Attributes:
        ran: the inputs on which it ran.
        outputs: by the label of the inputs.
        errors: why it did not run, by the label of the inputs.
        maker: makes more inputs like those that ran.
    """

    ran: tuple[InputSet, ...]
    outputs: Mapping[str, Mapping[str, AnyArray]]
    errors: Mapping[str, CheckFailed]
    maker: InputMaker


@dataclass(frozen=True)
class InputMaker:
    """Makes inputs for one model.

    Attributes:
        specs: what the model asks for; None if no random inputs can be made.
        names: the inputs that must be given, also if ``specs`` is None.
        settings: batch sizes, seeds and samples.
        dims: sizes of symbolic dimensions, by name.
        size: of symbolic dimensions that ``dims`` does not name.
    """

    specs: tuple[InputSpec, ...] | None
    names: tuple[str, ...]
    settings: NumericsPolicy
    dims: Mapping[str, int]
    size: int = DYNAMIC_SIZES[0]

    def open_dims(self) -> set[str]:
        """The symbolic dimensions whose size is chosen here, except those that are surely the batch."""
        names = symbols(self.specs or ())
        own = {name for name in names if not computed_from(name, names) and not is_batch_name(name)}
        return own - set(self.dims)

    def of_other_sizes(self) -> tuple[InputMaker, ...]:
        """This maker with every size that is worth a try; itself alone if no dimension is open."""
        if not self.open_dims():
            return (self,)
        others = (size for size in OTHER_SIZES if self._is_small(size))
        return tuple(replace(self, size=size) for size in (*DYNAMIC_SIZES, *others))

    def _is_small(self, size: int) -> bool:
        """Whether random inputs of this size are quickly tried."""
        specs = self.specs or ()
        sizes = sizes_of(specs, 1, self.dims, size)
        return all(
            math.prod(sizes[d] if isinstance(d, str) else d for d in spec.shape) <= MOST_TRIED
            for spec in specs
        )

    def plan(self, datasets: Sequence[Dataset], seeds: Sequence[int] | None = None) -> list[PlannedSet]:
        """The user's data, and random inputs of every seed and batch size; nothing is made yet.

        Args:
            datasets: the user's data.
            seeds: of the random inputs; None for those of the policy.
        """
        sets = [PlannedSet(_name(data), partial(self._from_data, data)) for data in datasets]
        if self.specs is None or (sets and not all(can_be_random(spec) for spec in self.specs)):
            return sets
        has_batch = any(name not in self.dims for name in batch_dims(self.specs))
        for seed in self.settings.seeds if seeds is None else seeds:
            for batch in self.settings.batch_sizes if has_batch else self.settings.batch_sizes[:1]:
                label = f"random inputs (seed {seed}{f', batch {batch}' if has_batch else ''})"
                sets.append(PlannedSet(label, partial(self.random, batch, seed, label)))
        return sets

    def random(self, batch: int, seed: int, label: str, room: MemoryRoom) -> InputSet:
        """Random inputs.

        Raises:
            UsageError: an input is of a type that cannot be random.
            CheckFailed: the inputs do not fit into ``room``.
        """
        sizes = sizes_of(self.specs or (), batch, self.dims, self.size)
        return InputSet(label, random_inputs(self.specs or (), sizes, seed, room))

    def _from_data(self, data: Dataset, room: MemoryRoom) -> InputSet:
        missing = [name for name in self.names if name not in data.inputs]
        if missing:
            raise UsageError(f"{data.path} lacks inputs {missing}; it has {sorted(data.inputs)}")
        fixed = [s.shape[0] for s in self.specs or () if s.shape and isinstance(s.shape[0], int)]
        count = fixed[0] if fixed and isinstance(fixed[0], int) else self.settings.samples
        inputs = {name: data.inputs[name][:count] for name in self.names}
        room.require(bytes_of(inputs), f"the inputs of {_name(data)}")
        return InputSet(_name(data), inputs, is_random=False)


def _name(data: Dataset) -> str:
    return os.path.basename(data.path)
