"""The whole loop: round after round until the budget is spent, then the control and the final artifacts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from growpipe.checks.measure.compare import compare, run_model
from growpipe.graph_ops.edit.deploy import deploy_form
from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.files.load_save import load_model, save_model
from growpipe.progress import log
from growpipe.run.picture import draw_run
from growpipe.run.recipe import BudgetSection
from growpipe.run.stages.check import check_round
from growpipe.run.stages.stages import (
    CONTROL,
    GROWTH_FORM,
    WEIGHTS,
    analyse_round,
    export_round,
    previous_stage,
    rewrite_round,
    round_stage,
    train_control,
    train_round,
)
from growpipe.run.store import Run, StageRecord
from growpipe.run.summary import rows_of, summary_document, summary_markdown
from growpipe.run.task import Task, input_names, load_task

__all__ = ["FINAL", "STAGES", "finish", "next_round", "run_all"]

FINAL = "final"
_DEPLOY_TOLERANCE = 1e-5  # of the output's scale: fusing batch norm rounds

STAGES: dict[str, Callable[[Task, int], StageRecord]] = {
    "train": train_round,
    "export": export_round,
    "analyse": analyse_round,
    "rewrite": rewrite_round,
    "check": check_round,
}


def run_all(run: Run) -> StageRecord:
    """Every stage that is not done yet, to the final artifacts.

    Returns:
        The record of ``final``.
    """
    task = load_task(run)
    number, stopped = 0, None
    while stopped is None:
        announced(train_round(task, number))
        announced(export_round(task, number))
        stopped = _reason_to_stop(run, number)
        if stopped is not None:
            _discard(run, number, ("analyse", "rewrite"), later=True)
        elif announced(analyse_round(task, number)).facts["stopped"] is None:
            announced(rewrite_round(task, number))
        else:
            # No child: the next round is the last stage of training of this same network.
            _discard(run, number, ("rewrite",), later=False)
        announced(check_round(task, number))
        number += 1
    epochs = sum(previous_stage(run, done, "train").facts["epochs"] for done in range(number))
    announced(train_control(task, epochs))
    return announced(finish(task, number - 1, stopped))


def _reason_to_stop(run: Run, number: int) -> str | None:
    found = None if number == 0 else previous_stage(run, number - 1, "analyse").facts
    if found is not None and found["stopped"]:
        return str(found["stopped"])
    if found is not None and found["budget_spent"]:
        return "the budget is spent"
    if number < run.recipe.growth.rounds:
        return None
    rounds = run.recipe.growth.rounds
    done = f"growth is done, round {rounds} of {rounds}"
    if found is None or run.recipe.budget == BudgetSection():
        return done
    return f"{done}, and some of the budget is left: more rounds, or a larger share, would use it"


def _discard(run: Run, number: int, unread: Iterable[str], *, later: bool) -> None:
    """Remove what an earlier run left that is no part of this one.

    Args:
        run: the run.
        number: the round it has come to.
        unread: the stages of that round that this run does not have.
        later: whether it has no later rounds.
    """
    if run.peers.rank == 0:
        for stage in unread:
            shutil.rmtree(run.path / round_stage(number, stage), ignore_errors=True)
        beyond = number + 1
        while later and (folder := run.path / f"round-{beyond:02d}").exists():
            shutil.rmtree(folder)
            log(f"{folder.name}: of an earlier, longer run, removed")
            beyond += 1
    run.peers.broadcast(None)  # nobody reads what is being removed


def announced(record: StageRecord) -> StageRecord:
    """Say what a stage did."""
    if record.skipped:
        log(f"{record.name}: nothing changed, skipped")
        return record
    told = {key: value for key, value in record.facts.items() if isinstance(value, (int, float, str))}
    log(f"{record.name}: " + (", ".join(f"{key} {_short(value)}" for key, value in told.items()) or "done"))
    return record


def _short(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def next_round(run: Run, stage: str) -> int:
    """The round a stage command works on: the first one that lacks it."""
    number = 0
    while run.published(round_stage(number, stage)) is not None:
        number += 1
    return number


def finish(task: Task, number: int, stopped: str) -> StageRecord:
    """Publish ``final``: deploy form, growth form, weights, summary and picture.

    Args:
        number: the last round.
        stopped: why the run ended, in words.

    Raises:
        CheckFailed: the deploy form computes something else than the growth form.
    """
    run = task.run
    exported, trained = previous_stage(run, number, "export"), previous_stage(run, number, "train")
    checked = previous_stage(run, number, "check")
    control = run.published(CONTROL)
    inputs = exported.inputs(GROWTH_FORM) | trained.inputs(WEIGHTS) | checked.inputs("report.json")
    if control is not None:
        inputs |= control.inputs(GROWTH_FORM)

    def produce(folder: Path) -> dict[str, Any]:
        growth = load_model(exported.folder / GROWTH_FORM)
        save_model(deploy_form(growth), folder / "model.onnx")
        feed, _ = task.gathered(task.objective.loaders.validation, input_names(growth), limit=1)
        difference = compare(
            run_model(exported.folder / GROWTH_FORM, feed), run_model(folder / "model.onnx", feed)
        ).relative
        if not difference <= _DEPLOY_TOLERANCE:
            raise CheckFailed(
                f"the deploy form differs from the growth form by {difference:.1e} of the output's scale"
            )
        shutil.copyfile(exported.folder / GROWTH_FORM, folder / GROWTH_FORM)
        shutil.copyfile(trained.folder / WEIGHTS, folder / WEIGHTS)
        rows = rows_of(run)
        document = summary_document(run, rows, stopped)
        (folder / "summary.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        (folder / "summary.md").write_text(summary_markdown(rows, title_of(run)), encoding="utf-8")
        draw_run(rows, run.path, folder / "run.png")
        return {"stopped": stopped, "deploy_parity": difference}

    rows = [dataclasses.asdict(row) for row in rows_of(run)]
    return run.stage(FINAL, produce, config={"rows": rows, "stopped": stopped}, inputs=inputs)


def title_of(run: Run) -> str:
    """The heading of a run's summary."""
    return f"growpipe run of {run.recipe.name}, seed {run.seed}"
