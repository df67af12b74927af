"""What a run did, gathered from its directory for its page: numbers and words, no tensors, no code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

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
from growpipe.quality import Score
from growpipe.run.facts import AnalyseFacts, FinalFacts, JudgedFacts
from growpipe.run.recipe import Recipe
from growpipe.run.repeat import command_of, environment_of, recipe_toml
from growpipe.run.stages.check import DEPLOY_TOLERANCE, PARITY_TOLERANCE
from growpipe.run.stages.export import EXPORT_TOLERANCE
from growpipe.run.stages.names import (
    ANALYSE,
    BRANCH,
    CHECK,
    CONTROL,
    EXPORT,
    PLAN_FILES,
    REWRITE,
    RIVAL,
    TRAIN,
    previous_stage,
    rival_of_branch,
    round_stage,
)
from growpipe.run.store import METRICS, Run, Stage, read_metrics
from growpipe.run.summary import RoundRow, rows_of, title_of

__all__ = ["story_of"]


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
    networks = tuple(_networks(run, rows, final))
    return RunStory(
        title=title_of(run),
        verdict=verdict,
        stopped="the run is not finished" if final is None else final.stopped,
        networks=networks,
        size=size,
        limit=limit,
        rounds=tuple(_rounds(run)),
        curves=tuple(_curves(run, networks)),
        checks=tuple(_checks(run, final)),
        environment=tuple(environment_of(run)),
        command=command_of(run),
        recipe=recipe_toml(run.recipe),
        quality=run.recipe.quality,
    )


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _size(recipe: Recipe, rows: list[RoundRow]) -> tuple[str, float | None]:
    """What networks are compared by, and its limit."""
    budget, family = recipe.budget, recipe.family
    if family is not None:
        return ("MACs" if family.measure == "macs" else "parameters"), None
    costs = {row.unit for row in rows if row.cost is not None}
    if len(costs) == 1 and all(row.cost is not None for row in rows):
        return costs.pop(), budget.milliseconds or (None if budget.table is None else budget.table.limit)
    if budget.parameters is not None or budget.macs is None:
        return "parameters", budget.parameters
    return "MACs", budget.macs


# The networks.


def _networks(run: Run, rows: list[RoundRow], final: FinalFacts | None) -> Iterator[Network]:
    ships = _shipped(rows, final)
    for row in rows:
        kind, number = _kind_of(row.name)
        facts = _judged(run, kind, number)
        yield Network(
            name=row.name,
            kind=kind,
            widths=facts[0],
            parameters=row.parameters,
            macs=row.macs,
            epochs=row.epochs,
            training_macs=row.training_macs,
            score=Measured(facts[1].value, facts[1].low, facts[1].high),
            validation_loss=row.validation_loss,
            milliseconds=_milliseconds(run, kind, number, final),
            cost=row.cost,
            unit=row.unit if row.cost is not None else "",
            deployed=row.name in ships,
        )


def _shipped(rows: list[RoundRow], final: FinalFacts | None) -> set[str]:
    """The names of the networks that are deployed."""
    if final is None:
        return set()
    if final.members:
        return {f"{'rival' if m.deployed == 'rival' else 'branch'} {m.number}" for m in final.members}
    rounds = [row.name for row in rows if row.name.startswith("round ")]
    return {rounds[-1] if final.deployed == "grown" and rounds else final.deployed}


def _kind_of(name: str) -> tuple[Kind, int | None]:
    """What a row is, and of which round."""
    word, _, number = name.partition(" ")
    kinds: Mapping[str, Kind] = {"round": "grown", "branch": "family", "rival": "rival", "control": "control"}
    kind = "seed" if name == "round 0" else kinds[word]
    return kind, int(number) if number else None


def _beside(kind: Kind, number: int | None) -> Stage[JudgedFacts]:
    """The stage of a network that stands beside the rounds."""
    if kind == "control":
        return CONTROL
    if kind == "family" and number is not None:
        return round_stage(number, BRANCH)
    return RIVAL if number is None else rival_of_branch(number)


def _judged(run: Run, kind: Kind, number: int | None) -> tuple[Mapping[str, int], Score]:
    """The widths of a network by group, and its score; it has a row, so its stages are there."""
    if kind in ("seed", "grown"):
        at = number or 0
        size = previous_stage(run, at, EXPORT).facts.size
        return size.widths, previous_stage(run, at, CHECK).facts.test_score
    judged = run.published(_beside(kind, number))
    assert judged is not None
    return judged.facts.size.widths, judged.facts.score


def _milliseconds(run: Run, kind: Kind, number: int | None, final: FinalFacts | None) -> float | None:
    """The latency of a network, as it was measured beside another one; None if it was not."""
    if kind in ("seed", "grown"):
        at = number or 0
        own = previous_stage(run, at, CHECK).facts.split
        if own is not None:
            return own.latency.reference_ms
        before = previous_stage(run, at - 1, CHECK).facts.split if at else None
        return None if before is None else before.latency.candidate_ms
    for member in () if final is None else final.members:
        if member.number == number:
            if kind == "rival":
                return None if member.rival_latency is None else member.rival_latency.candidate_ms
            return member.latency.candidate_ms
    return None


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


def _curves(run: Run, networks: Iterable[Network]) -> Iterator[Curve]:
    validation: list[float] = []
    training: list[float] = []
    splits: list[int] = []
    ends: list[int] = []
    while run.published(round_stage(len(ends), TRAIN)) is not None:
        if validation and run.published(round_stage(len(ends) - 1, REWRITE)) is not None:
            splits.append(len(validation))
        losses = _losses(run, round_stage(len(ends), TRAIN).name)
        validation += losses[0]
        training += losses[1]
        ends.append(len(validation))
    if validation:
        yield Curve("grown", "grown", tuple(validation), tuple(training), tuple(splits))
    for network in networks:
        kind, number = _kind_of(network.name)
        if kind not in ("seed", "grown"):
            found = _losses(run, _beside(kind, number).name)
            start = ends[number] if kind == "family" and number is not None else 0
            if found[0]:
                yield Curve(network.name, kind, tuple(found[0]), tuple(found[1]), start=start)


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
                name,
                "torch against onnxruntime",
                f"{exported.facts.torch_divergence:.1e}",
                _limit(EXPORT_TOLERANCE),
            )
        split = checked.facts.split
        if split is not None:
            child = f"round {number} → {number + 1}"
            allowed = _limit(PARITY_TOLERANCE)
            yield CheckLine(child, "parent against child at ε = 0", f"{split.parity:.1e}", allowed)
            yield CheckLine(child, "grown module against grown graph", f"{split.torch_parity:.1e}", allowed)
            yield CheckLine(child, "drift of the outputs at the chosen ε", f"{split.drift:.2g}")
            latency = split.latency
            told = f"{latency.ratio:.2f} [{latency.low:.2f}, {latency.high:.2f}]"
            yield CheckLine(child, "latency of the child over its parent", told)
        number += 1
    for member in () if final is None else final.members:
        latency = member.latency
        told = f"{latency.ratio:.2f} [{latency.low:.2f}, {latency.high:.2f}]"
        yield CheckLine(member.folder, "latency of the grown network over the smallest grown one", told)
    if final is not None:
        yield CheckLine(
            "deployed",
            "deploy form against growth form",
            f"{final.deploy_parity:.1e}",
            _limit(DEPLOY_TOLERANCE),
        )


def _limit(tolerance: float) -> str:
    return f"≤ {tolerance:.0e}"
