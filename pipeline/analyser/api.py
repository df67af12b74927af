"""`analyse`: from a torch module, a loss and batches to a split plan."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from growpipe.analyser.analysis import analysis_of
from growpipe.analyser.options import AnalysisOptions, GrowthOptions, SpectraOptions, TrialOptions
from growpipe.budgets.budget import GrowthBudget
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.torch_module.outputs import LossFunction

__all__ = ["analyse", "analyze"]


def analyse(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    example_inputs: Any,
    *,
    growth: GrowthOptions | float | None = None,
    spectra: SpectraOptions | None = None,
    trials: TrialOptions | None = None,
    budget: GrowthBudget | None = None,
    **options: Any,
) -> SplitPlan:
    """The best signed splits of ``model``'s channels: which, into how many copies, where to, how far.

    For every channel of every splittable group the extreme eigenpairs of its splitting matrix
    ``S = ∇²_θθ Σ_e ⟨g_e, e(θ; x)⟩`` (arXiv 2003.10392, carried over to channel groups) are found,
    the optimal split is read off the table in `schemes`, the best candidates by gain per cost are chosen, and
    ε is searched on real batches. The model comes back exactly as it was given.

    Under ``torchrun`` (or in a process group that is open already) every process calls `analyse` with the
    same arguments and batches, works on its share of the micro-batches, and returns the identical plan.

    Args:
        model: the module. It is analysed in evaluation mode; every submodule gets its mode back.
        loss_fn: ``loss_fn(output, target)``, the mean loss over the samples of a batch, a scalar.
        batches: gives ``(inputs, target)`` pairs, and can be iterated again.
        example_inputs: positional inputs of ``model`` as a tuple, or a single input, for the export. A
            `GrowthExport` of the model may be given instead: the model is then not exported again, and its
            channel groups are not solved again.
        growth: what to look for and what bounds it; or the share of channels to add.
        spectra: how eigenpairs are measured: data, memory, precision, device.
        trials: how splits are tried.
        budget: what the grown network may cost in parameters, MACs, or any other cost. With a share of
            channels both bounds hold.
        options: single options of `GrowthOptions`, `SpectraOptions` and `TrialOptions` by name. They go
            before those of ``growth``, ``spectra`` and ``trials``.

    Returns:
        The plan. Its predicted and realised change of loss are those at its ε, the realised one on the
        held-out samples. ``notes["analysis"]`` says how it came about (see `AnalysisReport`).

    Raises:
        UsageError: a wrong option, an empty or too small analysis set, a loss that is not a mean over
            samples, a model that cannot be exported.
        NothingToSplit: no group is splittable, no split lowers the loss, or the budget is spent.
        MissingEnvironment: CUDA was asked for and is not there, or WORLD_SIZE is set without torchrun's other
            variables.
        CheckFailed: the loss or a gradient is not finite.

    Example:
        >>> plan = analyse(model, loss_fn, batches, (images[:2],), scheme="m4", growth=0.3)  # doctest: +SKIP
        >>> plan = analyse(  # doctest: +SKIP
        ...     model, loss_fn, batches, (images[:2],),
        ...     growth=GrowthOptions(c=2.0, freeze=("stem.weight",)),
        ...     budget=GrowthBudget(macs=2_000_000),
        ... )
    """
    asked = AnalysisOptions.of(growth, spectra, trials, options)
    return analysis_of(model, loss_fn, batches, example_inputs, asked, budget).plan


analyze = analyse
"""`analyse`, in American spelling."""
