"""What the checks look at: the model, what it is compared with, and its runs, each made once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import onnx
import onnx_ir as ir

from growpipe.checks.baseline import Baseline
from growpipe.checks.child.model_process import (
    ModelCrashed,
    ModelHung,
    ModelProcess,
    NodeCount,
    TorchOutputs,
)
from growpipe.checks.input_sets import InputMaker, Inputs, InputSet, Runs
from growpipe.checks.measure.inputs import Dataset, InputSpec, input_specs
from growpipe.checks.measure.judge import Judge, Judged
from growpipe.checks.measure.memory import MemoryRoom, bytes_of
from growpipe.checks.measure.sessions import Device
from growpipe.checks.policy import Policy
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import CheckFailed, UsageError
from growpipe.graph_ops.files.load_save import read_model
from growpipe.graph_ops.onnx_tools.width_check import ShapeInference, infer_with_problems

__all__ = ["Context", "NotRunnable", "ReferenceModel", "TorchReference"]


class NotRunnable(CheckFailed):
    """A check needs runs of the model, and there are none."""


@dataclass(frozen=True)
class ReferenceModel:
    """A model file that must compute the same.

    Attributes:
        path: of the file, absolute.
        model: what the safe loader read from it.
    """

    path: Path
    model: ir.Model


class TorchReference(Protocol):
    """A torch module that must compute the same."""

    @property
    def name(self) -> str:
        """What the module is called in a message."""

    def calls(self, names: Sequence[str]) -> Sequence[str]:
        """The ways to call the module with inputs of these names, in words; likely ones first.

        Raises:
            UsageError: there is none.
        """

    def run(
        self, inputs: Inputs, *, way: int = 0, double: bool = False, modules: Sequence[str] = ()
    ) -> TorchOutputs:
        """Run the module in eval mode.

        Args:
            inputs: by the names of the checked model.
            way: which of the ways to call the module.
            double: run a copy in float64.
            modules: submodules whose outputs are wanted too.
        """


@dataclass
class Context:
    """The subject of the checks and everything they share.

    Attributes:
        path: the model's file, absolute.
        policy: what is allowed.
        process: where models run.
        device: on which device models run.
        reference: the reference model, if there is one.
        torch: the torch module to compare with, if there is one.
        datasets: the user's inputs.
        baseline: what an earlier model measured, if that was given.
        metric_process: where a metric that is code of the user judges models, with torch.
    """

    path: Path
    policy: Policy
    process: ModelProcess
    device: Device = "cpu"
    reference: ReferenceModel | None = None
    torch: TorchReference | None = None
    datasets: Sequence[Dataset] = ()
    baseline: Baseline | None = None
    metric_process: ModelProcess | None = None
    _reference_runs: dict[str, dict[str, AnyArray]] = field(default_factory=dict)

    @cached_property
    def _read(self) -> tuple[onnx.ModelProto, ir.Model]:
        return read_model(self.path)

    @property
    def proto(self) -> onnx.ModelProto:
        """The model as it stands in the file, without external data.

        Raises:
            UnsafeModel: the model cannot or must not be read.
        """
        return self._read[0]

    @property
    def model(self) -> ir.Model:
        """The model, through the safe loader.

        Raises:
            UnsafeModel: the model cannot or must not be read.
        """
        return self._read[1]

    @cached_property
    def inference(self) -> ShapeInference:
        """The shapes that follow from the inputs and weights, and what contradicts them."""
        return infer_with_problems(self.model)

    @cached_property
    def specs(self) -> tuple[InputSpec, ...] | None:
        """What the model asks for; None if an input is not a tensor or has no known rank."""
        return input_specs(self.model)

    @cached_property
    def room(self) -> MemoryRoom:
        """The memory that this process may use for arrays."""
        return MemoryRoom(self.process.memory_mb)

    @cached_property
    def runs(self) -> Runs:
        """The runs at the highest optimisation.

        Raises:
            MissingEnvironment: the device is not there.
        """
        maker = InputMaker(self.specs, tuple(_asked(self.model)), self.policy.numerics, self._dims())
        tries = maker.of_other_sizes()
        for candidate in tries:
            runs = self._try(candidate)
            if runs.ran or any(isinstance(e, (ModelCrashed, ModelHung)) for e in runs.errors.values()):
                break
        return runs

    def _try(self, maker: InputMaker) -> Runs:
        ran: list[InputSet] = []
        outputs: dict[str, dict[str, AnyArray]] = {}
        errors: dict[str, CheckFailed] = {}
        for planned in maker.plan(self.datasets):
            try:
                given = planned.make(self.room)
                values = self.run(given.inputs)
                self.room.reserve(bytes_of(given.inputs) + bytes_of(values), "its inputs and outputs")
                outputs[given.label] = values
                ran.append(given)
            except CheckFailed as error:
                errors[planned.label] = error
                if isinstance(error, (ModelCrashed, ModelHung)):
                    break  # once is enough
        return Runs(tuple(ran), outputs, errors, maker)

    def first(self) -> InputSet:
        """The inputs for checks that need one run.

        Raises:
            NotRunnable: the model ran on no inputs.
        """
        if not self.runs.ran:
            reason = next(iter(self.runs.errors.values()), None)
            raise NotRunnable(str(reason or "there is nothing to run it on: give inputs with --data"))
        return self.runs.ran[0]

    def run(self, inputs: Inputs, *, optimised: bool = True, path: Path | None = None) -> dict[str, AnyArray]:
        """One run in the child process.

        Args:
            inputs: by the names of the model that runs.
            optimised: whether onnxruntime optimises the graph.
            path: of another model; None for the checked one.

        Raises:
            CheckFailed: the model does not run; `ModelCrashed` and `ModelHung` are such errors.
        """
        return self.process.run(path or self.path, inputs, self.device, optimised=optimised, room=self.room)

    def reference_inputs(self, inputs: Inputs) -> dict[str, AnyArray]:
        """The same inputs under the reference's names.

        Raises:
            UsageError: the reference asks for other inputs.
        """
        names = self.input_names
        return {names[name]: array for name, array in inputs.items() if name in names}

    @cached_property
    def input_names(self) -> dict[str, str]:
        """The reference's name of every input that it has; by position if the names differ."""
        assert self.reference is not None
        ours, theirs = _asked(self.model), _asked(self.reference.model)
        if set(theirs) <= set(ours):
            return {name: name for name in theirs}
        if len(ours) == len(theirs):
            return dict(zip(ours, theirs, strict=True))
        raise UsageError(f"the reference has inputs {theirs}, the model {ours}: they cannot be compared")

    def reference_run(self, given: InputSet) -> dict[str, AnyArray]:
        """The reference's outputs on the same inputs, each set run once."""
        if given.label not in self._reference_runs:
            assert self.reference is not None
            try:
                outputs = self.run(self.reference_inputs(given.inputs), path=self.reference.path)
            except CheckFailed as error:
                raise CheckFailed(f"the reference does not run on {given.label}: {error}") from None
            self.room.reserve(bytes_of(outputs), f"the outputs of the reference on {given.label}")
            self._reference_runs[given.label] = outputs
        return self._reference_runs[given.label]

    def judged(self, data: Dataset, judge: Judge, of_reference: bool = False) -> Judged:
        """What a metric says of the model, or of the reference, on data that have targets.

        Raises:
            UsageError: the data and the metric do not fit each other.
            CheckFailed: the model does not run, or its outputs do not fit the targets.
        """
        assert data.targets is not None
        process = self.metric_process if judge.is_own else self.process
        assert process is not None
        path, inputs = self.path, data.inputs
        if of_reference:
            assert self.reference is not None
            path, inputs = self.reference.path, self.reference_inputs(inputs)
        return process.judge(path, inputs, data.targets, self.device, judge)

    def sizes_on(self, given: InputSet) -> dict[str, int]:
        """The size of every symbolic dimension of the inputs, on these inputs."""
        return {
            dim: size
            for spec in self.specs or ()
            if (array := given.inputs.get(spec.name)) is not None and array.ndim == len(spec.shape)
            for dim, size in zip(spec.shape, array.shape, strict=True)
            if isinstance(dim, str)
        }

    @cached_property
    def node_count(self) -> NodeCount:
        """The nodes that remain after optimisation, counted by operator and by provider."""
        return self.process.count_nodes(self.path, self.first().inputs, self.device)

    def _dims(self) -> dict[str, int]:
        """What the policy says of symbolic dimensions, and what the reference has fixed."""
        dims: dict[str, int] = {}
        if self.reference is not None and self.specs is not None:
            theirs = {s.name: s for s in input_specs(self.reference.model) or ()}
            for spec in self.specs:
                other = theirs.get(self.input_names.get(spec.name, ""))
                if other is not None and len(other.shape) == len(spec.shape):
                    pairs = zip(spec.shape, other.shape, strict=True)
                    dims.update({a: b for a, b in pairs if isinstance(a, str) and isinstance(b, int)})
        return {**dims, **self.policy.numerics.dims}


def _asked(model: ir.Model) -> list[str]:
    return [str(v.name) for v in model.graph.inputs if v.name not in model.graph.initializers]
