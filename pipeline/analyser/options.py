"""The options of an analysis, with the only home of their defaults. Imports no torch.

A recipe's ``[growth]`` is a `GrowthOptions`: a new growth option is added here, and used where it acts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from growpipe.graph_ops.errors import UsageError
from growpipe.suggestions import did_you_mean
from growpipe.validation import Section, explained

__all__ = ["MIN_SAMPLES", "AnalysisOptions", "GrowthOptions", "SpectraOptions", "TrialOptions"]

MIN_SAMPLES = 16
"""The least number of samples for an analysis: two halves of eight."""

SHARE = 0.3
"""The share of channels to add if there is neither a share nor a budget."""

Width = Annotated[int, Field(ge=1)]
Factor = Annotated[int, Field(ge=2)]


def _tupled(value: Any) -> Any:
    """A tuple of any sequence; of a single name, too."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_tupled)]
Displaced = Literal["weights", "filters", "biases", "affine"]


class Options(Section):
    """A frozen set of options that validates itself."""

    def __init__(self, **values: Any) -> None:
        """Raise a UsageError that names every wrong option."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UsageError(explained(error, type(self))) from None


class GrowthOptions(Options):
    """What a round of growth looks for, and what bounds it.

    Attributes:
        share: the share of channels to add. None means 0.3 without a budget, and no such bound with one.
        scheme: the splits on offer: ``"s2d"`` (positive pairs), or signed splits into at most 2 (``"m2"``), 3
            (``"m3"``) or 4 (``"m4"``) copies.
        c: the bound on Σ|w_i|, at least 1. As long as positive splits lower the loss, a larger c makes the
            loss sharper and training worse. Once they do not, a larger c goes further.
        epsilon: the step ε in the metric's unit. None searches for it.
        metric: how long a displacement is: ``"euclidean"`` (‖δ‖² in parameter units) or ``"input"``
            (δᵀ E[p pᵀ] δ; see `growpipe.analyser.curvature.metric`).
        damping: added to the diagonal of Σ = E[p pᵀ] in the input metric, as a share of its mean eigenvalue.
        displace: what is displaced: ``"weights"`` (of mixing producers), ``"filters"`` (depthwise),
            ``"biases"``, ``"affine"`` (batch-norm scale and shift).
        surrogate_beta: β of softplus, whose curvature stands in for that of kinked activations.
        factors: by channel group the number of copies that every channel gets, whatever the splits promise; a
            number is for all groups that split by whole factors, such as the residual stream of a transformer
            (see `growpipe.graph_ops.plan.whole_factors`). The copies do not differ at first. A group that is
            tied to a named one follows.
        freeze: names or globs of tensors that keep all their axes. To keep a group's width, use
            ``max_widths``.
        align: a group that grows ends at a multiple of this width. None is 16 under a budget of measured
            milliseconds, else 1.
        min_widths: by channel group the width to reach at least, even if its splits promise nothing.
        max_widths: by channel group the width never to exceed.
        max_factor: no group grows beyond this multiple of its width in one round.
        cost_exponent: candidates compete by gain / costᵉ, cost in MACs or in what the budget bounds. 1 spends
            a budget best as far as the quadratic prediction goes. ½ found better widths in practice, as the
            predictions of cheap layers are optimistic.
        balance: how much of the growth is spread evenly before groups compete for the rest. Let f be the
            factor by which every group could grow if all grew alike and used the whole budget. Every group
            whose splits lower the loss first grows by f**balance; 0 switches this off, 1 is uniform widening.
            What a split gains at once says too little of what a narrow group is worth after training.
    """

    share: float | None = Field(default=None, gt=0.0)
    scheme: Literal["s2d", "m2", "m3", "m4"] = "m4"
    c: float = Field(default=1.25, ge=1.0, allow_inf_nan=False)
    epsilon: float | None = Field(default=None, ge=0.0)
    metric: Literal["euclidean", "input"] = "input"
    damping: float = Field(default=1e-3, gt=0.0)
    displace: Annotated[tuple[Displaced, ...], BeforeValidator(_tupled)] = ("weights",)
    surrogate_beta: float = Field(default=3.0, gt=0.0)
    factors: Factor | dict[str, Factor] | None = None
    freeze: Names = ()
    align: int | None = Field(default=None, ge=1)
    min_widths: dict[str, Width] = Field(default_factory=dict)
    max_widths: dict[str, Width] = Field(default_factory=dict)
    max_factor: float = Field(default=2.0, gt=1.0)
    cost_exponent: float = Field(default=0.5, ge=0.0)
    balance: float = Field(default=0.5, ge=0.0, le=1.0)


class SpectraOptions(Options):
    """How the extreme eigenpairs are measured, and with how much data, memory and precision.

    Attributes:
        solver: ``"dense"``, ``"lanczos"``, or ``"auto"``: for every group whichever is less counted work.
        tolerance: the error bound of the eigenvalues, as a share of each spectral radius.
        max_steps: the largest number of products of Lanczos per channel and analysis set.
        stability: the analysis set stops growing once the ranking of the candidates has this split-half
            reliability (see `growpipe.analyser.spectra.spectra`). 1 uses all ``max_samples``.
        noise_share: an error bound of this share of a group's standard errors is enough as well, since the
            rest is noise of the data. Both are those of what splits are worth, in root mean square over the
            group's channels: with a c near 1 the error of λ+ counts little. A larger analysis set
            then first takes its second block of products over the set before (see
            `growpipe.analyser.spectra.refinement`). 0 leaves ``tolerance`` alone.
        max_samples: the samples of the largest analysis set.
        micro_batch: the samples that are worked on at once.
        memory_limit: the bytes to keep between products, over all micro-batches. What does not fit is
            computed again at every product. None keeps half of what a forward pass of one micro-batch makes,
            or 128 MiB if that is more, and at most half of the free memory: the analysis then peaks at about
            two training steps of that batch size at most. With more memory the spectra take less time.
        storage: the type of what is kept between products. ``"bfloat16"`` halves the memory; None is the
            model's own type.
        rounded_products: whether products of float32 numbers in spectra and shared trials are of rounded
            factors: bfloat16 on a CPU, TF32 on a GPU, with sums in float32. That is several times as fast if
            the processor has units for it, and exact to about 1 %. None rounds where that is faster, unless
            ``tolerance`` is below 0.01. The line search never rounds.
        tf32: let a GPU multiply in TF32 everywhere.
        seed: of the start vectors of Lanczos.
        device: where to run, e.g. ``"cuda"``. None is the device of the model.
    """

    solver: Literal["auto", "dense", "lanczos"] = "auto"
    tolerance: float = Field(default=1e-2, gt=0.0)
    max_steps: int = Field(default=40, ge=1)
    stability: float = Field(default=0.95, gt=0.0, le=1.0)
    noise_share: float = Field(default=0.5, ge=0.0)
    max_samples: int = Field(default=2048, ge=MIN_SAMPLES)
    micro_batch: int = Field(default=128, ge=1)
    memory_limit: int | None = Field(default=None, ge=0)
    storage: Literal["float32", "bfloat16"] | None = None
    rounded_products: bool | None = None
    tf32: bool = False
    seed: int = 0
    device: Annotated[str | None, BeforeValidator(lambda d: None if d is None else str(d))] = None


class TrialOptions(Options):
    """How splits are tried on real batches.

    Attributes:
        ranking: what groups compete by: ``"realised"``, the share of each group in the decrease of loss when
            all groups split (see `growpipe.analyser.choice.shared_trials`), or ``"predicted"``, the quadratic
            prediction.
        line_search_samples: the samples on which the step of a plan is tried, all of them unseen if there is
            a ``hold_out``.
        step_samples: the samples on which the step of every group is found. The first rounds see some of
            them only.
        ranking_samples: the largest number of samples on which the share of every group is measured. None are
            used if the width limits leave every group one width.
        hold_out: if True, half of the samples of the shared trials and all of those of the line search were
            not used for the spectra. They are taken after the first ``max_samples``; if the batches have too
            few, up to a quarter of the analysis set is set aside. Shuffle the batches. If False, all samples
            are used for the spectra, and the first of them for trials.
    """

    ranking: Literal["realised", "predicted"] = "realised"
    line_search_samples: int = Field(default=512, ge=1)
    step_samples: int = Field(default=256, ge=1)
    ranking_samples: int = Field(default=1024, ge=1)
    hold_out: bool = True


@dataclass(frozen=True)
class AnalysisOptions:
    """All options of an analysis."""

    growth: GrowthOptions
    spectra: SpectraOptions
    trials: TrialOptions

    @staticmethod
    def of(
        growth: GrowthOptions | float | None,
        spectra: SpectraOptions | None,
        trials: TrialOptions | None,
        single: Mapping[str, Any],
    ) -> AnalysisOptions:
        """From whole sets of options, and from single options by name, which go before those of the sets.

        Args:
            growth: the growth options, or the share of channels to add.
            spectra: the options of the spectra; None for the defaults.
            trials: the options of the trials; None for the defaults.
            single: single options of any of the three types.

        Raises:
            UsageError: an option is unknown or has a wrong value.
        """
        if growth is None or isinstance(growth, (int, float)):
            growth = GrowthOptions(share=None if growth is None else float(growth))
        sets: list[Options] = [growth, spectra or SpectraOptions(), trials or TrialOptions()]
        known = {name: position for position, one in enumerate(sets) for name in type(one).model_fields}
        for name in single:
            if name not in known:
                raise UsageError(f"unknown option {name!r}{did_you_mean(name, known) or '; remove it'}")
        merged: list[Any] = [
            type(one)(**{**dict(one), **{n: v for n, v in single.items() if known[n] == position}})
            for position, one in enumerate(sets)
        ]
        return AnalysisOptions(*merged)
