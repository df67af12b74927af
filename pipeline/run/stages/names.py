"""The names of stages and of the files in them."""

from __future__ import annotations

from typing import TypeVar

from growpipe.graph_ops.errors import UsageError
from growpipe.run.facts import (
    AnalyseFacts,
    CheckFacts,
    ExportFacts,
    FinalFacts,
    JudgedFacts,
    RewriteFacts,
    TrainFacts,
)
from growpipe.run.store import Run, Stage, StageRecord

__all__ = [
    "ANALYSE",
    "BRANCH",
    "CHECK",
    "CHILD",
    "CONTROL",
    "DEPLOYED",
    "EXPORT",
    "FINAL",
    "GROWTH_FORM",
    "OPTIMIZER",
    "PAGE",
    "PLAN",
    "PLAN_FILES",
    "REPORT",
    "REWRITE",
    "RIVAL",
    "SUMMARY",
    "TRAIN",
    "WEIGHTS",
    "previous_stage",
    "rival_of_branch",
    "round_stage",
]

Facts = TypeVar("Facts")

# The stages of a round, in order; `round_stage` names them.
TRAIN = Stage("train", TrainFacts)
EXPORT = Stage("export", ExportFacts)
ANALYSE = Stage("analyse", AnalyseFacts)
REWRITE = Stage("rewrite", RewriteFacts)
CHECK = Stage("check", CheckFacts)

BRANCH = Stage("branch", JudgedFacts)
"""In a family: the network of the round, annealed."""

CONTROL = Stage("control/train", JudgedFacts)
RIVAL = Stage("control/rival", JudgedFacts)
FINAL = Stage("final", FinalFacts)

GROWTH_FORM = "growth.onnx"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
CHILD = "child.onnx"
PLAN = "plan"
PLAN_FILES = (f"{PLAN}/plan.json", f"{PLAN}/plan.safetensors")
REPORT = "report.json"
DEPLOYED = "model.onnx"
SUMMARY = "summary.json"
PAGE = "report.html"


def round_stage(number: int, stage: Stage[Facts]) -> Stage[Facts]:
    """A stage of a round, e.g. ``round-00/train``."""
    return Stage(f"round-{number:02d}/{stage.name}", stage.facts)


def rival_of_branch(number: int) -> Stage[JudgedFacts]:
    """The rival of a round's branch in a family, e.g. ``control/rival-01``."""
    return Stage(f"{RIVAL.name}-{number:02d}", JudgedFacts)


def previous_stage(run: Run, number: int, stage: Stage[Facts]) -> StageRecord[Facts]:
    """A published stage that another one reads.

    Raises:
        UsageError: the stage is not there.
    """
    record = run.published(round_stage(number, stage))
    if record is None:
        command = {"check": "check-round"}.get(stage.name, stage.name)
        raise UsageError(
            f"round {number} has no {stage.name} stage yet; run first: growpipe {command} {run.path}"
        )
    return record
