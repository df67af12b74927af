"""From a torch module to a split plan in four phases: prepare, measure, choose, step."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from growpipe.analyser.choice.calibration import Calibration, calibrate
from growpipe.analyser.choice.growth_limits import GrowthLimits
from growpipe.analyser.choice.line_search import START, LineSearch, line_search
from growpipe.analyser.choice.orientation import SHARE
from growpipe.analyser.choice.plan_splits import Signs, Step
from growpipe.analyser.choice.proposals import Proposals
from growpipe.analyser.choice.shared_trials import ROUNDS
from growpipe.analyser.choice.spending import Spending, spend
from growpipe.analyser.curvature.heap import give_back
from growpipe.analyser.curvature.metric import GrowingMetric
from growpipe.analyser.curvature.operator import SplittingProducts
from growpipe.analyser.estimate import Estimate, Outlook
from growpipe.analyser.factor_plans import added_cost, factors_alone, with_factors
from growpipe.analyser.options import AnalysisOptions
from growpipe.analyser.preparation import Subject, device_of, prepare
from growpipe.analyser.program.precision import own_settings
from growpipe.analyser.report import Analysis, AnalysisReport
from growpipe.analyser.resources import default_memory, gains_by_rounding, trial_batch
from growpipe.analyser.samples import Samples, check_mean_loss, collect, resized
from growpipe.analyser.schemes import Scheme, scheme_of
from growpipe.analyser.spectra.analysis_set import GrowingSet
from growpipe.analyser.spectra.spectra import Spectra, measure_spectra
from growpipe.analyser.watch import Watch, bar
from growpipe.budgets.budget import GrowthBudget
from growpipe.data.loader_items import as_tuple
from growpipe.graph_ops.errors import NothingToSplit
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.parallel.processes import processes
from growpipe.torch_module.export import GrowthExport
from growpipe.torch_module.outputs import LossFunction, evaluation_mode

__all__ = ["analysis_of"]

logger = logging.getLogger(__name__)

ROUNDED_TOLERANCE = 0.01
"""The least tolerance of eigenvalues for which rounded factors are exact enough."""

STORAGE = {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16}


def analysis_of(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    example_inputs: Any,
    options: AnalysisOptions,
    budget: GrowthBudget | None,
    watch: Watch | None = None,
) -> Analysis:
    """The plan of `analyse`, with the report of how it came about; see there.

    Args:
        model: the module.
        loss_fn: the mean loss.
        batches: gives ``(inputs, target)`` pairs.
        example_inputs: positional inputs of ``model``, a single one, or a `GrowthExport` of it.
        options: the options.
        budget: what the grown network may cost; None for no such bound.
        watch: is told how far the analysis is; None shows a bar on the terminal.
    """
    started = time.perf_counter()
    device = device_of(model, options.spectra.device)
    peers = processes(device)  # before the bar, which asks who this process is
    limits = GrowthLimits(options.growth, budget)
    with (
        bar() if watch is None else nullcontext(watch) as seen,
        own_settings(tf32=options.spectra.tf32),
        evaluation_mode(model),
    ):
        seen.phase("export")
        prepared = prepare(model, _examples(example_inputs), options.growth, device)
        subject = Subject(model, loss_fn, prepared, peers, device)
        limits = replace(limits, joined=prepared.fit.joined)
        if not prepared.program.groups:
            return factors_alone(subject, budget, options)
        samples = _samples(batches, subject, options)
        subject = _rounding(_for_sizes_of(samples, subject), options)
        Estimate.of_samples(samples, options, seen.prices).tell(seen)
        seen.phase("spectra")
        spectra = _measure(subject, samples, options, seen)
        seen.phase("trials")
        give_back(device, allowed=0)
        proposals = _proposals(subject, samples, spectra, options, seen)
        choice = _choose(subject, spectra, proposals, limits, options)
        if choice is None:
            return factors_alone(subject, budget, options)
        seen.phase("line search")
        give_back(device, allowed=0)
        found, step = _step(proposals, choice, options.growth.epsilon)
        seen.phase("plan")
        plan = proposals.sealed(with_factors(choice.plan(proposals, step), subject, options.spectra.seed))
        realised = _realised(proposals, plan, found, samples, options.trials.line_search_samples)
        subject.peers.agree("the plan", f"{plan.content_hash} {realised}")
    selection = choice.spending.selection
    report = AnalysisReport(
        stages=spectra.stages,
        ranking_stable=spectra.ranking_stable,
        groups=spectra.report(selection.rows),
        samples=samples.count,
        held_out=samples.held_out_count,
        displaced=options.growth.displace,
        damping=options.growth.damping if options.growth.metric == "input" else None,
        rounded_products=subject.prepared.program.rounds,
        sketched=spectra.sketched,
        selection=selection.notes,
        budget_spent=choice.spending.spent,
        cost=choice.spending.cost,
        added=added_cost(subject.prepared.groups.cost, plan.widths),
        calibration=None if choice.calibration is None else choice.calibration.trials(),
        rigid=subject.prepared.fit.rigid,
        joined=subject.prepared.fit.joined_names,
        factors=subject.prepared.factors,
        base_loss=proposals.base,
        epsilon=options.growth.epsilon,
        line_search=found,
        seed=options.spectra.seed,
    )
    logger.info(
        "analysed %d groups in %.1f s: %d channels added, loss %.3g predicted, %.3g realised at epsilon %.3g",
        len(subject.prepared.program.groups), time.perf_counter() - started, plan.added_channels,
        plan.predicted_change or 0.0, realised, plan.epsilon,
    )  # fmt: skip
    return Analysis(replace(plan, realised_change=realised, notes={"analysis": report.notes()}), report)


# Prepare.


def _examples(inputs: Any) -> tuple[Any, ...] | GrowthExport:
    """Positional inputs, or an export, from what was given."""
    return inputs if isinstance(inputs, GrowthExport) else as_tuple(inputs)


def _samples(batches: Iterable[Any], subject: Subject, options: AnalysisOptions) -> Samples:
    """The samples that the options ask for; the loss is checked on the first micro-batch."""
    trials, peers = options.trials, subject.peers
    most = max(
        2 * trials.line_search_samples if options.growth.epsilon is None else 0,
        trials.step_samples if trials.ranking == "realised" else 0,
        trials.ranking_samples if trials.ranking == "realised" else 0,
    )
    data, held_out = collect(
        batches,
        max_samples=options.spectra.max_samples,
        micro_batch=options.spectra.micro_batch,
        device=subject.device,
        dtype=subject.prepared.dtype,
        shard=(peers.rank, peers.world),
        held_out=most // 2 if trials.hold_out else 0,
    )
    program = subject.prepared.program
    began = time.perf_counter()
    check_mean_loss(lambda x, y: program.loss(x, y, subject.loss_fn), data[0])
    # It takes three forward passes per sample, as much as a training step.
    seconds = (time.perf_counter() - began) / data[0].samples
    counts = peers.totals(
        sum(batch.samples for batch in data),
        sum(batch.samples for batch in held_out),
        device=subject.device,
    )
    count, held_out_count = (int(total) for total in counts)
    return Samples(data, held_out, count, held_out_count, seconds)


def _for_sizes_of(samples: Samples, subject: Subject) -> Subject:
    """The subject; kernels are displaced as a whole if inputs have other sizes than the example inputs."""
    program = subject.prepared.program
    here = sum(not program.have_traced_sizes(b.inputs) for b in (*samples.data, *samples.held_out))
    (others,) = subject.peers.totals(here, device=subject.device)
    if not others:
        return subject
    return replace(subject, prepared=replace(subject.prepared, program=program.with_whole_kernels()))


def _rounding(subject: Subject, options: AnalysisOptions) -> Subject:
    """The subject; its program rounds factors if the options say so, or if every process gains by it."""
    program, rounds = subject.prepared.program, options.spectra.rounded_products
    if rounds is None and options.spectra.tolerance >= ROUNDED_TOLERANCE:
        loses = not gains_by_rounding(program, subject.device)
        (losing,) = subject.peers.totals(loses, device=subject.device)
        rounds = not losing
    if subject.prepared.dtype != torch.float32 or not rounds:
        return subject
    return replace(subject, prepared=replace(subject.prepared, program=program.with_rounded_factors()))


# Measure.


def _measure(subject: Subject, samples: Samples, options: AnalysisOptions, watch: Watch) -> Spectra:
    """The extreme eigenpairs of every channel."""
    program, limit = subject.prepared.program, options.spectra.memory_limit
    operator = SplittingProducts(
        program,
        default_memory(program, samples.data[0].inputs, subject.device) if limit is None else limit,
        storage=STORAGE[options.spectra.storage],
        reduce=None if subject.peers.world == 1 else subject.peers.total,
    )
    sets = GrowingSet(operator, samples.data, subject)
    outlook = Outlook(samples, options, watch, sets)
    operator.done = outlook.done
    spectra = measure_spectra(
        sets,
        GrowingMetric(options.growth.metric, options.growth.damping),
        _scheme(options),
        options.spectra,
        outlook.grows,
    )
    outlook.ended()
    operator.drop_graphs()
    return spectra


def _scheme(options: AnalysisOptions) -> Scheme:
    return scheme_of(options.growth.scheme, options.growth.c)


# Choose.


def _proposals(
    subject: Subject, samples: Samples, spectra: Spectra, options: AnalysisOptions, watch: Watch
) -> Proposals:
    trials = options.trials
    # No more at once than the loader gave: that is what there is memory for.
    largest = max(samples.data, key=lambda batch: batch.samples)
    most = trial_batch(subject.prepared.program, largest)
    sets = {part: samples.mixed(math.ceil(part * trials.step_samples), most) for part in {SHARE, *ROUNDS}}
    return Proposals(
        subject,
        spectra,
        _scheme(options),
        options.growth.metric,
        resized(samples.fresh(trials.line_search_samples), largest.samples),
        sets[SHARE],
        [sets[part] for part in ROUNDS],
        samples.halves(trials.ranking_samples),
        options.growth.epsilon,
        watch,
    )


@dataclass(frozen=True, eq=False)
class _Choice:
    """Which channels split, and how.

    Attributes:
        spending: the selection and what it does to the budget.
        calibration: what the shared trials showed; None if they are ranked by prediction.
        signs: the sign of every channel's v+.
    """

    spending: Spending
    calibration: Calibration | None
    signs: Signs

    def plan(self, proposals: Proposals, step: Step) -> SplitPlan:
        return proposals.plan(self.spending.selection.rows, step)


def _choose(
    subject: Subject,
    spectra: Spectra,
    proposals: Proposals,
    limits: GrowthLimits,
    options: AnalysisOptions,
) -> _Choice | None:
    """The best splits within the limits; None if none lowers the loss, and factors were asked for.

    Raises:
        NothingToSplit: no split lowers the loss, or the budget is spent.
    """
    calibration: Calibration | None = None
    if options.trials.ranking == "realised":
        rows = {offered.group: offered.rows[0] for offered in spectra.candidates}
        signs = proposals.signs(rows)
        calibration = calibrate(
            spectra.candidates,
            proposals.shared_trials(rows, signs),
            proposals.step_data,
            None if limits.decides(rows) else proposals.ranking_data,
        )
    groups = subject.prepared.groups
    spending = spend(
        spectra.candidates if calibration is None else calibration.measured(spectra.candidates),
        groups.cost,
        limits,
        sum(group.width for group in subject.prepared.program.groups),
        {g.name: g.width * subject.prepared.factors.get(g.name, 1) for g in groups.groups},
    )
    selection = spending.selection
    if not selection.widths and subject.prepared.factors:
        return None
    if not selection.widths:
        raise NothingToSplit(f"nothing is left to split: {selection.notes}")
    return _Choice(spending, calibration, proposals.signs(selection.rows))


# Step.


def _step(proposals: Proposals, choice: _Choice, epsilon: float | None) -> tuple[LineSearch | None, Step]:
    """How far the chosen splits go, and the trials that found it; None if the step was given."""
    if epsilon is not None:  # it is every group's
        return None, Step(epsilon, choice.signs)
    calibration = choice.calibration
    lengths = {} if calibration is None else calibration.lengths()

    def change(size: float) -> float:
        return proposals.change(choice.plan(proposals, Step(size, choice.signs, lengths)))

    found = line_search(change, start=START if calibration is None else calibration.largest or START)
    return found, Step(found.best.epsilon, choice.signs, lengths)


def _realised(
    proposals: Proposals, plan: SplitPlan, found: LineSearch | None, samples: Samples, tried: int
) -> float:
    """By how much the finished plan changes the mean loss of all samples that judge it.

    The search of its step knows that, if it tried all of these and nothing was added to the plan since.
    """
    if found is not None and 0 < samples.held_out_count <= tried and not proposals.subject.prepared.factors:
        return found.best.change
    return proposals.loss(plan, samples.judged) - proposals.loss(None, samples.judged)
