"""The summary of a run: a row per round, the control last; as a table, as JSON and as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from growpipe.graph_ops.errors import UsageError
from growpipe.printing import one_line
from growpipe.quality import Quality
from growpipe.run.facts import AnalyseFacts, FinalFacts, JudgedFacts, MemberFacts, RewriteFacts, SplitFacts
from growpipe.run.stages.names import (
    ANALYSE,
    BRANCH,
    CHECK,
    CONTROL,
    EXPORT,
    REWRITE,
    RIVAL,
    TRAIN,
    previous_stage,
    rival_of_branch,
    round_stage,
)
from growpipe.run.stages.training_cost import macs_of_branch, macs_of_growth, macs_of_training
from growpipe.run.store import Run

__all__ = [
    "RoundRow",
    "print_summary",
    "rows_of",
    "summary_document",
    "summary_markdown",
    "title_of",
    "widths_in_short",
]


@dataclass(frozen=True)
class RoundRow:
    """One network of a run.

    Attributes:
        name: ``round 0`` …, ``rival``, or ``control`` (the seed network, never grown). In a family
            ``branch 1`` … (the network of the round, annealed) and ``rival 1`` ….
        widths: of the channel groups, in graph order.
        parameters: number of parameters.
        macs: multiply-accumulates per sample.
        epochs: trained in all, up to this network.
        test_score: the recipe's metric on the test set, measured in onnxruntime.
        validation_loss: of the trained network.
        training_macs: multiply-accumulates of training in all, up to this network, and of the analyses.
        latency_ratio: latency of this network over its parent's, batch 1; None if no split made the network.
        latency_low, latency_high: the interval of ``latency_ratio``.
        epsilon: of the split that made this network; None if no split did.
        predicted_change, realised_change: change of loss at the split that made this network.
        parity: parent against child at ε = 0, relative to the output's scale.
        gradient_ratio: the gradient of weights of added copies over that of the others, right after the split
            that made this network.
        cost: of this network in ``unit``, if the budget is of something else than parameters and MACs.
        unit: of ``cost``.
    """

    name: str
    widths: tuple[int, ...]
    parameters: int
    macs: int
    epochs: int
    test_score: float
    validation_loss: float
    training_macs: int
    latency_ratio: float | None = None
    latency_low: float | None = None
    latency_high: float | None = None
    epsilon: float | None = None
    predicted_change: float | None = None
    realised_change: float | None = None
    parity: float | None = None
    gradient_ratio: float | None = None
    cost: float | None = None
    unit: str = ""


def rows_of(run: Run) -> list[RoundRow]:
    """A row per checked round, and one of each network beside the rounds that is trained."""
    rows: list[RoundRow] = []
    epochs = number = 0
    split: dict[str, Any] = {}
    while (checked := run.published(round_stage(number, CHECK))) is not None:
        trained = run.published(round_stage(number, TRAIN))
        exported = run.published(round_stage(number, EXPORT))
        if trained is None or exported is None:
            break
        epochs += trained.facts.epochs
        row = RoundRow(
            f"round {number}",
            tuple(exported.facts.size.widths.values()),
            exported.facts.size.parameters,
            exported.facts.size.macs,
            epochs,
            checked.facts.test_score.value,
            trained.facts.validation_loss,
            macs_of_growth(run, number),
        )
        rows.append(replace(row, **split))
        analysed = run.published(round_stage(number, ANALYSE))
        if analysed is None or (analysed.facts.stopped is None and checked.facts.split is None):
            break
        rewritten = run.published(round_stage(number, REWRITE))
        split = _split_columns(
            analysed.facts, rewritten.facts if rewritten is not None else None, checked.facts.split
        )
        number += 1
    beside = {"rival": run.published(RIVAL), "control": run.published(CONTROL)}
    found = [_judged_row(name, record.facts) for name, record in beside.items() if record and rows]
    return rows + found + _rows_of_family(run, len(rows))


def _rows_of_family(run: Run, rounds: int) -> list[RoundRow]:
    """A row per branch, whose epochs and training MACs are those of the trunk too, and one per rival."""
    branches, rivals = [], []
    epochs = 0
    for number in range(rounds):
        epochs += previous_stage(run, number, TRAIN).facts.epochs
        branch = run.published(round_stage(number, BRANCH))
        if branch is None:
            continue
        row = _judged_row(f"branch {number}", branch.facts)
        whole = macs_of_branch(run, number)
        branches.append(replace(row, epochs=epochs + row.epochs, training_macs=whole))
        rival = run.published(rival_of_branch(number))
        if rival is not None:
            rivals.append(_judged_row(f"rival {number}", rival.facts))
    return branches + rivals


def _judged_row(name: str, facts: JudgedFacts) -> RoundRow:
    return RoundRow(
        name,
        tuple(facts.size.widths.values()),
        facts.size.parameters,
        facts.size.macs,
        facts.training.epochs,
        facts.score.value,
        facts.training.validation_loss,
        macs_of_training(facts.size, facts.training),
        cost=facts.cost,
        unit=facts.unit,
    )


def _split_columns(
    analysed: AnalyseFacts, rewritten: RewriteFacts | None, split: SplitFacts | None
) -> dict[str, Any]:
    """The columns of a row that are of the split which made its network."""
    if split is None or analysed.stopped is not None:
        return {}
    return {
        "latency_ratio": split.latency.ratio,
        "latency_low": split.latency.low,
        "latency_high": split.latency.high,
        "epsilon": analysed.epsilon,
        "predicted_change": analysed.predicted_change,
        "realised_change": analysed.realised_change,
        "parity": split.parity,
        "gradient_ratio": None if rewritten is None else rewritten.gradient_ratio,
        "cost": analysed.cost,
        "unit": analysed.unit,
    }


def title_of(run: Run) -> str:
    """The heading of a run's summary."""
    return f"growpipe run of {run.recipe.name}, seed {run.seed}"


