"""From chosen rows to plans, and from plans to the loss of the grown module on real batches."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from growpipe.analyser.choice.orientation import STEP, Orientation
from growpipe.analyser.choice.plan_splits import Rows, Signs, Step, split_groups
from growpipe.analyser.choice.shared_trials import SharedTrials
from growpipe.analyser.preparation import Subject
from growpipe.analyser.program.copies import Pair
from growpipe.analyser.program.split_network import split_networks
from growpipe.analyser.program.values import module_takes_channels_last, run_module
from growpipe.analyser.samples import MicroBatch
from growpipe.analyser.schemes import ROWS, Scheme
from growpipe.analyser.spectra.spectra import Spectra
from growpipe.analyser.watch import LOSS, Watch
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
        trial_data: micro-batches of this process on which a plan is tried.
        sign_data: those on which the signs of v+ are found.
        step_data: by round those on which the steps of the groups are found.
        ranking_data: sets of micro-batches, of equal weight, on which the worth of groups is measured.
        epsilon: the step that the options ask for; None if it is to be found.
        watch: is told of all that is done.
    """

    subject: Subject
    spectra: Spectra
    scheme: Scheme
    metric: str
    trial_data: Sequence[MicroBatch]
    sign_data: Sequence[MicroBatch]
    step_data: Sequence[Sequence[MicroBatch]]
    ranking_data: Sequence[Sequence[MicroBatch]]
    epsilon: float | None = None
    watch: Watch = field(default_factory=Watch)
    base: float = field(init=False)
    """The mean loss of the module as it is, on the trial data."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", self.loss(None, self.trial_data))

    @cached_property
    def _trial_module(self) -> nn.Module:
        """A copy of the module which is grown by plan after plan: to copy takes longer than to try."""
        return copy.deepcopy(self.subject.model)

    @cached_property
    def _channels_last(self) -> bool:
        return module_takes_channels_last(self.subject.prepared.program.nodes)

    def signs(self, rows: Rows) -> Signs:
        """The sign of every channel's v+, see `orientation`; ±1, float64 [width] by group."""
        return self._orientation.signs(rows)

    @cached_property
    def _orientation(self) -> Orientation:
        subject = self.subject
        return Orientation(
            subject.prepared.program,
            self.sign_data,
            subject.loss_fn,
            self.spectra.directions,
            self.scheme.c,
            subject.peers.total,
            self.epsilon or STEP,
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

    def shared_trials(self, rows: Rows, signs: Signs) -> SharedTrials | None:
        """The trials of all groups whose splits by these rows, of two copies each, promise something."""
        values = self.spectra.values(rows)
        pairs = {
            group: self._pair(group, chosen, signs[group])
            for group, chosen in rows.items()
            if values[group] < 0
        }
        if not pairs:
            return None
        subject = self.subject
        parts = split_networks(subject.prepared.program, pairs, subject.prepared.groups.layouts)
        groups = [group.name for part in parts for group in part.groups]

        def slopes(batch: MicroBatch, steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            found, first = [], 0
            for part in parts:
                last = first + len(part.groups)
                own = steps[first:last].tolist()
                found.append(part.slopes(batch.inputs, batch.target, subject.loss_fn, own)[1].cpu().numpy())
                first = last
            self.watch.advance(self.watch.prices.slopes * batch.samples)
            return np.concatenate(found)

        def total(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            here = torch.from_numpy(values).to(subject.device)
            return subject.peers.total(here).cpu().numpy()

        return SharedTrials(groups, np.array([-values[name] / 2 for name in groups]), slopes, total)

    def _pair(self, group: str, rows: npt.NDArray[np.int64], signs: npt.NDArray[np.floating]) -> Pair:
        """The copies of a group's channels by rows of two copies; a channel that stays is twice itself."""
        minus, plus = self.spectra.directions.minus[group], self.spectra.directions.plus[group]
        weights, displacement = np.full((2, len(rows)), 0.5), np.zeros_like(minus)
        for channel in np.flatnonzero(rows >= 0):
            first, second = ROWS[rows[channel]].offspring(self.scheme.c)
            weights[:, channel] = first.weight, second.weight
            turned = float(signs[channel]) * first.plus
            displacement[channel] = first.minus * minus[channel] + turned * plus[channel]
        to = self.subject.device
        return Pair(torch.from_numpy(weights).to(to), torch.from_numpy(displacement).to(to))

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
        found = []
        with torch.no_grad():
            for batch in data:
                output = run_module(module, batch.inputs, self._channels_last)
                found.append(float(subject.loss_fn(output, batch.target)))
                self.watch.advance(LOSS * batch.samples)
        return found
