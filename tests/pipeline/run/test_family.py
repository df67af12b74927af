"""A family on real digits, with few epochs: a network per size, from a trunk that is never annealed."""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession

from growpipe.checks.measure.latency import LatencyRatio
from growpipe.graph_ops.edit.deploy import deploy_form
from growpipe.graph_ops.edit.description import DESCRIPTION_KEY, read_description
from growpipe.graph_ops.files.load_save import load_model, save_model
from growpipe.pages.page import run_page
from growpipe.parallel.processes import ALONE
from growpipe.run import family_finish, loop
from growpipe.run.facts import FinalFacts
from growpipe.run.recipe import Recipe, parse_recipe
from growpipe.run.stages import check
from growpipe.run.stages.names import ANALYSE, BRANCH, FINAL, TRAIN, previous_stage, rival_of_branch
from growpipe.run.stages.training_cost import TRAIN_COST
from growpipe.run.store import Run, StageRecord
from growpipe.run.story import story_of
from growpipe.run.summary import rows_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BUDGETS = [3500.0, 6000.0]
RECIPE = {
    "name": "quick",
    "model": "growpipe.models.digits:build",
    "data": "growpipe.data.digits:loaders",
    "train": {"epochs": 2, "trigger": "period", "final_epochs": 1, "threads": 1, "learning_rate": 0.02},
    "growth": {"samples": 128},
    "family": {"budgets": BUDGETS},
    "control": {"learning_rate": 0.03},
}


def recipe(**changes: object) -> Recipe:
    return parse_recipe({**RECIPE, **changes}, "of the test")


def run_in(folder: Path, asked: Recipe) -> tuple[Run, StageRecord[FinalFacts]]:
    run = Run.create(folder, asked, None, seed=0, device="cpu", peers=ALONE)
    with run.locked():
        return run, loop.run_all(run)


