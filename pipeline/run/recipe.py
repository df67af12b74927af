"""Recipes: what a run trains, grows and spends, as validated TOML."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from growpipe.analyser.options import MIN_SAMPLES, GrowthOptions
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.documents import parse_toml, table_at
from growpipe.graph_ops.files.reading import reading
from growpipe.quality import Quality, TaskName, quality_of
from growpipe.run.locate import read_recipe
from growpipe.tracking.trackers import TrackerKind
from growpipe.training.options import TrainingOptions
from growpipe.validation import Section, explained

__all__ = [
    "BudgetSection",
    "ControlSection",
    "FamilySection",
    "Growth",
    "Recipe",
    "TrackingSection",
    "load_recipe",
]

Reference = Annotated[str, Field(pattern=r"^.+:[A-Za-z_][A-Za-z0-9_.]*$")]
NameOrReference = Annotated[str, Field(pattern=r"^(.+:)?[A-Za-z_][A-Za-z0-9_.]*$")]


class Growth(GrowthOptions):
    """How the network grows: the options of `growpipe.analyser.GrowthOptions`, and those of a run.

    Attributes:
        rounds: the most rounds of growth.
        share: the share of channels to add in a round.
        ranking: what groups compete by, ``realised`` or ``predicted``; see `growpipe.analyser.TrialOptions`.
        samples: the samples of the largest analysis set.
        rounded_products: whether spectra and shared trials multiply rounded numbers; None where that is
            faster. See `growpipe.analyser.SpectraOptions`.
        finish: what is deployed: the grown network trained on (``continue``), the found widths trained from
            scratch (``retrain``), the rival of ``[control]``, or whichever of the grown network and its rival
            is better on the validation set (``best``).
    """

    # A wrong value is explained with those of the other tables, by `parse_recipe`.
    __init__ = Section.__init__

    rounds: int = Field(default=3, ge=0)
    share: float | None = Field(default=0.5, gt=0.0, le=10.0)
    ranking: Literal["realised", "predicted"] = "realised"
    samples: int = Field(default=1024, ge=MIN_SAMPLES)
    rounded_products: bool | None = None
    finish: Literal["best", "continue", "retrain", "rival"] = "best"

    def options(self) -> GrowthOptions:
        """What the analyser takes of it."""
        return GrowthOptions(**{name: getattr(self, name) for name in GrowthOptions.model_fields})


class TableTerm(Section):
    """One term: ``rate`` times the widths of ``groups``, or the ``costs`` of one group at some ``widths``.

    Attributes:
        groups: the channel groups that the term is of.
        rate: the cost is this number times the product of their widths.
        widths: of the one group, at which its cost is known.
        costs: of the one group, at ``widths``; linear in between and beyond.
    """

    groups: tuple[str, ...] = Field(min_length=1)
    rate: float | None = Field(default=None, ge=0.0)
    widths: tuple[int, ...] | None = None
    costs: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> TableTerm:
        if self.rate is not None:
            if self.widths is not None or self.costs is not None:
                raise ValueError("a term has a rate, or widths and costs, not both")
        elif self.widths is None or self.costs is None or len(self.groups) != 1:
            raise ValueError("give a rate, or one group with widths and costs")
        return self


class Table(Section):
    """A cost that somebody else knows; see `growpipe.graph_ops.cost.cost_table.CostTable`.

    Attributes:
        limit: the most that the network may cost.
        unit: of all costs.
        base: what depends on no width.
        terms: are summed.
    """

    limit: float = Field(gt=0.0)
    unit: str = ""
    base: float = Field(default=0.0, ge=0.0)
    terms: tuple[TableTerm, ...] = Field(min_length=1)


class BudgetSection(Section):
    """The most that the finished network may cost; None for no limit.

    Attributes:
        parameters: the number of parameters.
        macs: multiply-accumulates per sample.
        milliseconds: of one sample through the deploy form in onnxruntime, on the CPU of the machine of the
            run; see `growpipe.budgets.measured_latency`.
        threads: within an operator, for ``milliseconds``.
        table: a cost that you know by the widths of the channel groups.
    """

    parameters: int | None = Field(default=None, ge=1)
    macs: int | None = Field(default=None, ge=1)
    milliseconds: float | None = Field(default=None, gt=0.0)
    threads: int = Field(default=1, ge=1)
    table: Table | None = None

    @model_validator(mode="after")
    def _one_measure(self) -> BudgetSection:
        if self.milliseconds is not None and self.table is not None:
            raise ValueError("a budget has milliseconds or a table, not both")
        if self.threads != 1 and self.milliseconds is None:
            raise ValueError("threads are of a budget of milliseconds; give both, or remove them")
        return self


class ControlSection(Section):
    """What the grown network is compared with.

    Attributes:
        rival: ``uniform`` trains the widths of the first round, all multiplied by one factor, from scratch:
            as large as the final network in what the budget bounds (MACs without a budget), with at most as
            many training MACs as growth and its analyses took together. ``none`` trains no rival.
        learning_rate: of the rival; None is that of ``[train]``. What suits a seed network and its growth may
            not suit a wider network from scratch.
        seed_control: train the seed network, never grown, for as many epochs as the grown network had.
    """

    rival: Literal["uniform", "none"] = "uniform"
    learning_rate: float | None = Field(default=None, gt=0.0)
    seed_control: bool = False


class FamilySection(Section):
    """Several networks from one run: the trunk grows at a constant rate, and from each size a branch is
    annealed (``train.final_epochs``) and deployed.

    Attributes:
        budgets: the sizes, ascending. The trunk grows to each in one round of growth; the bound of
            ``[growth]`` on a share and that of ``[budget]`` on this measure do not count then.
            ``balance`` is 1 then, unless the recipe gives it. None makes a branch of every round of growth.
        measure: what the sizes are of.
    """

    budgets: tuple[Annotated[float, Field(ge=1.0)], ...] | None = Field(default=None, min_length=1)
    measure: Literal["macs", "parameters"] = "macs"

    @model_validator(mode="after")
    def _ascending(self) -> FamilySection:
        budgets = self.budgets or ()
        if any(a >= b for a, b in itertools.pairwise(budgets)):
            raise ValueError("budgets ascend, each larger than the one before")
        return self


class TrackingSection(Section):
    """Where curves and pictures go while the run goes on.

    Attributes:
        trackers: which ones; each keeps its files in a folder of its name in the run directory.
        name: of the run in the trackers; None for the name of the run directory.
    """

    trackers: tuple[TrackerKind, ...] = ()
    name: str | None = Field(default=None, min_length=1)


class Recipe(Section):
    """One run.

    Code is named as ``file.py:name`` (relative to the recipe) or ``package.module:name``.

    Attributes:
        name: of the run.
        model: a function or class that is called with ``model_options`` and returns an ``nn.Module``.
        data: a function that is called with ``batch_size``, ``seed`` and ``data_options`` and returns
            `growpipe.Loaders`.
        task: what targets are, which gives loss and metric.
        loss: a loss of `torch.nn` by its name, or a function of ``(output, target)`` that returns the mean
            over samples, or a class that makes one; None for the loss of the task.
        loss_options: arguments of ``loss``; lists become tensors, as in ``{ weight = [1.0, 3.0] }``.
        metric: what networks are judged by, by its name or a function of ``(output, target)`` of your own;
            None for the metric of the task.
        metric_options: arguments of a ``metric`` of your own.
        lower_is_better: of a ``metric`` of your own, which needs it.
        target: the key of the target, if the batches are dicts and no pairs.
        depends: further files that your code reads, relative to the recipe, such as weights that ``model``
            loads. A stage is done again if one of them or a module beside the recipe has changed.
        model_options: arguments of ``model``.
        data_options: further arguments of ``data``.
        preprocessing: how raw data become inputs, in words, for the users of the ONNX file.
        inputs: the names of the inputs of the ONNX file, in order; None for those of ``forward``, or the keys
            of the batches if their inputs are dicts.
        outputs: the names of the outputs of the ONNX file, in order; None for those of torch's exporter.
        train: how the network is trained.
        growth: how the network grows.
        budget: what the finished network may cost.
        control: what the grown network is compared with.
        family: several networks from one run; None for one network.
        tracking: where curves and pictures go.
    """

    name: str = Field(min_length=1)
    model: Reference
    data: Reference
    task: TaskName = "classification"
    loss: NameOrReference | None = None
    loss_options: dict[str, Any] = Field(default_factory=dict)
    metric: NameOrReference | None = None
    metric_options: dict[str, Any] = Field(default_factory=dict)
    lower_is_better: bool | None = None
    target: str | None = None
    depends: tuple[str, ...] = ()
    model_options: dict[str, Any] = Field(default_factory=dict)
    data_options: dict[str, Any] = Field(default_factory=dict)
    preprocessing: str = ""
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    train: TrainingOptions = TrainingOptions()
    growth: Growth = Growth()
    budget: BudgetSection = BudgetSection()
    control: ControlSection = ControlSection()
    family: FamilySection | None = None
    tracking: TrackingSection = TrackingSection()

    @property
    def quality(self) -> Quality:
        """What networks are judged by, in words."""
        return quality_of(self.task, self.metric, self.metric_options, self.lower_is_better)

    @model_validator(mode="after")
    def _metric_fits(self) -> Recipe:
        quality_of(self.task, self.metric, self.metric_options, self.lower_is_better)
        return self

    @model_validator(mode="after")
    def _rival_to_deploy(self) -> Recipe:
        if self.growth.finish == "rival" and self.control.rival == "none":
            raise ValueError('growth.finish = "rival" needs a rival; remove control.rival = "none"')
        return self

    @model_validator(mode="after")
    def _of_a_family(self) -> Recipe:
        if self.family is not None:
            if self.growth.finish == "retrain":
                raise ValueError('a family grows on from what it has; growth.finish = "retrain" does not')
            if self.control.seed_control:
                raise ValueError("a family has rivals at every size and no control.seed_control")
        return self

    @model_validator(mode="before")
    @classmethod
    def _tuples(cls, data: Any) -> Any:
        # TOML has arrays only; strict validation wants the tuples that a frozen model holds.
        return _tupled(data)


def _tupled(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: value if key.endswith("_options") else _tupled(value) for key, value in data.items()}
    if isinstance(data, list):
        return tuple(_tupled(value) for value in data)
    return data


def load_recipe(
    name_or_path: str, changes: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Recipe, Path | None]:
    """Read a shipped recipe by name, or a TOML file by path.

    Args:
        name_or_path: the name or the file.
        changes: by table the keys that take the place of the recipe's, e.g. ``{"growth": {"rounds": 2}}``.

    Returns:
        The recipe, and the folder that its ``file.py:name`` references start from (None for a shipped one).

    Raises:
        UsageError: there is no such recipe, or it has an unknown key, a wrong type or a wrong value.
    """
    text, folder = read_recipe(name_or_path)
    with reading("the recipe", name_or_path):
        data = parse_toml(text)
        for table, keys in (changes or {}).items():
            data[table] = {**table_at(data, table), **keys}
    return parse_recipe(data, name_or_path), folder


def parse_recipe(data: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe; ``where`` names it in the message.

    Raises:
        UsageError: the recipe is wrong; the message names each wrong key.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"the recipe {where}: {explained(error, Recipe)}") from None
