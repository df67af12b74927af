"""The whole loop: round after round until the budget is spent, then the control and the final artifacts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from growpipe.progress import live_view, log, show_round
from growpipe.run.announce import announced
from growpipe.run.facts import FinalFacts
from growpipe.run.family import run_family
from growpipe.run.finish import finish
from growpipe.run.leftovers import discard_rounds, remove_branches, remove_stage
from growpipe.run.recipe import BudgetSection
from growpipe.run.recipe_limits import rounds_of
from growpipe.run.stages.analyse import analyse_round
from growpipe.run.stages.check import check_round
from growpipe.run.stages.control import train_control, train_rival
from growpipe.run.stages.export import export_round
from growpipe.run.stages.names import (
    ANALYSE,
    CHECK,
    CONTROL,
    EXPORT,
    REWRITE,
    RIVAL,
    TRAIN,
    previous_stage,
    round_stage,
)
from growpipe.run.stages.rewrite import rewrite_round
from growpipe.run.stages.train import train_round
from growpipe.run.store import Run, Stage, StageRecord
from growpipe.run.summary import title_of
from growpipe.run.task import Task, load_task
from growpipe.torch_module.widen import obstacle_to_reinitialising

__all__ = ["STAGES", "next_round", "run_all"]

STAGES: dict[str, tuple[Stage[Any], Callable[[Task, int], StageRecord[Any]]]] = {
    "train": (TRAIN, train_round),
    "export": (EXPORT, export_round),
    "analyse": (ANALYSE, analyse_round),
    "rewrite": (REWRITE, rewrite_round),
    "check": (CHECK, check_round),
}


def run_all(run: Run) -> StageRecord[FinalFacts]:
    """Every stage that is not done yet, to the final artifacts.

    Returns:
        The record of ``final``.
    """
    with live_view(title_of(run)):
        task = load_task(run)
        return run_family(task) if run.recipe.family is not None else _run_one(task)


def _run_one(task: Task) -> StageRecord[FinalFacts]:
    """The rounds of one network."""
    run = task.run
    remove_branches(run, beyond=0, rivals_too=True)
    number, stopped = 0, None
    while stopped is None:
        show_round(number, rounds_of(run.recipe))
        announced(train_round(task, number))
        announced(export_round(task, number))
        stopped = _reason_to_stop(run, number)
        if stopped is not None:
            discard_rounds(run, number, (ANALYSE, REWRITE), later=True)
        elif announced(analyse_round(task, number)).facts.stopped is None:
            announced(rewrite_round(task, number))
        else:
            # No child: the next round is the last stage of training of this same network.
            discard_rounds(run, number, (REWRITE,), later=False)
        announced(check_round(task, number))
        number += 1
    _train_controls(task, number - 1)
    return announced(finish(task, number - 1, stopped))


def _train_controls(task: Task, number: int) -> None:
    """Train what the network of round ``number``, the last, is compared with."""
    run = task.run
    reason = _why_no_rival(task, number)
    if reason is None:
        announced(train_rival(task, number))
    else:
        log(f"no rival: {reason}")
        remove_stage(run, RIVAL)
    if run.recipe.control.seed_control:
        epochs = sum(previous_stage(run, done, TRAIN).facts.epochs for done in range(number + 1))
        announced(train_control(task, epochs))
    else:
        remove_stage(run, CONTROL)


def _why_no_rival(task: Task, number: int) -> str | None:
    first, final = (previous_stage(task.run, n, EXPORT).facts.size for n in (0, number))
    if task.run.recipe.control.rival == "none":
        return 'control.rival = "none"'
    if first.widths == final.widths:
        return "the network has not grown"
    return obstacle_to_reinitialising(task.build_seed())


def _reason_to_stop(run: Run, number: int) -> str | None:
    found = None if number == 0 else previous_stage(run, number - 1, ANALYSE).facts
    if found is not None and found.stopped is not None:
        return found.stopped
    if found is not None and found.budget_spent:
        return "the budget is spent"
    if number < run.recipe.growth.rounds:
        return None
    rounds = run.recipe.growth.rounds
    done = f"growth is done, round {rounds} of {rounds}"
    if found is None or run.recipe.budget == BudgetSection():
        return done
    return f"{done}, and some of the budget is left: more rounds, or a larger share, would use it"


def next_round(run: Run, stage: Stage[Any]) -> int:
    """The round a stage command works on: the first one that lacks it."""
    number = 0
    while run.published(round_stage(number, stage)) is not None:
        number += 1
    return number
