"""The whole loop: round after round until the budget is spent, then the control and the final artifacts."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from growpipe.checks.measure.accuracy import Accuracy
from growpipe.checks.measure.latency import LatencyRatio
from growpipe.progress import log
from growpipe.run.facts import FinalFacts, NetworkSize
from growpipe.run.finish import finish
from growpipe.run.recipe import BudgetSection
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
from growpipe.run.task import Task, load_task
from growpipe.torch_module.widen import obstacle_to_reinitialising

__all__ = ["STAGES", "announced", "next_round", "run_all"]

Facts = TypeVar("Facts")

STAGES: dict[str, tuple[Stage[Any], Callable[[Task, int], StageRecord[Any]]]] = {
    "train": (TRAIN, train_round),
    "export": (EXPORT, export_round),
    "analyse": (ANALYSE, analyse_round),
    "rewrite": (REWRITE, rewrite_round),
    "check": (CHECK, check_round),
}


_TOLD_LAST = ("verdict",)  # the last line of the command


def run_all(run: Run) -> StageRecord[FinalFacts]:
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
            _discard(run, number, (ANALYSE, REWRITE), later=True)
        elif announced(analyse_round(task, number)).facts.stopped is None:
            announced(rewrite_round(task, number))
        else:
            # No child: the next round is the last stage of training of this same network.
            _discard(run, number, (REWRITE,), later=False)
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
        _remove(run, RIVAL)
    if run.recipe.control.seed_control:
        epochs = sum(previous_stage(run, done, TRAIN).facts.epochs for done in range(number + 1))
        announced(train_control(task, epochs))
    else:
        _remove(run, CONTROL)


def _why_no_rival(task: Task, number: int) -> str | None:
    first, final = (previous_stage(task.run, n, EXPORT).facts.size for n in (0, number))
    if task.run.recipe.control.rival == "none":
        return 'control.rival = "none"'
    if first.widths == final.widths:
        return "the network has not grown"
    return obstacle_to_reinitialising(task.build_seed())


def _remove(run: Run, stage: Stage[Any]) -> None:
    """Remove what an earlier run has left of a stage that this run does not have."""
    if run.peers.rank == 0:
        shutil.rmtree(run.path / stage.name, ignore_errors=True)
    run.peers.broadcast(None)  # nobody reads what is being removed


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


def _discard(run: Run, number: int, unread: Iterable[Stage[Any]], *, later: bool) -> None:
    """Remove what an earlier run left that is not part of this one.

    Args:
        run: the run.
        number: the round that the run has come to.
        unread: the stages of round ``number`` that this run does not have.
        later: whether this run has no round after ``number``.
    """
    if run.peers.rank == 0:
        for stage in unread:
            shutil.rmtree(run.path / round_stage(number, stage).name, ignore_errors=True)
        beyond = number + 1
        while later and (folder := run.path / f"round-{beyond:02d}").exists():
            shutil.rmtree(folder)
            log(f"{folder.name}: of an earlier, longer run, removed")
            beyond += 1
    run.peers.broadcast(None)  # nobody reads what is being removed


def announced(record: StageRecord[Facts]) -> StageRecord[Facts]:
    """Say what a stage did."""
    if record.skipped:
        log(f"{record.name}: nothing changed, skipped")
        return record
    told = [f"{name} {value}" for name, value in _told(record.facts)]
    log(f"{record.name}: " + (", ".join(told) or "done"))
    return record


def _told(facts: Any) -> Iterator[tuple[str, str]]:
    """What people are told of facts: name and value."""
    for field in dataclasses.fields(facts):
        if field.name in _TOLD_LAST:
            continue
        match getattr(facts, field.name):
            case Accuracy() as accuracy:
                yield field.name, f"{accuracy.value:.1%}"
            case LatencyRatio() as latency:
                yield field.name, f"{latency.ratio:.2f}"
            case NetworkSize() as size:
                yield "parameters", f"{size.parameters:,}"
                yield "MACs", f"{size.macs:,}"
            case bool() | None | "":
                pass
            case float() as number:
                yield field.name, f"{number:.4g}"
            case int() | str() as value:
                yield field.name, str(value)
            case nested if dataclasses.is_dataclass(nested):
                yield from _told(nested)


def next_round(run: Run, stage: Stage[Any]) -> int:
    """The round a stage command works on: the first one that lacks it."""
    number = 0
    while run.published(round_stage(number, stage)) is not None:
        number += 1
    return number
