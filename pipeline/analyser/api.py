"""`analyse`: from a torch module, a loss and batches to a split plan."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from growpipe.analyser.choice.calibration import Calibration, calibrate
from growpipe.analyser.choice.growth_limits import GrowthLimits
from growpipe.analyser.choice.line_search import EPSILONS, START, LineSearch, line_search
from growpipe.analyser.choice.plan_splits import is_asymmetric
from growpipe.analyser.choice.proposals import Proposals
from growpipe.analyser.choice.spending import spend
from growpipe.analyser.curvature.metric import METRICS, GrowingMetric
from growpipe.analyser.curvature.operator import SplittingOperator
from growpipe.analyser.preparation import default_memory, device_of, prepare
from growpipe.analyser.program.activations import Surrogate
from growpipe.analyser.samples import MIN_SAMPLES, MicroBatch, check_mean_loss, collect
from growpipe.analyser.schemes import scheme_of
from growpipe.analyser.spectra.solvers import SOLVERS
from growpipe.analyser.spectra.spectra import measure_spectra
from growpipe.budgets.budget import GrowthBudget
from growpipe.data.loader_items import as_tuple
from growpipe.graph_ops.errors import NothingToSplit, UsageError
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.parallel.processes import Processes, processes
from growpipe.torch_module.outputs import LossFunction

__all__ = ["RANKING_SAMPLES", "analyse"]

logger = logging.getLogger(__name__)

RANKINGS = ("realised", "predicted")
RANKING_SAMPLES = 1024
"""How many samples tell what a group is worth, unless told otherwise; half of them the spectra do not see."""
STORAGE = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def analyse(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    example_inputs: Any,
    *,
    scheme: str = "m4",
    c: float = 1.25,
    growth: float | None = None,
    epsilon: float | None = None,
    budget: GrowthBudget | None = None,
    metric: str = "input",
    damping: float = 1e-3,
    displace: Sequence[str] = ("weights",),
    surrogate_beta: float = 3.0,
    freeze: Sequence[str] = (),
    align: int = 1,
    widths: Mapping[str, tuple[int | None, int | None]] | None = None,
    max_factor: float = 2.0,
    cost_exponent: float = 0.5,
    balance: float = 0.5,
    ranking: str = "realised",
    solver: str = "auto",
    tolerance: float = 1e-2,
    stability: float = 0.95,
    noise_share: float = 0.5,
    max_samples: int = 2048,
    micro_batch: int = 128,
    line_search_samples: int = 512,
    ranking_samples: int = RANKING_SAMPLES,
    hold_out: bool = True,
    memory_limit: int | None = None,
    storage: str | None = None,
    tf32: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> SplitPlan:
    """The best signed splits of ``model``'s channels: which, into how many copies, where to, how far.

    For every channel of every splittable group the extreme eigenpairs of its splitting matrix
    ``S = ∇²_θθ Σ_e ⟨g_e, e(θ; x)⟩`` (arXiv 2003.10392, carried over to channel groups) are found,
    the optimal split is read off the table in `schemes`, the best candidates by gain per cost are chosen, and
    ε is searched on real batches. The model comes back exactly as it was given.

    Under ``torchrun`` (or in a process group that is open already) every process calls `analyse` with the
    same arguments and batches, works on its share of the micro-batches, and returns the identical plan.

    Args:
        model: the module; it is analysed in eval mode and its mode is restored.
        loss_fn: ``loss_fn(output, target)``, the mean loss over the samples of a batch, a scalar.
        batches: gives ``(inputs, target)`` pairs, and can be iterated again.
        example_inputs: positional inputs of ``model``, or a single one, for the export.
        scheme: ``"s2d"`` (positive pairs), ``"m2"``, ``"m3"`` or ``"m4"`` (at most that many copies).
        c: the bound on Σ|w_i|, at least 1. While positive splits are left, a larger one makes the loss
            sharper and training worse; where none is left, it goes further.
        growth: the share of channels to add; None means 0.3 without a budget, and no such bound with one.
        epsilon: the step ε in the metric's unit; None searches.
        budget: what the grown network may cost in parameters, MACs, or any other cost (see
            `growpipe.budgets.budget.GrowthBudget`); with a growth share both hold.
        metric: ``"euclidean"`` (‖δ‖² in parameter units) or ``"input"`` (δᵀ E[p pᵀ] δ, see `metric`).
        damping: of the input metric, as a share of the mean eigenvalue of Σ.
        displace: what is displaced: ``"weights"`` (of mixing producers), ``"filters"`` (depthwise),
            ``"biases"``, ``"affine"`` (batch-norm scale and shift).
        surrogate_beta: β of the surrogate curvature of kinked activations, softplus.
        freeze: names or globs of tensors that stay as they are on all their axes; ``widths`` holds a group.
        align: groups that grow end at a multiple of this width.
        widths: by group the least and the greatest width, either None.
        max_factor: no group grows beyond this multiple of its width.
        cost_exponent: candidates compete by gain / MACs (or what else is bounded) to this power.
        balance: how much of the growth every group gets before they compete: each whose splits lower the
            loss grows by fᵉ, e the balance and f the one factor for all that would use all the room. What a
            split gains at once says too little of what an early, narrow group is worth after training. 0
            lets groups compete for all.
        ranking: of the groups: ``"realised"`` by the decrease of loss that each realises by itself, see
            `calibration`; ``"predicted"`` by the quadratic prediction.
        solver: ``"dense"``, ``"lanczos"``, or ``"auto"``: for every group whichever is less work, as counted.
        tolerance: the error bound of the eigenvalues, as a share of each spectral radius.
        stability: the analysis set stops growing when the ranking of the candidates has this split-half
            reliability (see `spectra`); 1 uses all ``max_samples``.
        noise_share: error bounds of this share of a group's standard errors are enough, too (in root mean
            square over its channels): what is beyond is noise of the data. A larger set then takes its second
            block of products over the set before, where that does (see `refinement`). 0 leaves ``tolerance``
            alone.
        max_samples: the largest analysis set, of which the spectra are made.
        micro_batch: how many samples are worked on at once.
        line_search_samples: how many samples a trial of a step sees.
        ranking_samples: how many samples tell what a group is worth at its best step; none where ``widths``
            leaves every group one width.
        hold_out: half of the samples of a trial are none that the spectra saw: those that come after the
            analysis set or, where there are too few, the last of it, up to a quarter (so ``batches`` should
            be shuffled). False uses all for the spectra, and the first of them for trials.
        memory_limit: bytes to keep between products, of all micro-batches together. What does not fit is
            computed anew at every product. By default half of what a forward pass of one micro-batch makes,
            or 16 MiB where that is more (and at most half of what is free): the analysis then peaks below two
            training steps of that batch size. Where memory is plenty a larger limit makes the spectra up to
            1.4 times as fast.
        storage: ``"bfloat16"`` keeps what products need in half the memory; the model's own type by default.
        tf32: let a GPU multiply in TF32.
        seed: of the Lanczos start vectors.
        device: where to run; the model's own by default.

    Returns:
        The plan; predicted and realised change of loss are those at its ε, the latter on the held-out
        samples. ``notes["analysis"]`` says how it came about: samples, products, residuals, eigenvalues with
        standard errors by group, trials of ε.

    Raises:
        UsageError: a wrong argument, an empty or too small analysis set, a loss that is no mean over samples,
            a model that cannot be exported.
        NothingToSplit: no group is splittable, no split lowers the loss, or the budget is spent.
        MissingEnvironment: CUDA was asked for and is not there, or WORLD_SIZE without torchrun's environment.
        CheckFailed: the loss or a gradient is not finite.
    """
    chosen_scheme = scheme_of(scheme, c)
    if metric not in METRICS:
        raise UsageError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    if solver not in SOLVERS:
        raise UsageError(f"unknown solver {solver!r}; choose one of {', '.join(SOLVERS)}")
    if storage is not None and storage not in STORAGE:
        raise UsageError(f"unknown storage {storage!r}; choose one of {', '.join(STORAGE)}")
    if ranking not in RANKINGS:
        raise UsageError(f"unknown ranking {ranking!r}; choose one of {', '.join(RANKINGS)}")
    if epsilon is not None and not epsilon >= 0:
        raise UsageError(f"epsilon must not be negative, not {epsilon}")
    if not surrogate_beta > 0:
        raise UsageError(f"surrogate_beta must be positive, not {surrogate_beta}")
    if not 0 < stability <= 1:
        raise UsageError(f"stability is a reliability above 0 and at most 1, not {stability}")
    if not noise_share >= 0:
        raise UsageError(f"noise_share must not be negative, not {noise_share}; 0 turns it off")
    if not tolerance > 0:
        raise UsageError(f"tolerance must be positive, not {tolerance}")
    if max_samples < MIN_SAMPLES:
        raise UsageError(f"max_samples is {max_samples}, fewer than the {MIN_SAMPLES} that two halves need")
    if min(micro_batch, line_search_samples, ranking_samples) < 1:
        raise UsageError("micro_batch, line_search_samples and ranking_samples must be at least 1")
    unlimited = budget is None or budget.unlimited
    limits = GrowthLimits(
        growth=0.3 if growth is None and unlimited else growth,
        budget=budget,
        align=align,
        max_factor=max_factor,
        widths=dict(widths or {}),
        cost_exponent=cost_exponent,
        balance=balance,
    )
    target_device = device_of(model, device)
    started = time.perf_counter()
    peers = processes(target_device)
    with torch.inference_mode(False), torch.enable_grad(), _evaluation_mode(model), _tf32(tf32):
        prepared = prepare(
            model, as_tuple(example_inputs), freeze, displace, Surrogate(surrogate_beta), target_device
        )
        program, groups = prepared.program, prepared.groups
        most = max(
            line_search_samples if epsilon is None or ranking == "realised" else 0,
            ranking_samples if ranking == "realised" else 0,
        )
        data, held_out = collect(
            batches,
            max_samples=max_samples,
            micro_batch=micro_batch,
            device=target_device,
            dtype=prepared.dtype,
            shard=(peers.rank, peers.world),
            held_out=most // 2 if hold_out else 0,
        )
        check_mean_loss(lambda x, y: program.loss(x, y, loss_fn), data[0])
        operator = SplittingOperator(
            program,
            default_memory(program, data[0].inputs, target_device) if memory_limit is None else memory_limit,
            storage=None if storage is None else STORAGE[storage],
            reduce=None if peers.world == 1 else peers.total,
        )
        spectra = measure_spectra(
            growing(operator, data, loss_fn, peers, target_device),
            GrowingMetric(metric, damping),
            chosen_scheme,
            solver=solver,
            tolerance=tolerance,
            stability=stability,
            noise_share=noise_share,
            seed=seed,
        )
        operator.drop_graphs()
        (unseen,) = peers.totals(sum(batch.samples for batch in held_out), device=target_device)

        def halves(samples: int) -> list[list[MicroBatch]]:
            """About so many, as many unseen as seen: those promise too little, these as much too much."""
            if not unseen:
                return [_about(data, samples)]
            return [_about(part, min(unseen, samples / 2)) for part in (held_out, data)]

        proposals = Proposals(
            model,
            loss_fn,
            prepared,
            spectra,
            chosen_scheme,
            metric,
            list(itertools.chain(*halves(line_search_samples))),
            halves(ranking_samples),
            peers,
            target_device,
        )
        calibration: Calibration | None = None
        if ranking == "realised":
            trial_rows = {offered.group: offered.rows[0] for offered in spectra.candidates}
            signs = proposals.signs(trial_rows, epsilon)
            competing = not limits.decides(trial_rows)
            calibration = calibrate(
                spectra.candidates,
                proposals.change_alone(signs),
                proposals.measure_alone(signs) if competing else None,
            )
        spending = spend(
            spectra.candidates if calibration is None else calibration.measured(spectra.candidates),
            groups.cost,
            limits,
            sum(group.width for group in program.groups),
            {group.name: group.width for group in groups.groups},
        )
        selection = spending.selection
        if not selection.widths:
            raise NothingToSplit(f"nothing is left to split: {selection.notes}")
        signs = proposals.signs(selection.rows, epsilon)
        # A step that was given is everyone's.
        lengths = calibration.lengths() if calibration is not None and epsilon is None else None

        def plan_at(step: float, orientation: float) -> SplitPlan:
            turned = {name: orientation * sign for name, sign in signs.items()}
            return proposals.plan(selection.rows, step, turned, lengths)

        # The signs hold as far as the third order goes: at a large step the opposite ones may be better.
        orientations = (1.0, -1.0) if is_asymmetric(selection.rows) else (1.0,)
        found: LineSearch | None = None
        step, orientation = epsilon, 1.0
        if step is None or (len(orientations) > 1 and step > 0):
            found = line_search(
                lambda e, o: proposals.change(plan_at(e, o)),
                orientations=orientations,
                epsilons=EPSILONS if epsilon is None else (epsilon,),
                start=START if calibration is None else calibration.largest or START,
                refinements=2 if epsilon is None else 0,
                smallest=1e-4 if epsilon is None else epsilon,
            )
            step, orientation = found.best.epsilon, found.best.orientation
        plan = plan_at(step, orientation)
        judged = held_out or data
        realised = proposals.loss(plan, judged) - proposals.loss(None, judged)
        (samples,) = peers.totals(sum(batch.samples for batch in data), device=target_device)
        peers.agree("the plan", f"{plan.content_hash} {realised}")
    notes = {
        "analysis": {
            **spectra.report(selection.rows),
            "samples": int(samples),
            "held_out": int(unseen),
            "displaced": list(displace),
            "damping": damping if metric == "input" else None,
            "selection": selection.notes,
            "budget_spent": spending.spent,
            "cost": spending.cost,
            "calibration": None if calibration is None else calibration.report(),
            "rigid": prepared.rigid,
            "base_loss": proposals.base,
            "line_search": _line_search_notes(found, epsilon),
            "seed": seed,
        }
    }
    logger.info(
        "analysed %d groups in %.1f s: %d channels added, loss %.3g predicted, %.3g realised at epsilon %.3g",
        len(program.groups), time.perf_counter() - started, plan.added_channels,
        plan.predicted_change or 0.0, realised, step,
    )  # fmt: skip
    return replace(plan, realised_change=realised, notes=notes)


def _about(batches: Sequence[MicroBatch], samples: float) -> list[MicroBatch]:
    """Those of this process that begin among the first ``samples`` samples of all."""
    return [batch for batch in batches if batch.start < samples]


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """TF32 multiplications on CUDA inside, or none; the user's settings afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every submodule's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def growing(
    operator: SplittingOperator,
    data: Sequence[MicroBatch],
    loss_fn: LossFunction,
    peers: Processes,
    device: torch.device,
) -> Callable[[int], SplittingOperator | None]:
    """The operator on an eighth of the data at first, then on as many samples as are asked for, up to all."""
    taken, count = 0, data[0].count
    least = max(4, 2 * peers.world, count // 8)
    (total,) = peers.totals(sum(batch.samples for batch in data), device=device)

    def grow(samples: int) -> SplittingOperator | None:
        nonlocal taken
        # Both halves in every process, and the same sets for one process and two.
        asked = math.ceil(samples * count / total / least) * least
        wanted = min(count, max(taken + least, asked))
        if taken == count:
            return None
        for batch in data:
            if taken <= batch.number < wanted:
                operator.add(batch.inputs, batch.target, loss_fn, half=batch.number % 2)
        taken = wanted
        return operator

    return grow


def _line_search_notes(found: LineSearch | None, epsilon: float | None) -> dict[str, Any]:
    if found is None:
        return {"epsilon": epsilon, "searched": False}
    trials = [[t.epsilon, t.orientation, t.change if math.isfinite(t.change) else None] for t in found.trials]
    return {"searched": epsilon is None, "lowered_the_loss": found.lowered, "trials": trials}
