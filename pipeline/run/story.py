"""What a run did, gathered from its directory for its page: numbers and words, no tensors, no code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from growpipe.checks.measure.accuracy import Accuracy
from growpipe.graph_ops.files.documents import parse_json, read_json, validated
from growpipe.graph_ops.files.reading import MissingFile, reading
from growpipe.pages.content import (
    CheckLine,
    Curve,
    GroupGrowth,
    Kind,
    Measured,
    Network,
    RoundStory,
    RunStory,
)
from growpipe.run.facts import AnalyseFacts, CheckFacts, FinalFacts
from growpipe.run.locate import shipped_recipes
from growpipe.run.recipe import Recipe, load_recipe
from growpipe.run.stages.check import PARITY_TOLERANCE
from growpipe.run.stages.names import (
    ANALYSE,
    CHECK,
    CONTROL,
    EXPORT,
    PLAN_FILES,
    REWRITE,
    RIVAL,
    TRAIN,
    round_stage,
)
from growpipe.run.store import METRICS, Run, StageRecord, read_metrics
from growpipe.run.summary import RoundRow, rows_of, title_of

__all__ = ["recipe_toml", "story_of"]


class _Document(BaseModel):
    """A part of a document that growpipe wrote, or somebody else."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Trial(_Document):
    decrease: float
    worth: float


class _Spectrum(_Document):
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    splits: dict[str, int] = Field(default_factory=dict)


class _Added(_Document):
    parameters: int
    macs: int


class _AnalysisNotes(_Document):
    groups: dict[str, _Spectrum] = Field(default_factory=dict)
    calibration: dict[str, _Trial] | None = None
    added: dict[str, _Added] = Field(default_factory=dict)
    base_loss: float | None = None
    selection: str = ""


class _Notes(_Document):
    analysis: _AnalysisNotes = Field(default_factory=_AnalysisNotes)


class _Split(_Document):
    group: str
    width: int
    grown_width: int
    predicted_change: float | None = None


class _Plan(_Document):
    """What the page shows of a plan."""

    groups: tuple[_Split, ...]
    notes: _Notes = Field(default_factory=_Notes)


class _Made(_Document):
    """What a manifest says of how its stage was made."""

    code: str = ""
    libraries: dict[str, str] = Field(default_factory=dict)


def story_of(run: Run, final: FinalFacts | None) -> RunStory:
    """The story of a run, finished or not.

    Args:
        run: the run.
        final: how it ended; None if it has not.

    Raises:
        UsageError: a file of the run is damaged.
    """
    rows = rows_of(run)
    verdict = "The run is not finished." if final is None else _sentence(final.verdict)
    size, limit = _size(run.recipe, rows)
    return RunStory(
        title=title_of(run),
        verdict=verdict,
        stopped="the run is not finished" if final is None else final.stopped,
        networks=tuple(_networks(run, rows, None if final is None else final.deployed)),
        size=size,
        limit=limit,
        rounds=tuple(_rounds(run)),
        curves=tuple(_curves(run)),
        checks=tuple(_checks(run, final)),
        environment=tuple(_environment(run)),
        command=_command(run),
        recipe=recipe_toml(run.recipe),
    )


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _size(recipe: Recipe, rows: list[RoundRow]) -> tuple[str, float | None]:
    """What networks are compared by, and its limit."""
    budget = recipe.budget
    unit = next((row.unit for row in rows if row.unit and row.cost is not None), "")
    if unit and all(row.cost is not None for row in rows):
        return unit, budget.milliseconds or (None if budget.table is None else budget.table.limit)
    if budget.parameters is not None or budget.macs is None:
        return "parameters", budget.parameters
    return "MACs", budget.macs


# The networks.


def _networks(run: Run, rows: list[RoundRow], deployed: str | None) -> Iterator[Network]:
    names = [name for name in (row.name for row in rows) if name.startswith("round ")]
    ships = names[-1] if deployed == "grown" and names else deployed
    for row in rows:
        widths, accuracy, milliseconds = _measured(run, row)
        yield Network(
            name=row.name,
            kind=_kind(row.name),
            widths=widths,
            parameters=row.parameters,
            macs=row.macs,
            epochs=row.epochs,
            training_macs=row.training_macs,
            accuracy=accuracy,
            validation_loss=row.validation_loss,
            milliseconds=milliseconds,
            cost=row.cost,
            unit=row.unit if row.cost is not None else "",
            deployed=row.name == ships,
        )


