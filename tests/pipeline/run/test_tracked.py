"""Trackers are told while a run goes on, and once if it is resumed; TensorBoard's files are read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.torture.formats import made_run
from growpipe.cli import main
from growpipe.quality import METRICS, Score
from growpipe.run import tracked as told_while_running
from growpipe.run.facts import (
    AnalyseFacts,
    CheckFacts,
    ExportFacts,
    FinalFacts,
    JudgedFacts,
    NetworkSize,
    TrainFacts,
)
from growpipe.run.store import Run, StageRecord
from growpipe.run.tracked import Tracking
from growpipe.training.checkpoint import Epoch
from growpipe.training.train import _Trainer

NET = """
import torch
from torch import nn
from growpipe import Loaders

def net():
    return nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2))

def loaders(batch_size, seed):
    x = torch.randn(96, 5, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).long()
    return Loaders(*([(x[i : i + 32], y[i : i + 32])] for i in (0, 32, 64)))
"""
RECIPE = """
name = "tracked"
model = "net.py:net"
data = "net.py:loaders"
[train]
epochs = 3
final_epochs = 4
threads = 1
[growth]
rounds = 1
samples = 32
[tracking]
trackers = ["tensorboard"]
name = "mine"
"""


class Notebook:
    """A tracker that keeps what it is told, one list per run."""

    runs: dict[str, list[Any]]

    def __init__(self) -> None:
        self.runs, self.run, self.broken = {}, "", False

    def open(self, kind: str, folder: Path, name: str, run: str = "") -> Notebook:
        self.run = run or f"run {len(self.runs)}"
        self.runs.setdefault(self.run, [])
        return self

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        if self.broken:
            raise ConnectionError("the server is\naway")
        self.runs[self.run].append((step, dict(values)))

    def picture(self, name: str, path: Path, step: int) -> None:
        self.runs[self.run].append((step, name))

    def close(self) -> None:
        self.runs[self.run].append("closed")


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    made = Notebook()
    monkeypatch.setattr(told_while_running, "open_tracker", made.open)
    return made


def epoch(stage: str, number: int) -> Epoch:
    return Epoch(stage, number, 0.1, 1.0, 2.0 - number, 0.5, 10)


def told(run: Run, until: str = "", keys: Mapping[str, str] | None = None) -> None:
    """What a call tells that passes by the stages of two rounds, a rival and the end, or is killed before."""
    size, size2 = NetworkSize({"a": 3}, 10, 20), NetworkSize({"a": 5}, 15, 30)
    score = Score(0.6, 0.5, 0.7, 0.05, 100, METRICS["accuracy"])
    trained = TrainFacts(2, 20, 1.0, 0.0, 0.5)
    stages: dict[str, Any] = {
        "round-00/train": trained,
        "round-00/export": ExportFacts(size, 1e-7),
        "round-00/analyse": AnalyseFacts(predicted_change=-0.2, realised_change=0.1, epsilon=0.3),
        "round-00/check": CheckFacts(score, None),
        "round-01/train": trained,
        "round-01/export": ExportFacts(size2, 1e-7),
        "round-01/check": CheckFacts(score, None),
        "control/rival": JudgedFacts(size2, trained, score),
        "final": FinalFacts("done", 0.0, "grown", "better"),
    }
    tracking = Tracking(run, "mlflow")
    for name, facts in stages.items():
        if name.endswith(("train", "rival")):
            history: list[Epoch] = []
            for number in (1, 2):
                history.append(epoch(name, number))
                tracking.epochs(name, history)
                if until == f"{name} {number}":
                    return  # killed: nothing is closed
        tracking.done(StageRecord(name, run.path / name, {}, facts, key=(keys or {}).get(name, "")))
    tracking.close()


def test_every_epoch_and_split_is_told_at_its_step(tmp_path: Path, notebook: Notebook) -> None:
    run = made_run(tmp_path / "run")
    (run.path / "final").mkdir()
    (run.path / "final" / "run.png").write_bytes(b"")
    told(run)
    (points,) = notebook.runs.values()
    assert points[-2:] == [(4, "run"), "closed"]
    values = points[:-2]
    assert [(step, v) for step, v in values if "growth/macs" in v] == [
        (0, {"growth/parameters": 10, "growth/macs": 20}),
        (2, {"growth/parameters": 15, "growth/macs": 30, "growth/predicted_decrease": 0.2,
             "growth/realised_decrease": -0.1, "growth/epsilon": 0.3}),
    ]  # fmt: skip
    losses = [(step, v["validation/loss"]) for step, v in values if "validation/loss" in v]
    assert losses == [(1, 1.0), (2, 0.0), (3, 1.0), (4, 0.0)]
    assert [(step, v["test/accuracy"]) for step, v in values if "test/accuracy" in v] == [(2, 0.6), (4, 0.6)]
    rival = [(step, v) for step, v in values if any(name.startswith("control/rival/") for name in v)]
    assert [step for step, _ in rival] == [1, 2, 2]
    assert rival[0][1]["control/rival/train/loss"] == 1.0
    assert rival[2][1] == {"control/rival/test/accuracy": 0.6}


@pytest.mark.parametrize("until", ["round-00/train 1", "round-01/train 1", "control/rival 2"])
def test_a_killed_run_goes_on_without_telling_twice(tmp_path: Path, notebook: Notebook, until: str) -> None:
    told(made_run(tmp_path / "whole"))
    (whole,) = notebook.runs.values()
    notebook.runs = {}
    run = made_run(tmp_path / "run")
    told(run, until=until)
    (kept,) = notebook.runs.values()
    assert kept == whole[: len(kept)] != whole
    told(run)
    assert notebook.runs == {"run 0": whole}
    told(run)  # all is told: the tracker is not even opened
    assert notebook.runs == {"run 0": whole}


def test_a_stage_that_is_done_again_with_other_inputs_begins_a_new_run(
    tmp_path: Path, notebook: Notebook
) -> None:
    run = made_run(tmp_path / "run")
    told(run)
    told(run, keys={"round-01/train": "other"})
    assert list(notebook.runs) == ["run 0", "run 1"]
    assert notebook.runs["run 0"] == notebook.runs["run 1"]


@pytest.mark.parametrize("content", ["", '"run 0"\n'])
def test_a_link_in_place_of_the_record_is_not_followed(
    tmp_path: Path, notebook: Notebook, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(tmp_path / "run")
    outside = tmp_path / "precious.jsonl"
    outside.write_text(content)
    (run.path / "mlflow").mkdir()
    (run.path / "mlflow" / "told.jsonl").symlink_to(outside)
    told(run)
    assert outside.read_text() == content
    assert "tracking with mlflow has stopped: " in capsys.readouterr().err


def test_a_damaged_record_is_told_on_from_where_it_is_whole(tmp_path: Path, notebook: Notebook) -> None:
    run = made_run(tmp_path / "run")
    told(run, until="round-01/train 1")
    record = run.path / "mlflow" / "told.jsonl"
    record.write_bytes(record.read_bytes()[:-4])
    told(run)
    (points,) = notebook.runs.values()
    again = [step for step, values in points[:-2] if "train/loss" in values]
    assert again == [1, 2, 3, 3, 4], "the point whose line was torn is told again, and no other"


def test_a_tracker_that_fails_does_not_end_the_run(
    tmp_path: Path, notebook: Notebook, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook.broken = True
    told(made_run(tmp_path / "run"))
    assert notebook.runs == {"run 0": []}
    said = capsys.readouterr().err
    assert said.count("tracking with mlflow has stopped: ConnectionError: the server is") == 1


def code_of(*args: str) -> int:
    """The exit code of the command line."""
    try:
        main(list(args))
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def test_tensorboard_is_written_while_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "tracked.toml").write_text(RECIPE)
    call = ["run", str(tmp_path / "tracked.toml"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    train, seen = _Trainer.epoch, []

    def points(name: str) -> list[tuple[int, float]]:
        folder = tmp_path / "run" / "tensorboard" / "mine"
        if not folder.exists():
            return []
        events = accumulator.EventAccumulator(str(folder))
        events.Reload()
        tags = events.Tags()["scalars"]
        return [(e.step, e.value) for e in events.Scalars(name)] if name in tags else []

    def watched(self: _Trainer, number: int) -> Epoch:
        seen.append((self.stage.name, number, len(points("train/loss"))))
        if len(seen) == 6:
            raise KeyboardInterrupt
        return train(self, number)

    monkeypatch.setattr(_Trainer, "epoch", watched)
    assert code_of(*call) == 130
    assert seen == [
        ("round-00/train", 0, 0), ("round-00/train", 1, 1), ("round-00/train", 2, 2),
        ("round-01/train", 0, 3), ("round-01/train", 1, 4), ("round-01/train", 2, 5),
    ]  # fmt: skip
    monkeypatch.setattr(_Trainer, "epoch", train)
    assert code_of(*call) == 0
    losses = points("train/loss")
    assert [step for step, _ in losses] == list(range(1, 8))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trunk = [line["train_loss"] for line in lines if line["stage"].startswith("round-")]
    assert [value for _, value in losses] == pytest.approx(trunk)
    assert [step for step, _ in points("growth/macs")] == [0, 3]
    assert [step for step, _ in points("test/accuracy")] == [3, 7]
    assert len(points("control/rival/train/loss")) > 1
    assert code_of(*call, "--track", "none") == 0
    assert points("train/loss") == losses