def artifacts(final: Path) -> dict[str, bytes]:
    """What does not depend on the clock."""
    return {
        path.relative_to(final).as_posix(): path.read_bytes()
        for path in sorted(final.rglob("*"))
        if path.suffix in (".onnx", ".safetensors")
    }


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency is measured, but not well; that of a member tells which file was measured."""
    for module in (check, family_finish):
        monkeypatch.setattr(module, "_LATENCY_SECONDS", 0.05)
    measure = family_finish.paired_latency

    def told(reference: Path, candidate: Path, *rest: object) -> LatencyRatio:
        found = measure(reference, candidate, *rest)
        return replace(found, reference_ms=content(reference), candidate_ms=content(candidate))

    monkeypatch.setattr(family_finish, "paired_latency", told)


def content(path: Path) -> float:
    """A number that tells one file from another."""
    return float(zlib.crc32(path.read_bytes()))


def deployed(run: Run, stage: str, target: Path) -> float:
    """The `content` of the deploy form of what a stage made."""
    save_model(deploy_form(load_model(run.path / stage / "growth.onnx")), target)
    return content(target)


def test_a_family_and_what_it_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, final = run_in(tmp_path / "run", recipe())
    facts, folder = final.facts, final.folder

    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page == run_page(story_of(run, facts))
    assert page.count('role="img" aria-label="branch') == 2
    assert page.count("(deployed)") == 2 * len(facts.members)  # said, and shown

    # One deployed network per size, within it, and each an annealed branch or its rival.
    assert [member.folder for member in facts.members] == ["3500-macs", "6000-macs"]
    for number, (member, budget) in enumerate(zip(facts.members, BUDGETS, strict=True), start=1):
        assert member.budget == budget
        assert member.grown.size.macs <= budget
        assert member.rival is not None
        assert member.rival.size.macs <= member.grown.size.macs
        place = folder / member.folder
        form = tmp_path / "form.onnx"
        assert member.latency.reference_ms == deployed(run, "round-01/branch", form)
        assert member.latency.candidate_ms == deployed(run, f"round-{number:02d}/branch", form)
        assert member.rival_latency is not None
        assert member.rival_latency.candidate_ms == deployed(run, f"control/rival-{number:02d}", form)
        assert {path.name for path in place.iterdir()} == {"growth.onnx", "model.onnx", "weights.safetensors"}
        chosen = {"grown": f"round-{number:02d}/branch", "rival": f"control/rival-{number:02d}"}[
            member.deployed
        ]
        shipped = load_model(place / "growth.onnx")
        judged = member.grown if member.deployed == "grown" else member.rival
        assert judged is not None
        test = read_description(shipped).test
        assert test is not None
        assert (test.metric, test.value) == ("accuracy", judged.score.value)
        # But for that the file is the one that was judged.
        del shipped.metadata_props[DESCRIPTION_KEY]
        save_model(shipped, form)
        save_model(load_model(run.path / chosen / "growth.onnx"), tmp_path / "judged.onnx")
        assert form.read_bytes() == (tmp_path / "judged.onnx").read_bytes()
        model = onnx.load(place / "model.onnx")
        assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
        image = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
        session = InferenceSession(place / "model.onnx", providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {session.get_inputs()[0].name: image})
        assert logits.shape == (3, 10)
        assert np.isfinite(logits).all()

    # The trunk has the constant rate throughout, the branches end lower, and what they took is accounted for.
    def rates(stage: str) -> list[float]:
        lines = (run.path / stage / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["learning_rate"] for line in lines]

    assert rates("round-00/train") + rates("round-02/train") == [0.02] * 4
    assert rates("round-01/branch") == [0.02]
    assert rates("control/rival-01")[0] == 0.03  # a rival may have a rate of its own
    trunk = [previous_stage(run, n, TRAIN).facts.samples for n in range(3)]
    sizes = {row.name: row.macs for row in rows_of(run)}
    analyses = [previous_stage(run, n, ANALYSE).facts.analysis_macs for n in range(2)]
    branches = [previous_stage(run, n, BRANCH).facts.training.samples for n in (1, 2)]
    spent = sum(TRAIN_COST * sizes[f"round {n}"] * trunk[n] for n in range(3)) + sum(analyses)
    assert facts.training_macs == spent + sum(
        TRAIN_COST * sizes[f"round {n}"] * samples for n, samples in zip((1, 2), branches, strict=True)
    )
    assert facts.members[1].training_macs < facts.training_macs
    for member in facts.members:
        assert member.rival is not None
        took = TRAIN_COST * member.rival.size.macs * member.rival.training.samples
        assert took <= member.training_macs

    document = json.loads((folder / "summary.json").read_text())
    assert [row["name"] for row in document["rows"]] == [
        *("round 0", "round 1", "round 2"),
        *("branch 1", "branch 2", "rival 1", "rival 2"),
    ]
    assert document["deployed"] == "family"
    assert document["family"]["training_macs"] == facts.training_macs
    assert [m["verdict"] for m in document["family"]["members"]] == [m.verdict for m in facts.members]
    assert "% of the training MACs of their rivals from scratch" in document["verdict"]
    assert (folder / "run.png").read_bytes().startswith(b"\x89PNG")

    # What was lost is made again, byte for byte, and nothing else is.
    before = artifacts(folder)
    for lost in ("round-01/branch", "control/rival-02", "final"):
        shutil.rmtree(run.path / lost)
    kept = {path: path.stat().st_mtime_ns for path in run.path.glob("round-*/*/manifest.json")}
    _, again = run_in(run.path, recipe())
    assert artifacts(again.folder) == before
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert run_in(run.path, recipe())[1].skipped

    # A smaller family removes what it does not have, and a run without one all that is left of it.
    smaller = recipe(family={"budgets": BUDGETS[:1]}, control={"rival": "none"})
    _, final = run_in(run.path, smaller)
    assert [member.deployed for member in final.facts.members] == ["grown"]
    assert final.facts.verdict.endswith("; no rivals were trained")
    assert not (run.path / "round-02").exists()
    assert not list(run.path.glob("control/*"))
    plain = {**RECIPE, "growth": {"samples": 128, "rounds": 0}}
    del plain["family"]
    _, final = run_in(run.path, parse_recipe(plain, "of the test"))
    assert not final.facts.members
    assert not list(run.path.glob("round-*/branch"))
    assert run.published(rival_of_branch(1)) is None
    assert (run.published(FINAL) or final).facts.deployed == "grown"
