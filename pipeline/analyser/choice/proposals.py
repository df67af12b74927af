"""From chosen rows to plans, and from plans to the loss of the grown module on real batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from growpipe.analyser.choice.calibration import Measured
from growpipe.analyser.choice.orientation import STEP, best_signs
from growpipe.analyser.choice.plan_splits import Rows, Signs, Step, is_asymmetric, split_groups
from growpipe.analyser.preparation import Subject
from growpipe.analyser.samples import MicroBatch
from growpipe.analyser.schemes import Scheme
from growpipe.analyser.spectra.spectra import Spectra
from growpipe.graph_ops.plan.split_plan import SplitPlan, hash_parameters
from growpipe.torch_module.export import named_tensors
from growpipe.torch_module.grow_module import grow_into
from growpipe.torch_module.outputs import to_numpy

__all__ = ["Proposals"]


@dataclass(frozen=True, eq=False)
class Proposals:
    """Plans of one analysis, and what they do to the loss.

    Attributes:
        subject: the module, its loss, and where to run.
        spectra: eigenpairs of every channel.
        scheme: which rows there are, and c.
        metric: in which the displacements have length 1.
        trial_data: micro-batches of this process on which a trial is evaluated.
        ranking_data: sets of micro-batches, of equal weight, on which groups are measured by themselves.
    """

    subject: Subject
    spectra: Spectra
    scheme: Scheme
    metric: str
    trial_data: Sequence[MicroBatch]
    ranking_data: Sequence[Sequence[MicroBatch]]
    base: float = field(init=False)
    """The mean loss of the module as it is, on the trial data."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", self.loss(None, self.trial_data))

    @cached_property
    def _trial_module(self) -> nn.Module:
        """A copy of the module which is grown by plan after plan: to copy takes longer than to try."""
        return copy.deepcopy(self.subject.model)

    def signs(self, rows: Rows, step: float | None) -> Signs:
        """The sign of every channel's v+, see `orientation`; ±1, float64 [width] by group."""
        subject = self.subject
        return best_signs(
            subject.prepared.program,
            self.trial_data if is_asymmetric(rows) else (),
            subject.loss_fn,
            rows,
            self.spectra.directions,
            self.scheme.c,
            subject.peers.total,
            step or STEP,
        )

    def plan(self, rows: Rows, step: Step) -> SplitPlan:
        """The plan of these rows, for a trial: without the hash of the parameters it belongs to.

        To hash them takes longer than to try a plan; see `sealed`.
        """
        prepared = self.subject.prepared
        program, groups = prepared.program, prepared.groups
        values = self.spectra.values(rows)
        splits = split_groups(program.groups, rows, self.spectra.directions, values, self.scheme.c, step)
        # Constants that the exporter made, such as zero biases, are the graph's own business.
        layouts = {
            name: layout
            for name, layout in groups.restricted([split.group for split in splits]).items()
            if name in self._tensors
        }
        return SplitPlan(
            groups=splits,
            layouts=layouts,
            epsilon=step.epsilon,
            graph_hash=groups.graph_hash,
            parameters_hash="",
            scheme=self.scheme.name,
            c=self.scheme.c,
            metric=self.metric,
            surrogate=program.surrogate.name if program.surrogate_used else None,
            predicted_change=sum(split.predicted_change or 0.0 for split in splits),
            module_sizes=prepared.fit.sizes_of(split.group for split in splits),
        )

    def sealed(self, plan: SplitPlan) -> SplitPlan:
        """The plan with the hash of the parameters that it belongs to."""
        found = hash_parameters(plan.layouts, lambda name: to_numpy(self._tensors[name]))
        return replace(plan, parameters_hash=found)

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return named_tensors(self.subject.model)

    def change(self, plan: SplitPlan) -> float:
        """By how much the mean loss on the trial data changes."""
        return self.loss(plan, self.trial_data) - self.base

    def change_alone(self, signs: Signs) -> Callable[[str, npt.NDArray[np.int64], float], float]:
        """By how much it changes when only one group splits: ``(group, rows int64 [width], ε) →``."""

        def change(group: str, rows: npt.NDArray[np.int64], step: float) -> float:
            return self.change(self._plan_alone(group, rows, step, signs))

        return change

    def measure_alone(self, signs: Signs) -> Callable[[str, npt.NDArray[np.int64], float], Measured]:
        """The same on the ranking data, with the standard error: ``(group, rows int64 [width], ε) →``.

        The change is the mean of those on the sets; the variance of a sample's change is estimated from the
        micro-batches of all sets, each about its set's mean.
        """

        def measure(group: str, rows: npt.NDArray[np.int64], step: float) -> Measured:
            plan = self._plan_alone(group, rows, step, signs)
            changes: list[float] = []
            samples: list[float] = []
            squares = freedom = 0.0
            for data, before in zip(self.ranking_data, self._ranking_base, strict=True):
                counts = np.array([batch.samples for batch in data], dtype=np.float64)
                found = np.array(self.losses(plan, data)) - before
                count, total, square, batches = self.subject.peers.totals(
                    float(counts.sum()),
                    float(counts @ found),
                    float(counts @ found**2),
                    len(found),
                    device=self.subject.device,
                )
                changes.append(total / count)
                samples.append(count)
                squares += square - total**2 / count
                freedom += batches - 1
            variance = max(0.0, squares) / freedom if freedom > 0 else 0.0
            error = np.sqrt(variance * sum(1 / count for count in samples)) / len(samples)
            return Measured(float(np.mean(changes)), float(error))

        return measure

    @cached_property
    def _ranking_base(self) -> list[npt.NDArray[np.float64]]:
        """The loss of the module as it is, by set and micro-batch of the ranking data."""
        return [np.array(self.losses(None, data)) for data in self.ranking_data]

    def _plan_alone(self, group: str, rows: npt.NDArray[np.int64], step: float, signs: Signs) -> SplitPlan:
        still = {g.name: np.full(g.width, -1) for g in self.subject.prepared.program.groups}
        return self.plan({**still, group: rows}, Step(step, signs))

    def loss(self, plan: SplitPlan | None, data: Sequence[MicroBatch]) -> float:
        """The mean loss of the module grown by a plan, or as it is, over the data of all processes."""
        losses = self.losses(plan, data)
        own = sum(loss * batch.samples for loss, batch in zip(losses, data, strict=True))
        total, samples = self.subject.peers.totals(
            own, sum(batch.samples for batch in data), device=self.subject.device
        )
        return total / samples

    def losses(self, plan: SplitPlan | None, data: Sequence[MicroBatch]) -> list[float]:
        """Those of every micro-batch of this process."""
        subject = self.subject
        if plan is not None:
            module = grow_into(self._trial_module, subject.model, plan).to(subject.device)
        elif all(p.device == subject.device for p in subject.model.parameters()):
            module = subject.model
        else:
            module = copy.deepcopy(subject.model).to(subject.device)
        with torch.no_grad():
            return [float(subject.loss_fn(module(*batch.inputs), batch.target)) for batch in data]
