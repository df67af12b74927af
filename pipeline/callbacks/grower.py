"""One growth in the middle of a training: the analysis, and the growth of all that belongs to the network."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from growpipe.analyser.analysis import analysis_of
from growpipe.analyser.options import AnalysisOptions
from growpipe.budgets.budget import GrowthBudget
from growpipe.callbacks.schedule import Cues, When
from growpipe.data.loader_items import as_tuple
from growpipe.graph_ops.cost.cost import CostModel
from growpipe.graph_ops.errors import NothingToSplit, UsageError
from growpipe.progress import log
from growpipe.torch_module.export import GrowthExport, export_growth_form
from growpipe.torch_module.grow_module import grow_in_place
from growpipe.torch_module.outputs import LossFunction, evaluation_mode
from growpipe.tracking.curves import growth_curves
from growpipe.tracking.trackers import Tracker
from growpipe.user_code import call_user_code

__all__ = ["Grower", "Growth", "Learner", "kept_random_state"]


@dataclass(frozen=True, eq=False)
class Learner:
    """A network in training, and what has to grow with it.

    Attributes:
        model: the network; its ``forward`` takes the inputs of the batches by position.
        loss_fn: ``(output, target)`` to the mean loss over the samples.
        batches: gives ``(inputs, target)`` pairs, and can be iterated again.
        optimizer: trains the network; None before training has begun.
        averaged: averages of the network's weights.
        others: parameters of other modules that the optimizer trains as well.
    """

    model: nn.Module
    loss_fn: LossFunction
    batches: Iterable[Any]
    optimizer: torch.optim.Optimizer | None = None
    averaged: tuple[nn.Module, ...] = ()
    others: tuple[nn.Parameter, ...] = ()


@dataclass(frozen=True)
class Growth:
    """One growth.

    Attributes:
        step: the optimizer steps that were done before it.
        parameters: the parameters of the grown network.
        macs: multiply-accumulates per sample of the grown network.
        predicted: the predicted decrease of the loss.
        realised: the decrease of the loss on samples that the analysis had not seen.
        epsilon: the step ε.
        widths: of the channel groups that grew, by name.
    """

    step: int
    parameters: int
    macs: int
    predicted: float
    realised: float
    epsilon: float
    widths: Mapping[str, int]

    def scalars(self) -> dict[str, float]:
        """What a tracker draws."""
        return growth_curves(self.parameters, self.macs, -self.predicted, -self.realised, self.epsilon)

    def __str__(self) -> str:
        grown = ", ".join(f"{name} to {width}" for name, width in self.widths.items())
        return (
            f"grown after {self.step} steps: {self.parameters:,} parameters, {self.macs:,} MACs; loss "
            f"{-self.realised:+.3g} ({-self.predicted:+.3g} predicted); {grown}"
        )


class Grower:
    """Grows the network of a training when it is time, up to a budget.

    Attributes:
        cues: when it is time.
        history: the growths so far.
        seed_parameters: the parameters of the network that training began with; None before that.
        trackers: are told of every growth.
    """

    def __init__(
        self,
        when: When,
        budget: GrowthBudget | float | None,
        growth: Any,
        options: Mapping[str, Any],
        trackers: Iterable[Tracker] = (),
    ) -> None:
        """Take what the callbacks take.

        Args:
            when: when to grow.
            budget: what the network may grow to; a number is a multiple of the parameters that training
                began with.
            growth: the growth options, or the share of channels to add each time.
            options: single options of an analysis by name, as `growpipe.analyse` takes them.
            trackers: are told of every growth; closed at the end of training.

        Raises:
            UsageError: one makes no sense.
        """
        if not isinstance(when, When):
            raise UsageError(f"the first argument says when to grow: When(steps=(100, 200)), not {when!r}")
        if isinstance(budget, (int, float)) and not budget > 1:
            raise UsageError(f"a budget of {budget} times the network leaves no room; give more than 1")
        self.cues = Cues(when)
        self.history: list[Growth] = []
        self.seed_parameters: int | None = None
        self.trackers = tuple(trackers)
        self._budget = budget
        self._options = AnalysisOptions.of(growth, None, None, options)

    def begin(self, learner: Learner, step: int) -> None:
        """Try the network on one batch, before step ``step`` of the training: what does not fit is said now.

        Raises:
            UsageError: the network cannot be exported, its loss fails, or it is beyond the budget.
        """
        if self.seed_parameters is None:
            self.seed_parameters = _parameters(learner.model)
        inputs, target = _first(learner.batches)
        with torch.no_grad(), evaluation_mode(learner.model):
            output = call_user_code("the network", learner.model, *as_tuple(inputs))
            call_user_code("the loss", lambda: float(learner.loss_fn(output, target)))
        cost = self._exported(learner, inputs).groups().cost
        self._check_room(cost)
        if not self.history:
            self.track(growth_curves(_parameters(learner.model), int(cost.macs())), step)

    def grow(self, learner: Learner, step: int) -> Growth | None:
        """Let the network grow now.

        Returns:
            None if nothing is left to grow; a line on stderr says why, and no growth is due any more.

        Raises:
            UsageError: as `growpipe.analyse` and `growpipe.grow` do. Nothing is changed then.
        """
        with kept_random_state():
            inputs, _ = _first(learner.batches)
            export = self._exported(learner, inputs)
            try:
                found = analysis_of(
                    learner.model, learner.loss_fn, learner.batches, export, self._options, self._limits()
                )
            except NothingToSplit as end:
                log(f"growth is over after {step} steps: {end}")
                self.cues.end()
                return None
            plan = found.plan
            grow_in_place(learner.model, plan, learner.optimizer, learner.averaged, learner.others)
        done = Growth(
            step,
            _parameters(learner.model),
            int(export.groups().cost.macs(plan.widths)),
            -(plan.predicted_change or 0.0),
            -(plan.realised_change or 0.0),
            plan.epsilon,
            plan.widths,
        )
        self.history.append(done)
        self.cues.grown()
        if found.report.budget_spent:
            self.cues.end()
        log(str(done))
        self.track(done.scalars(), step)
        return done

    def track(self, values: Mapping[str, Any], step: int) -> None:
        """Tell the trackers the numbers among ``values``."""
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1)
        }
        for tracker in self.trackers:
            tracker.scalars(numbers, step)

    def end(self) -> None:
        """Training is over."""
        for tracker in self.trackers:
            tracker.close()

    def _exported(self, learner: Learner, inputs: Any) -> GrowthExport:
        """The network as it is, on the CPU, where it is exported."""
        here = all(tensor.device.type == "cpu" for tensor in learner.model.parameters())
        model = learner.model if here else copy.deepcopy(learner.model).cpu()
        moved = tuple(v.cpu() if isinstance(v, torch.Tensor) else v for v in as_tuple(inputs))
        with evaluation_mode(model):
            return export_growth_form(model, moved)

    def _limits(self) -> GrowthBudget | None:
        """What the network may cost."""
        if isinstance(self._budget, (int, float)):
            assert self.seed_parameters is not None
            return GrowthBudget(parameters=int(self._budget * self.seed_parameters))
        return self._budget

    def _check_room(self, cost: CostModel) -> None:
        budget = self._limits()
        if budget is None:
            return
        costs = ((cost.parameters(), budget.parameters, "parameters"), (cost.macs(), budget.macs, "MACs"))
        for value, limit, unit in costs:
            if limit is not None and value > limit:
                raise UsageError(
                    f"the network has {value:,} {unit}, more than the budget of {limit:,}; give a larger "
                    "budget, or begin with a smaller network"
                )


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _first(batches: Iterable[Any]) -> tuple[Any, Any]:
    """The first batch."""
    for inputs, target in batches:
        return inputs, target
    raise UsageError("the training loader gives no batch; growth needs data to analyse")


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """Random numbers inside; the state of every generator afterwards as before."""
    plain, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - data sets of others use it
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)  # noqa: NPY002 - data sets of others use it
