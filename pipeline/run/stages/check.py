"""The check stage of a round: what onnxruntime says of the trained network and of its split."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from growpipe.checks.measure.compare import compare, run_model
from growpipe.checks.measure.latency import Timing, paired_latency
from growpipe.checks.runner import run_checks
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.files.atomic import write_text
from growpipe.graph_ops.files.load_save import save_model
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.run.facts import CheckFacts, RewriteFacts, SplitFacts
from growpipe.run.stages.names import (
    ANALYSE,
    CHECK,
    CHILD,
    EXPORT,
    GROWTH_FORM,
    PLAN,
    PLAN_FILES,
    REPORT,
    REWRITE,
    WEIGHTS,
    previous_stage,
    round_stage,
)
from growpipe.run.stages.network import trained_network
from growpipe.run.stages.score import score_on_test
from growpipe.run.store import StageRecord
from growpipe.run.task import Task, input_names
from growpipe.torch_module.grow_module import load_grown
from growpipe.torch_module.outputs import output_tensors, to_numpy

__all__ = ["DEPLOY_TOLERANCE", "check_round", "structure_problems"]

DEPLOY_TOLERANCE = 1e-5
"""Deploy form against growth form, relative to the output's scale: fusing batch norm rounds."""
PARITY_TOLERANCE = 1e-5
"""Parent against child at ε = 0, relative to the output's scale; torch against ONNX at the chosen ε alike."""
BATCH_SIZES = (1, 2, 7)
_LATENCY_SECONDS = 2.0


def check_round(task: Task, number: int) -> StageRecord[CheckFacts]:
    """Check the trained network of a round and, if it was split, its child against it.

    Publishes ``report.json``.

    Raises:
        CheckFailed: the structure is wrong, or a parity is worse than 1e-5 of the output's scale. What was
            measured is in the message, and in ``failed-check.json`` of the round.
        UsageError: the round has no export stage yet.
    """
    run = task.run
    exported = previous_stage(run, number, EXPORT)
    rewritten = run.published(round_stage(number, REWRITE))
    inputs = exported.inputs(GROWTH_FORM)
    if rewritten is not None:
        inputs |= rewritten.inputs(CHILD, WEIGHTS)
        inputs |= previous_stage(run, number, ANALYSE).inputs(*PLAN_FILES)
    failed = run.path / f"{round_stage(number, CHECK).name.rpartition('/')[0]}/failed-check.json"

    def produce(folder: Path) -> CheckFacts:
        network = exported.folder / GROWTH_FORM
        problems = _structure(network)
        split = None
        if rewritten is not None:
            problems += _structure(rewritten.folder / CHILD)
            split = _check_split(task, number, rewritten, folder)
            problems += _parity_problems(split)
        facts = CheckFacts(score_on_test(task, network), split)
        if problems:
            write_text(failed, json.dumps({"problems": problems, **_report(facts)}, indent=1) + "\n")
            raise CheckFailed(
                f"round {number} failed its check: {problems[0]}"
                + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
                + f"; all of it is in {failed}"
            )
        failed.unlink(missing_ok=True)
        (folder / REPORT).write_text(json.dumps(_report(facts), indent=1) + "\n", encoding="utf-8")
        return facts

    config = {**task.config, "tolerance": PARITY_TOLERANCE, "batch_sizes": BATCH_SIZES}
    return run.stage(round_stage(number, CHECK), produce, config=config, inputs=inputs)


def structure_problems(path: str | os.PathLike[str], batch_sizes: Sequence[int] = (1, 3)) -> list[str]:
    """What the safety and structure checks find wrong, real runs at these batch sizes included.

    Args:
        path: the model.
        batch_sizes: the sizes that a model with a dynamic batch is run at.

    Returns:
        One line per failed check; empty if the model is sound.
    """
    policy = {"numerics": {"batch_sizes": list(batch_sizes)}}
    report = run_checks(path, policy=policy, only=("safety", "structure"))
    return [
        f"{r.check}: {r.message}" + "".join(f"; {finding}" for finding in r.findings[:3])
        for r in report.worst
        if r.status not in ("passed", "skipped", "waived", "warned")
    ]


def _structure(path: Path) -> list[str]:
    return [f"{path.name}: {problem}" for problem in structure_problems(path, BATCH_SIZES)]


def _check_split(task: Task, number: int, rewritten: StageRecord[RewriteFacts], folder: Path) -> SplitFacts:
    """The child against its parent, and against the grown module."""
    run = task.run
    parent = previous_stage(run, number, EXPORT).folder / GROWTH_FORM
    child = rewritten.folder / CHILD
    plan = SplitPlan.load(previous_stage(run, number, ANALYSE).folder / PLAN)
    export = trained_network(task, number).export
    graph = export.graph
    names = input_names(graph)
    feed = task.validation_feed(graph)

    undisplaced = folder / ".undisplaced.onnx"
    save_model(grow_graph(graph, plan.with_epsilon(0.0), export.solution), undisplaced)
    parity = _worst_difference(parent, undisplaced, feed)
    undisplaced.unlink()

    model = load_grown(task.build_seed(), rewritten.folder / WEIGHTS).eval()
    with torch.no_grad():
        expected = map(to_numpy, output_tensors(model(*(torch.from_numpy(feed[name]) for name in names))))
    outputs = run_model(child, feed)
    sample = task.one_sample(graph)
    return SplitFacts(
        parity=parity,
        torch_parity=compare(dict(zip(outputs, expected, strict=True)), outputs).relative,
        drift=compare(run_model(parent, feed), outputs).relative,
        child_test_score=score_on_test(task, child),
        latency=paired_latency(parent, child, sample, Timing(seconds=_LATENCY_SECONDS, level=0.95)),
    )


def _worst_difference(parent: Path, child: Path, feed: Mapping[str, AnyArray]) -> float:
    """The largest difference as a share of the output's scale, over batch sizes and optimisation levels."""
    differences = []
    for size in (*BATCH_SIZES, len(next(iter(feed.values())))):
        batch = {name: array[:size] for name, array in feed.items()}
        for optimised in (False, True):
            expected = run_model(parent, batch, optimised=optimised)
            found = run_model(child, batch, optimised=optimised)
            differences.append(compare(expected, found).relative)
    return max(differences)


def _parity_problems(split: SplitFacts) -> list[str]:
    problems = []
    if not split.parity <= PARITY_TOLERANCE:
        problems.append(f"parent and child differ at ε = 0 by {split.parity:.1e} of the output's scale")
    if not split.torch_parity <= PARITY_TOLERANCE:
        problems.append(
            f"torch and ONNX differ after the split by {split.torch_parity:.1e} of the output's scale"
        )
    return problems


def _report(facts: CheckFacts) -> dict[str, Any]:
    """The fields of ``report.json``."""
    report = dataclasses.asdict(facts)
    return {"test_score": report["test_score"], **(report["split"] or {})}