_ABSENT = "-"
_PIPED_WIDTH = 100
_MOST_WIDTHS = 6
_HUGE = 10**9
_HEADING_WIDTH = 12
_SCORE = "score"  # the column is called after the metric
_COLUMNS = (
    "network",
    "widths",
    "parameters",
    "MACs",
    "cost",
    "epochs",
    "training MACs",
    "validation loss",
    _SCORE,
    "latency / parent",
    "ε",
    "Δloss predicted",
    "Δloss realised",
    "realised / predicted",
    "parity at ε = 0",
    "gradient new / old",
)


# What people see first; `summary.md` and the page have all columns.
_NARROW = ("network", "widths", "parameters", "MACs", "cost", "epochs", _SCORE, "latency / parent")


def widths_in_short(widths: Sequence[int]) -> str:
    """The widths, or if they are too many to read how many channels they are."""
    if len(widths) <= _MOST_WIDTHS:
        return "-".join(map(str, widths))
    return f"{sum(widths):,} channels"


def _cells(row: RoundRow, quality: Quality) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return _ABSENT if value is None else format(value, form)

    latency = _ABSENT
    if row.latency_ratio is not None:
        latency = f"{row.latency_ratio:.2f} [{row.latency_low:.2f}, {row.latency_high:.2f}]"
    ratio = None
    if row.predicted_change and row.realised_change is not None:
        ratio = row.realised_change / row.predicted_change
    return (
        row.name,
        " ".join(map(str, row.widths)),
        f"{row.parameters:,}",
        f"{row.macs:,}",
        f"{shown(row.cost, '.3g')} {row.unit}".strip(),
        str(row.epochs),
        f"{row.training_macs:.3g}",
        f"{row.validation_loss:.4g}",
        quality.shown(row.test_score),
        latency,
        shown(row.epsilon, ".3g"),
        shown(row.predicted_change, "+.4f"),
        shown(row.realised_change, "+.4f"),
        shown(ratio, ".2f"),
        shown(row.parity, ".1e"),
        shown(row.gradient_ratio, ".2f"),
    )