def _kind(name: str) -> Kind:
    kinds: Mapping[str, Kind] = {"round 0": "seed", "rival": "rival", "control": "control"}
    return kinds.get(name, "grown")


def _measured(run: Run, row: RoundRow) -> tuple[Mapping[str, int], Measured | None, float | None]:
    """The widths of a network by group, its accuracy with the interval, and its latency."""
    stage = {"rival": RIVAL, "control": CONTROL}.get(row.name)
    if stage is not None:
        control = run.published(stage)
        assert control is not None  # it has a row
        return control.facts.size.widths, _interval(control.facts.test_accuracy), None
    number = int(row.name.removeprefix("round "))
    exported, checked = run.published(round_stage(number, EXPORT)), run.published(round_stage(number, CHECK))
    assert exported is not None  # it has a row
    assert checked is not None
    return (
        exported.facts.size.widths,
        _interval(checked.facts.test_accuracy),
        _milliseconds(run, number, checked),
    )


def _interval(accuracy: Accuracy | None) -> Measured | None:
    return None if accuracy is None else Measured(accuracy.value, accuracy.low, accuracy.high)


def _milliseconds(run: Run, number: int, checked: StageRecord[CheckFacts]) -> float | None:
    """The latency of a round's network, as it was measured beside its child's or its parent's."""
    if checked.facts.split is not None:
        return checked.facts.split.latency.reference_ms
    before = run.published(round_stage(number - 1, CHECK)) if number else None
    return before.facts.split.latency.candidate_ms if before and before.facts.split else None


# The rounds.


def _rounds(run: Run) -> Iterator[RoundStory]:
    number = 0
    while (analysed := run.published(round_stage(number, ANALYSE))) is not None:
        facts = analysed.facts
        if facts.stopped is not None:
            yield RoundStory(number, stopped=facts.stopped)
            return
        yield _round(run, number, facts, _plan(run, number))
        number += 1


def _plan(run: Run, number: int) -> _Plan:
    file = run.path / round_stage(number, ANALYSE).name / PLAN_FILES[0]
    with reading("the plan", file):
        try:
            return validated(_Plan, read_json(file, "the plan", inside=run.path))
        except MissingFile:
            return _Plan(groups=())


def _round(run: Run, number: int, facts: AnalyseFacts, plan: _Plan) -> RoundStory:
    notes = plan.notes.analysis
    exported = run.published(round_stage(number, EXPORT))
    widths = {} if exported is None else dict(exported.facts.size.widths)
    splits = {split.group: split for split in plan.groups}
    trials = notes.calibration or {}
    names = list(dict.fromkeys([*widths, *splits]))

    def growth(name: str) -> GroupGrowth:
        split, trial, added = splits.get(name), trials.get(name), notes.added.get(name)
        spectrum = notes.groups.get(name, _Spectrum())
        before = split.width if split else widths[name]
        return GroupGrowth(
            name=name,
            before=before,
            after=split.grown_width if split else before,
            predicted=split.predicted_change if split else None,
            decrease=None if trial is None else -trial.decrease,
            worth=None if trial is None else trial.worth,
            parameters=None if added is None else added.parameters,
            macs=None if added is None else added.macs,
            splits=spectrum.splits,
            low=spectrum.low if len(spectrum.low) == len(spectrum.high) else (),
            high=spectrum.high if len(spectrum.low) == len(spectrum.high) else (),
        )

    return RoundStory(
        number=number,
        epsilon=facts.epsilon,
        predicted=facts.predicted_change,
        realised=facts.realised_change,
        base_loss=notes.base_loss,
        selection=notes.selection,
        groups=tuple(growth(name) for name in names),
    )


# Training.


def _curves(run: Run) -> Iterator[Curve]:
    validation: list[float] = []
    training: list[float] = []
    splits: list[int] = []
    number = 0
    while run.published(round_stage(number, TRAIN)) is not None:
        if validation and run.published(round_stage(number - 1, REWRITE)) is not None:
            splits.append(len(validation))
        losses = _losses(run, round_stage(number, TRAIN).name)
        validation += losses[0]
        training += losses[1]
        number += 1
    if validation:
        yield Curve("grown", "grown", tuple(validation), tuple(training), tuple(splits))
    names: tuple[tuple[str, Kind, str], ...] = (
        ("rival", "rival", RIVAL.name),
        ("control", "control", CONTROL.name),
    )
    for name, kind, stage in names:
        found = _losses(run, stage)
        if found[0]:
            yield Curve(name, kind, tuple(found[0]), tuple(found[1]))


