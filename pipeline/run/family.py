"""The loop of a family: the trunk grows at a constant rate, and every round has an annealed branch."""

from __future__ import annotations

from growpipe.progress import log, show_round
from growpipe.run.announce import announced
from growpipe.run.facts import FinalFacts
from growpipe.run.family_finish import finish_family
from growpipe.run.leftovers import discard_rounds, remove_branches, remove_stage
from growpipe.run.recipe_limits import rounds_of
from growpipe.run.stages.analyse import analyse_round
from growpipe.run.stages.branch import train_branch
from growpipe.run.stages.check import check_round
from growpipe.run.stages.control import train_rival_of_branch
from growpipe.run.stages.export import export_round
from growpipe.run.stages.names import ANALYSE, CONTROL, REWRITE, RIVAL
from growpipe.run.stages.rewrite import rewrite_round
from growpipe.run.stages.train import train_round
from growpipe.run.store import StageRecord
from growpipe.run.task import Task
from growpipe.torch_module.widen import obstacle_to_reinitialising

__all__ = ["run_family"]


def run_family(task: Task) -> StageRecord[FinalFacts]:
    """Every stage of a family that is not done yet, to the final artifacts.

    Round 0 trains the seed network. Every round after it trains the grown network at the constant rate, and
    has a branch; the trunk goes on from the network before it was annealed.

    Returns:
        The record of ``final``.
    """
    run = task.run
    for stage in (RIVAL, CONTROL):
        remove_stage(run, stage)
    rounds = rounds_of(run.recipe)
    number, stopped = 0, None
    while stopped is None:
        show_round(number, rounds)
        announced(train_round(task, number))
        announced(export_round(task, number))
        if number:
            announced(train_branch(task, number))
        if number == rounds:
            stopped = f"the family is grown, {rounds} sizes"
        else:
            found = announced(analyse_round(task, number)).facts
            stopped = found.stopped
        if stopped is None:
            announced(rewrite_round(task, number))
            announced(check_round(task, number))
            number += 1
    discard_rounds(run, number, (ANALYSE, REWRITE) if number == rounds else (REWRITE,), later=True)
    announced(check_round(task, number))
    _train_rivals(task, number)
    return announced(finish_family(task, number, stopped))


def _train_rivals(task: Task, number: int) -> None:
    """Train the rival of every branch up to round ``number``."""
    run = task.run
    reason = obstacle_to_reinitialising(task.build_seed())
    if run.recipe.control.rival == "none":
        reason = 'control.rival = "none"'
    remove_branches(run, beyond=number, rivals_too=reason is not None)
    if reason is not None:
        log(f"no rivals: {reason}")
        return
    for branched in range(1, number + 1):
        announced(train_rival_of_branch(task, branched))
