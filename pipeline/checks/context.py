"""What the checks look at: the model, what it is compared with, and its runs, each made once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir as ir

from growpipe.checks.baseline import Baseline
from growpipe.checks.child.sandbox import ModelCrashed, ModelHung, Sandbox
from growpipe.checks.measure.inputs import Dataset, InputSpec, batch_dims, input_specs, random_inputs
from growpipe.checks.measure.sessions import Device
from growpipe.checks.policy import Policy
from growpipe.graph_ops.errors import CheckFailed, MissingEnvironment, UsageError
from growpipe.graph_ops.files.load_save import load_model

__all__ = ["Context", "InputSet", "NotRunnable", "TorchReference"]

Inputs = Mapping[str, npt.NDArray]
DYNAMIC_SIZES = (8, 16, 32, 64, 224)
"""Tried in turn for symbolic dimensions that nothing names: a network can be too deep for a small image."""


class NotRunnable(CheckFailed):
    """A check needs runs of the model that there are none of."""


@dataclass(frozen=True, eq=False)
class InputSet:
    """Inputs for one run, by the names of the checked model.

    Attributes:
        label: how to call it in a message.
        inputs: by name.
        is_random: made here, not the user's.
    """

    label: str
    inputs: Inputs
    is_random: bool = True


@dataclass(frozen=True)
class TorchReference:
    """A torch module as the reference.

    Attributes:
        name: how to call it.
        run: from (inputs, double, names of submodules) to outputs by position, and the submodules' outputs.
    """

    name: str
    run: Callable[[Inputs, bool, Sequence[str]], tuple[list[npt.NDArray], dict[str, npt.NDArray]]]


@dataclass
class Context:
    """The subject of the checks and everything they share.

    Attributes:
        path: the model's file, absolute.
        policy: what is allowed.
        sandbox: where models run.
        device: on which.
        reference: the file of the reference model, absolute, if there is one.
        torch: the torch module to compare with, if there is one.
        datasets: the user's inputs.
        baseline: what was measured before, if that was given.
    """

    path: Path
    policy: Policy
    sandbox: Sandbox
    device: Device = "cpu"
    reference: Path | None = None
    torch: TorchReference | None = None
    datasets: Sequence[Dataset] = ()
    baseline: Baseline | None = None
    errors: dict[str, CheckFailed] = field(default_factory=dict)
    """Of the runs that failed, by the label of their inputs."""
    classified: dict[tuple[str, Path | None], npt.NDArray] = field(default_factory=dict)
    """Per data set and model (None: the checked one), which samples are right."""

    @cached_property
    def model(self) -> ir.Model:
        """The model, through the safe loader.

        Raises:
            UnsafeModel: it cannot or must not be read.
        """
        return load_model(self.path)

    @cached_property
    def proto(self) -> onnx.ModelProto:
        """The model as it stands in the file, without external data."""
        # Never before the safe loader has accepted the file.
        _ = self.model
        return onnx.load(self.path, load_external_data=False)

    @cached_property
    def reference_model(self) -> ir.Model | None:
        return None if self.reference is None else load_model(self.reference)

    @cached_property
    def specs(self) -> tuple[InputSpec, ...] | None:
        return input_specs(self.model)

    @cached_property
    def sets(self) -> tuple[InputSet, ...]:
        """The inputs on which the model ran; of those on which it did not, the reasons are in `errors`.

        Raises:
            MissingEnvironment: the device is not there.
        """
        _ = self.runs
        return self._ran

    @cached_property
    def runs(self) -> dict[str, dict[str, npt.NDArray]]:
        """The outputs at the highest optimisation, by the label of the inputs."""
        done: dict[str, dict[str, npt.NDArray]] = {}
        ran: list[InputSet] = []
        for size in self._sizes():
            done, ran, self.errors = {}, [], {}
            for given in self._candidates(size):
                try:
                    done[given.label] = self.run(given.inputs)
                    ran.append(given)
                except MissingEnvironment:
                    raise
                except CheckFailed as error:
                    self.errors[given.label] = error
                    if isinstance(error, (ModelCrashed, ModelHung)):
                        self._ran = tuple(ran)
                        return done  # once is enough
            if done:
                break
        self._ran = tuple(ran)
        return done

    def first(self) -> InputSet:
        """The inputs for checks that need one run.

        Raises:
            NotRunnable: the model ran on none.
        """
        if not self.sets:
            reason = next(iter(self.errors.values()), None)
            raise NotRunnable(str(reason or "there is nothing to run it on: give inputs with --data"))
        return self.sets[0]

    def run(
        self, inputs: Inputs, *, optimised: bool = True, path: Path | None = None
    ) -> dict[str, npt.NDArray]:
        """One run in the sandbox.

        Raises:
            CheckFailed: the model does not run; `ModelCrashed` and `ModelHung` are such.
        """
        arguments = {"model": str(path or self.path), "optimised": optimised, "device": self.device}
        return self.sandbox.call("run", arguments, inputs).arrays

    def reference_inputs(self, inputs: Inputs) -> dict[str, npt.NDArray]:
        """The same inputs under the reference's names.

        Raises:
            UsageError: the reference asks for other inputs.
        """
        names = self.input_names
        return {names[name]: array for name, array in inputs.items() if name in names}

    @cached_property
    def input_names(self) -> dict[str, str]:
        """The reference's name of every input that it has; by position where the names differ."""
        assert self.reference_model is not None
        ours, theirs = _asked(self.model), _asked(self.reference_model)
        if set(theirs) <= set(ours):
            return {name: name for name in theirs}
        if len(ours) == len(theirs):
            return dict(zip(ours, theirs, strict=True))
        raise UsageError(f"the reference has inputs {theirs}, the model {ours}: they cannot be compared")

    def reference_run(self, given: InputSet) -> dict[str, npt.NDArray]:
        """The reference's outputs on the same inputs, each set run once."""
        if given.label not in self._reference_runs:
            assert self.reference is not None
            try:
                outputs = self.run(self.reference_inputs(given.inputs), path=self.reference)
            except CheckFailed as error:
                raise CheckFailed(f"the reference does not run on {given.label}: {error}") from None
            self._reference_runs[given.label] = outputs
        return self._reference_runs[given.label]

    @cached_property
    def census(self) -> dict[str, Any]:
        """The nodes that remain after optimisation, counted by operator and by provider."""
        arguments = {"model": str(self.path), "device": self.device}
        return self.sandbox.call("census", arguments, self.first().inputs).data

    def random_set(self, batch: int, seed: int, label: str) -> InputSet | None:
        """More random inputs like those that ran; None when none can be made."""
        if self.specs is None:
            return None
        inputs = random_inputs(self.specs, batch, seed, self._dims(), self._size)
        return InputSet(label, inputs)

    @cached_property
    def _reference_runs(self) -> dict[str, dict[str, npt.NDArray]]:
        return {}

    def _dims(self) -> dict[str, int]:
        """What the policy says of symbolic dimensions, and what the reference has fixed."""
        dims: dict[str, int] = {}
        if self.reference_model is not None and self.specs is not None:
            theirs = {s.name: s for s in input_specs(self.reference_model) or ()}
            for spec in self.specs:
                other = theirs.get(self.input_names.get(spec.name, ""))
                if other is not None and len(other.shape) == len(spec.shape):
                    pairs = zip(spec.shape, other.shape, strict=True)
                    dims.update({a: b for a, b in pairs if isinstance(a, str) and isinstance(b, int)})
        return {**dims, **self.policy.numerics.dims}

    def _sizes(self) -> tuple[int, ...]:
        named = self._dims()
        free = {d for s in self.specs or () for d in s.shape if isinstance(d, str) and d not in named}
        free -= set(batch_dims(self.specs or ()))
        return DYNAMIC_SIZES if free else DYNAMIC_SIZES[:1]

    def _candidates(self, size: int) -> list[InputSet]:
        self._size = size
        sets = [self._from_data(data) for data in self.datasets]
        specs = self.specs
        if specs is None:
            return sets
        settings = self.policy.numerics
        dims = self._dims()
        has_batch = any(name not in dims for name in batch_dims(specs))
        try:
            for seed in settings.seeds:
                for batch in settings.batch_sizes if has_batch else settings.batch_sizes[:1]:
                    label = f"random inputs (seed {seed}{f', batch {batch}' if has_batch else ''})"
                    sets.append(InputSet(label, random_inputs(specs, batch, seed, dims, size)))
        except UsageError:
            if not sets:
                raise
        return sets

    def _from_data(self, data: Dataset) -> InputSet:
        wanted = _asked(self.model)
        missing = [name for name in wanted if name not in data.inputs]
        if missing:
            raise UsageError(f"{data.path} lacks inputs {missing}; it has {sorted(data.inputs)}")
        fixed = [s.shape[0] for s in self.specs or () if s.shape and isinstance(s.shape[0], int)]
        count = fixed[0] if fixed and isinstance(fixed[0], int) else self.policy.numerics.samples
        inputs = {name: data.inputs[name][:count] for name in wanted}
        return InputSet(f"{os.path.basename(data.path)}", inputs, is_random=False)

    _ran: tuple[InputSet, ...] = ()
    _size: int = DYNAMIC_SIZES[0]


def _asked(model: ir.Model) -> list[str]:
    return [str(v.name) for v in model.graph.inputs if v.name not in model.graph.initializers]


def as_torch_outputs(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """The outputs of a torch module under the names of the model's outputs.

    Raises:
        CheckFailed: they are not as many.
    """
    if len(names) != len(values):
        raise CheckFailed(f"the torch module gives {len(values)} outputs, the model {len(names)}")
    return dict(zip(names, values, strict=True))
