"""The end of a run: the final network in deploy form, the summary, the picture and the page."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from growpipe.checks.measure.compare import compare, run_model
from growpipe.graph_ops.edit.deploy import deploy_form
from growpipe.graph_ops.edit.description import Description, MeasuredOnTest, describe
from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.files.load_save import load_model, save_model
from growpipe.pages.page import run_page
from growpipe.quality import Score
from growpipe.run.facts import FinalFacts
from growpipe.run.picture import draw_run
from growpipe.run.stages.check import DEPLOY_TOLERANCE
from growpipe.run.stages.names import (
    CHECK,
    CONTROL,
    DEPLOYED,
    EXPORT,
    FINAL,
    GROWTH_FORM,
    PAGE,
    REPORT,
    RIVAL,
    SUMMARY,
    TRAIN,
    WEIGHTS,
    previous_stage,
)
from growpipe.run.store import Run, StageRecord
from growpipe.run.story import story_of
from growpipe.run.summary import RoundRow, rows_of, summary_document, summary_markdown, title_of
from growpipe.run.task import Task
from growpipe.run.verdict import judge

__all__ = ["finish", "write_deployed", "write_page", "write_summary"]


def finish(task: Task, number: int, stopped: str) -> StageRecord[FinalFacts]:
    """Publish ``final``: deploy form, growth form and weights of the network that won, summary, picture
    and page.

    Args:
        task: the task of the run.
        number: the last round.
        stopped: why the run ended, in words.

    Raises:
        CheckFailed: the deploy form computes something else than the growth form.
        UsageError: the last round is not checked yet.
    """
    run = task.run
    exported, trained = previous_stage(run, number, EXPORT), previous_stage(run, number, TRAIN)
    checked = previous_stage(run, number, CHECK)
    inputs = exported.inputs(GROWTH_FORM) | trained.inputs(WEIGHTS) | checked.inputs(REPORT)
    for stage in (RIVAL, CONTROL):
        control = run.published(stage)
        if control is not None:
            inputs |= control.inputs(GROWTH_FORM, WEIGHTS)
    verdict = judge(run, number)
    graph, weights, score = exported.file(GROWTH_FORM), trained.file(WEIGHTS), checked.facts.test_score
    rival = run.published(RIVAL)
    if rival is not None and verdict.deployed == "rival":
        graph, weights, score = rival.file(GROWTH_FORM), rival.file(WEIGHTS), rival.facts.score

    def produce(folder: Path) -> FinalFacts:
        parity = write_deployed(task, graph.path, weights.path, score, folder)
        rows = rows_of(run)
        facts = FinalFacts(stopped, parity, verdict.deployed, verdict.words)
        write_summary(run, rows, facts, folder)
        draw_run(rows, run.path, folder / "run.png", run.recipe.quality)
        write_page(run, facts, folder)
        return facts

    rows = [dataclasses.asdict(row) for row in rows_of(run)]
    config = {
        "rows": rows,
        "stopped": stopped,
        "verdict": dataclasses.asdict(verdict),
        "preprocessing": run.recipe.preprocessing,
    }
    return run.stage(FINAL, produce, config=config, inputs=inputs)


def write_deployed(task: Task, growth_form: Path, weights: Path, score: Score, folder: Path) -> float:
    """Write deploy form, growth form and weights of a network into a folder; both forms describe themselves.

    Args:
        task: gives the inputs on which the two forms are compared.
        growth_form: the graph.
        weights: of the module.
        score: of the network on the test set.
        folder: where to write.

    Returns:
        How far the deploy form is from the growth form, as a share of the output's scale.

    Raises:
        CheckFailed: they differ by more than rounding explains.
    """
    graph = load_model(growth_form)
    quality = score.quality
    test = MeasuredOnTest(
        quality.name,
        score.value,
        score.low,
        score.high,
        score.samples,
        quality.percent,
        quality.lower_is_better,
    )
    describe(graph, Description(task.run.recipe.preprocessing, test))
    deployed = folder / DEPLOYED
    save_model(deploy_form(graph), deployed)
    feed = task.validation_feed(graph)
    difference = compare(run_model(growth_form, feed), run_model(deployed, feed)).relative
    if not difference <= DEPLOY_TOLERANCE:
        raise CheckFailed(
            f"the deploy form differs from the growth form by {difference:.1e} of the output's scale"
        )
    save_model(graph, folder / GROWTH_FORM)
    shutil.copyfile(weights, folder / WEIGHTS)
    return difference


def write_summary(run: Run, rows: Sequence[RoundRow], facts: FinalFacts, folder: Path) -> None:
    """Write ``summary.json`` and ``summary.md`` into a folder."""
    document = json.dumps(summary_document(run, rows, facts), indent=1) + "\n"
    (folder / SUMMARY).write_text(document, encoding="utf-8")
    (folder / "summary.md").write_text(
        summary_markdown(rows, title_of(run), facts, run.recipe.quality), encoding="utf-8"
    )


def write_page(run: Run, facts: FinalFacts, folder: Path) -> None:
    """Write ``report.html`` into a folder."""
    (folder / PAGE).write_text(run_page(story_of(run, facts)), encoding="utf-8")
