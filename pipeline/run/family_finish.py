"""The end of a family: one deployed network per size, one table, one picture."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from growpipe.checks.measure.latency import LatencyRatio, Timing, paired_latency
from growpipe.graph_ops.edit.deploy import deploy_form
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.load_save import load_model, save_model
from growpipe.pages.scales import short
from growpipe.run.facts import FinalFacts, JudgedFacts, MemberFacts
from growpipe.run.family_picture import draw_family
from growpipe.run.finish import write_deployed, write_page, write_summary
from growpipe.run.stages.names import (
    BRANCH,
    CHECK,
    FINAL,
    GROWTH_FORM,
    REPORT,
    WEIGHTS,
    previous_stage,
    rival_of_branch,
)
from growpipe.run.stages.training_cost import macs_of_branch, macs_of_growth, macs_of_training
from growpipe.run.store import Run, StageRecord
from growpipe.run.summary import rows_of
from growpipe.run.task import Task
from growpipe.run.verdict import Verdict, judge_branch

__all__ = ["finish_family"]

_LATENCY_SECONDS = 1.0


def finish_family(task: Task, number: int, stopped: str) -> StageRecord[FinalFacts]:
    """Publish ``final``: a folder per size with deploy form, growth form and weights; summary, picture
    and page.

    Args:
        task: the task of the run.
        number: the last round.
        stopped: why growth ended, in words.

    Raises:
        CheckFailed: a deploy form computes something else than its growth form.
        UsageError: a round is not checked yet, or the network has not grown at all.
    """
    run = task.run
    if number == 0:
        raise UsageError(f"the family has no member: {stopped}")
    inputs = previous_stage(run, number, CHECK).inputs(REPORT)
    verdicts = {}
    for branched in range(1, number + 1):
        inputs |= previous_stage(run, branched, BRANCH).inputs(GROWTH_FORM, WEIGHTS)
        rival = run.published(rival_of_branch(branched))
        if rival is not None:
            inputs |= rival.inputs(GROWTH_FORM, WEIGHTS)
        verdicts[branched] = judge_branch(run, branched)
    rows = rows_of(run)

    def produce(folder: Path) -> FinalFacts:
        members = []
        with tempfile.TemporaryDirectory() as scratch:
            smallest = _form(previous_stage(run, 1, BRANCH), Path(scratch))
            for branched, verdict in verdicts.items():
                place = folder / _folder_of(run, branched)
                place.mkdir()
                members.append(_member(task, branched, verdict, place, smallest))
        spent = _macs_of_family(run, number)
        facts = FinalFacts(
            stopped,
            max(member.deploy_parity for member in members),
            "family",
            _words(members, spent),
            tuple(members),
            spent,
        )
        write_summary(run, rows, facts, folder)
        draw_family(facts.members, folder / "run.png")
        write_page(run, facts, folder)
        return facts

    config = {
        "rows": [dataclasses.asdict(row) for row in rows],
        "stopped": stopped,
        "preprocessing": run.recipe.preprocessing,
        "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts.values()],
        "budgets": None if run.recipe.family is None else run.recipe.family.model_dump(mode="json"),
    }
    return run.stage(FINAL, produce, config=config, inputs=inputs)


def _budget(run: Run, number: int) -> float | None:
    family = run.recipe.family
    return None if family is None or family.budgets is None else family.budgets[number - 1]


def _folder_of(run: Run, number: int) -> str:
    """``1000000-macs`` for a member of a named size, else ``round-01``."""
    family, budget = run.recipe.family, _budget(run, number)
    if family is None or budget is None:
        return f"round-{number:02d}"
    return f"{int(budget)}-{family.measure}"


def _member(task: Task, number: int, verdict: Verdict, place: Path, smallest: Path) -> MemberFacts:
    """Deploy the better network of a size into ``place``.

    Args:
        task: the task of the run.
        number: the round.
        verdict: of branch and rival.
        place: an empty folder.
        smallest: the deploy form of the first branch, which latency is compared with.
    """
    run = task.run
    branch, rival = previous_stage(run, number, BRANCH), run.published(rival_of_branch(number))
    chosen = rival if rival is not None and verdict.deployed == "rival" else branch
    parity = write_deployed(
        task, chosen.file(GROWTH_FORM).path, chosen.file(WEIGHTS).path, chosen.facts.score, place
    )
    return MemberFacts(
        folder=place.name,
        number=number,
        budget=_budget(run, number),
        grown=branch.facts,
        rival=None if rival is None else rival.facts,
        deployed=verdict.deployed,
        deploy_parity=parity,
        training_macs=macs_of_branch(run, number),
        verdict=verdict.words,
        latency=_latency(task, branch, smallest),
        rival_latency=None if rival is None else _latency(task, rival, smallest),
    )


def _form(network: StageRecord[JudgedFacts], folder: Path) -> Path:
    """Write the deploy form of a network into a folder."""
    form = folder / f"{network.name.replace('/', '-')}.onnx"
    save_model(deploy_form(load_model(network.file(GROWTH_FORM).path)), form)
    return form


def _latency(task: Task, network: StageRecord[JudgedFacts], smallest: Path) -> LatencyRatio:
    """The latency of a network over that of the smallest of the family, batch 1."""
    sample = task.one_sample(load_model(smallest))
    timing = Timing(seconds=_LATENCY_SECONDS, level=0.95)
    with tempfile.TemporaryDirectory() as scratch:
        return paired_latency(smallest, _form(network, Path(scratch)), sample, timing)


def _macs_of_family(run: Run, number: int) -> int:
    """The trunk once, all analyses, and all branches."""
    branches = (previous_stage(run, branched, BRANCH).facts for branched in range(1, number + 1))
    return macs_of_growth(run, number) + sum(
        macs_of_training(branch.size, branch.training) for branch in branches
    )


def _words(members: list[MemberFacts], spent: int) -> str:
    """The family against its rivals, in one sentence."""
    sizes = len(members)
    rivals = [member.rival for member in members if member.rival is not None]
    if not rivals:
        return f"{sizes} networks for {short(spent)} training MACs; no rivals were trained"
    alone = sum(macs_of_training(rival.size, rival.training) for rival in rivals)
    grown = sum(member.deployed == "grown" for member in members)
    return (
        f"{sizes} networks grown for {100 * spent / alone:.0f} % of the training MACs of their rivals from "
        f"scratch; the grown network is deployed at {grown} of {sizes} sizes"
    )
