"""The check stage of a round: what onnxruntime says of the trained network and of its split."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from growpipe.checks.measure.compare import compare, run_model
from growpipe.checks.measure.latency import Timing, paired_latency
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import CheckFailed
from growpipe.graph_ops.files.atomic import write_text
from growpipe.graph_ops.files.load_save import load_model, save_model
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.run.stages.stages import (
    CHILD,
    GROWTH_FORM,
    PLAN,
    WEIGHTS,
    previous_stage,
    round_stage,
    test_accuracy,
)
from growpipe.run.stages.structure import structure_problems
from growpipe.run.store import Run, StageRecord
from growpipe.run.task import Task, input_names
from growpipe.torch_module.grow_module import load_grown
from growpipe.torch_module.outputs import output_tensors, to_numpy

__all__ = ["check_round"]

PARITY_TOLERANCE = 1e-5
"""Parent against child at ε = 0, relative to the output's scale; torch against ONNX at the chosen ε alike."""
BATCH_SIZES = (1, 2, 7)
_LATENCY_SECONDS = 2.0


def check_round(task: Task, number: int) -> StageRecord:
    """Check the trained network of a round and, where it was split, its child against it.

    Publishes ``report.json``. The facts hold the accuracy of both, the parity at ε = 0, the agreement of
    torch and ONNX at the chosen ε, and the paired latency ratio of child over parent.

    Raises:
        CheckFailed: the structure is wrong, or a parity is worse than 1e-5 of the output's scale. What was
            measured is in the message, and in ``failed-check.json`` of the round.
    """
    run = task.run
    exported = previous_stage(run, number, "export")
    rewritten = run.published(round_stage(number, "rewrite"))
    inputs = exported.inputs(GROWTH_FORM)
    if rewritten is not None:
        analysed = previous_stage(run, number, "analyse")
        inputs |= rewritten.inputs(CHILD, WEIGHTS) | analysed.inputs(
            f"{PLAN}/plan.json", f"{PLAN}/plan.safetensors"
        )
    failed = run.path / round_stage(number, "failed-check.json")

    def produce(folder: Path) -> dict[str, Any]:
        report = _check_network(task, exported.folder / GROWTH_FORM)
        if rewritten is not None:
            report |= _check_split(run, task, number, exported.folder / GROWTH_FORM, rewritten.folder, folder)
        problems = report.pop("problems")
        if problems:
            write_text(failed, json.dumps({"problems": problems, **report}, indent=1) + "\n")
            raise CheckFailed(
                f"round {number} failed its check: {problems[0]}"
                + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
                + f"; all of it is in {failed}"
            )
        failed.unlink(missing_ok=True)
        (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        return report

    config = {**task.config, "tolerance": PARITY_TOLERANCE, "batch_sizes": BATCH_SIZES}
    return run.stage(round_stage(number, "check"), produce, config=config, inputs=inputs)


def _check_network(task: Task, path: Path) -> dict[str, Any]:
    """Structure and test accuracy of the trained network."""
    return {
        "problems": [f"{path.name}: {problem}" for problem in structure_problems(path, BATCH_SIZES)],
        "test_accuracy": test_accuracy(task, path),
    }


def _check_split(
    run: Run, task: Task, number: int, parent: Path, rewritten: Path, folder: Path
) -> dict[str, Any]:
    """The child against its parent."""
    child = rewritten / CHILD
    names = input_names(load_model(parent))
    feed, _ = task.gathered(task.objective.loaders.validation, names, limit=1)
    plan = SplitPlan.load(previous_stage(run, number, "analyse").folder / PLAN)
    problems = [f"{child.name}: {problem}" for problem in structure_problems(child, BATCH_SIZES)]

    # At ε = 0 the child computes what its parent computes.
    undisplaced = folder / ".undisplaced.onnx"
    save_model(grow_graph(load_model(parent), plan.with_epsilon(0.0)), undisplaced)
    parity = 0.0
    for size in (*BATCH_SIZES, len(next(iter(feed.values())))):
        batch = {name: array[:size] for name, array in feed.items()}
        for optimised in (False, True):
            expected = run_model(parent, batch, optimised=optimised)
            parity = max(
                parity, compare(expected, run_model(undisplaced, batch, optimised=optimised)).relative
            )
    undisplaced.unlink()
    if not parity <= PARITY_TOLERANCE:
        problems.append(f"parent and child differ at ε = 0 by {parity:.1e} of the output's scale")

    # At the chosen ε the rewritten graph computes what the grown module computes.
    model = load_grown(task.build_seed(), rewritten / WEIGHTS).eval()
    with torch.no_grad():
        output = model(*(torch.from_numpy(feed[name]) for name in names))
    outputs = run_model(child, feed)
    expected = dict(zip(outputs, map(to_numpy, output_tensors(output)), strict=True))
    mirror = compare(expected, outputs).relative
    if not mirror <= PARITY_TOLERANCE:
        problems.append(f"torch and ONNX differ after the split by {mirror:.1e} of the output's scale")

    sample = task.one_sample(load_model(parent))
    latency = paired_latency(parent, child, sample, Timing(seconds=_LATENCY_SECONDS, level=0.95))
    return {
        "problems": problems,
        "parity": parity,
        "torch_parity": mirror,
        "drift": compare(run_model(parent, feed), outputs).relative,
        "child_test_accuracy": test_accuracy(task, child),
        "latency": dataclasses.asdict(latency),
    }