def _columns_in_use(cells: Sequence[Sequence[str]]) -> list[int]:
    """The columns in which there is anything."""
    return [index for index in range(len(_COLUMNS)) if any(row[index] != _ABSENT for row in cells)]


def _in_short(row: RoundRow) -> dict[str, str]:
    """The cells of a row that a narrow table has no room for, in fewer characters."""
    short = {"widths": widths_in_short(row.widths)}
    for name, number in (("parameters", row.parameters), ("MACs", row.macs)):
        if number >= _HUGE:
            short[name] = f"{number / 1e9:,.1f} G"
    if row.latency_ratio is not None:
        short["latency / parent"] = f"{row.latency_ratio:.2f}"
    return short


def _headings(quality: Quality) -> dict[str, str]:
    """What columns are called beside their own names."""
    direction = " (lower is better)" if quality.lower_is_better else ""
    return {_SCORE: f"test {quality.name}{direction}"}


def print_summary(rows: Sequence[RoundRow], title: str, quality: Quality) -> None:
    """Print on stdout what matters most, in a table of at most 100 characters.

    Args:
        rows: of `rows_of`.
        title: the heading.
        quality: what networks are judged by.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPED_WIDTH)
    cells = [_cells(row, quality) for row in rows]
    used = _columns_in_use(cells)
    columns = [index for index in used if _COLUMNS[index] in _NARROW]
    table = Table(title=Text(one_line(title)), title_justify="left")
    for index in columns:
        heading = _headings(quality).get(_COLUMNS[index], _COLUMNS[index])
        # Headings give way, so that no cell has to.
        heading = "\n".join(textwrap.wrap(one_line(heading), _HEADING_WIDTH))
        table.add_column(Text(heading), justify="left" if index < 2 else "right", overflow="fold")
    for row, line in zip(rows, cells, strict=True):
        short = _in_short(row)
        table.add_row(*(Text(one_line(short.get(_COLUMNS[index], line[index]))) for index in columns))
    console.print(table)


def summary_markdown(rows: Sequence[RoundRow], title: str, facts: FinalFacts, quality: Quality) -> str:
    """The rows as a Markdown table with all columns, and what ended in which way."""
    cells = [_cells(row, quality) for row in rows]
    columns = _columns_in_use(cells)
    headings = [_headings(quality).get(name, name) for name in _COLUMNS]
    table = [[line[index] for index in columns] for line in (headings, *cells)]
    lines = ["| " + " | ".join(line) + " |" for line in table]
    lines = [f"# {title}", "", lines[0], "|" + "---|" * len(columns), *lines[1:], "", f"{facts.verdict}."]
    for member in facts.members:
        lines += ["", f"`{member.folder}/model.onnx`: {member.verdict}."]
    return "\n".join(lines) + "\n"


def summary_document(run: Run, rows: Sequence[RoundRow], facts: FinalFacts | None = None) -> dict[str, Any]:
    """``summary.json``: the rows, what ended the run, the verdict, and what the run was.

    Args:
        run: the run.
        rows: of `rows_of`.
        facts: of ``final``; None if the run is not finished.

    Raises:
        UsageError: no round is checked yet.
    """
    if not rows:
        raise UsageError(f"{run.path} has no checked round yet; run: growpipe run --out {run.path}")
    document = {
        "format_version": 1,
        "recipe": run.recipe.name,
        "seed": run.seed,
        "stopped": "not finished" if facts is None else facts.stopped,
        "deployed": None if facts is None else facts.deployed,
        "verdict": None if facts is None else facts.verdict,
        "metric": asdict(run.recipe.quality),
        "rows": [asdict(row) for row in rows],
    }
    if facts is not None and facts.members:
        members = [TypeAdapter(MemberFacts).dump_python(member, mode="json") for member in facts.members]
        document["family"] = {"training_macs": facts.training_macs, "members": members}
    return document