def _losses(run: Run, stage: str) -> tuple[list[float], list[float]]:
    """Validation and training loss after each epoch of a stage."""
    path: Path = run.path / stage / METRICS
    try:
        lines = [parse_json(line) for line in read_metrics(path, run.path)]
    except MissingFile:
        return [], []
    whole = [
        (line["validation_loss"], line["train_loss"])
        for line in lines
        if all(isinstance(line.get(key), int | float) for key in ("validation_loss", "train_loss"))
    ]
    return [float(line[0]) for line in whole], [float(line[1]) for line in whole]


# What was checked.


def _checks(run: Run, final: FinalFacts | None) -> Iterator[CheckLine]:
    number = 0
    while (checked := run.published(round_stage(number, CHECK))) is not None:
        name = f"round {number}"
        exported = run.published(round_stage(number, EXPORT))
        if exported is not None:
            yield CheckLine(
                name, "torch against onnxruntime", f"{exported.facts.torch_divergence:.1e}", "≤ 1e-4"
            )
        split = checked.facts.split
        if split is not None:
            child = f"round {number} → {number + 1}"
            allowed = f"≤ {PARITY_TOLERANCE:.0e}"
            yield CheckLine(child, "parent against child at ε = 0", f"{split.parity:.1e}", allowed)
            yield CheckLine(child, "grown module against grown graph", f"{split.torch_parity:.1e}", allowed)
            yield CheckLine(child, "drift of the outputs at the chosen ε", f"{split.drift:.2g}")
            latency = split.latency
            told = f"{latency.ratio:.2f} [{latency.low:.2f}, {latency.high:.2f}]"
            yield CheckLine(child, "latency of the child over its parent", told)
        number += 1
    if final is not None:
        yield CheckLine("deployed", "deploy form against growth form", f"{final.deploy_parity:.1e}", "≤ 1e-5")


# How to repeat it.


def _environment(run: Run) -> Iterator[tuple[str, str]]:
    yield "seed", str(run.seed)
    yield "device", run.device
    made = _made(run)
    yield "growpipe", made.code or "not known"
    yield from made.libraries.items()
    number = 0
    while (checked := run.published(round_stage(number, CHECK))) is not None:
        if checked.facts.split is not None:
            latency = checked.facts.split.latency
            yield (
                "latency",
                f"{latency.threads} thread{'s' * (latency.threads != 1)}, {latency.clock} clock, batch 1",
            )
            return
        number += 1


def _made(run: Run) -> _Made:
    file = run.path / round_stage(0, TRAIN).name / "manifest.json"
    with reading("the manifest", file):
        try:
            return validated(_Made, read_json(file, "the manifest", inside=run.path))
        except MissingFile:
            return _Made()


def _command(run: Run) -> str:
    tail = f"--out DIR --seed {run.seed} --device {run.device}"
    name = run.recipe.name  # it may be anybody's, and is read as a file only if growpipe ships it
    if run.folder is None and name in shipped_recipes() and load_recipe(name)[0] == run.recipe:
        return f"growpipe run {name} {tail}"
    note = "# save the recipe below as recipe.toml, beside the files that it names"
    return f"{note}\ngrowpipe run recipe.toml {tail}"


def recipe_toml(recipe: Recipe) -> str:
    """A recipe as TOML. Keys without a value are left out, and of a file of weights its folder."""
    document = recipe.model_dump(mode="json", exclude_none=True)
    if recipe.train.weights is not None:
        document["train"]["weights"] = Path(recipe.train.weights).name
    lines = [f"{_key(key)} = {_toml(value)}" for key, value in document.items() if not _is_table(recipe, key)]
    for key, value in document.items():
        if _is_table(recipe, key) and value:
            lines += ["", f"[{key}]", *(f"{_key(name)} = {_toml(each)}" for name, each in value.items())]
    return "\n".join(lines) + "\n"


def _is_table(recipe: Recipe, key: str) -> bool:
    return isinstance(getattr(recipe, key), BaseModel)


def _key(key: str) -> str:
    plain = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if plain else json.dumps(key)


def _toml(value: Any) -> str:
    """A JSON value in TOML; JSON's strings, numbers, true and false are TOML's."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
