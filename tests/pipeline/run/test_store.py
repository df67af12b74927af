"""The run directory: whole stages or none, skipped when nothing changed, held by one process."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from growpipe.graph_ops.errors import UsageError
from growpipe.run.recipe import Recipe
from growpipe.run.store import Run, Stage

RECIPE = Recipe(name="mine", model="net.py:build", data="data.py:loaders")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", RECIPE, tmp_path, seed=3, device="cpu")


@dataclass(frozen=True)
class Inner:
    low: float


@dataclass(frozen=True)
class Facts:
    epochs: int
    loss: float | None = None
    inner: Inner | None = None


TRAIN = Stage("round-00/train", Facts)


def produce(folder: Path) -> Facts:
    (folder / "deep").mkdir()
    (folder / "deep" / "a.txt").write_text("whole")
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    return Facts(1, 0.5, Inner(0.25))


def test_a_run_opens_as_it_was_created(run: Run, tmp_path: Path) -> None:
    opened = Run.open(run.path)
    assert (opened.recipe, opened.seed, opened.device) == (RECIPE, 3, "cpu")
    assert opened.folder is not None
    assert opened.folder.resolve() == tmp_path.resolve()
    assert str(tmp_path) not in (run.path / "run.json").read_text()


def test_a_stage_is_done_once_and_again_when_its_inputs_change(run: Run) -> None:
    first = run.stage(TRAIN, produce, config={"epochs": 1}, inputs={})
    assert not first.skipped
    assert first.inputs("deep/a.txt").keys() == {"round-00/train/deep/a.txt"}
    assert run.stage(TRAIN, produce, config={"epochs": 1}, inputs={}).skipped
    assert not run.stage(TRAIN, produce, config={"epochs": 2}, inputs={}).skipped
    assert not run.stage(TRAIN, produce, config={"epochs": 2}, inputs={"x": "1"}).skipped
    assert (run.path / "metrics.jsonl").read_text() == '{"epoch": 1}\n'


def test_a_damaged_stage_is_done_again(run: Run) -> None:
    record = run.stage(TRAIN, produce, config={}, inputs={})
    (record.folder / "deep" / "a.txt").write_text("half")
    again = run.stage(TRAIN, produce, config={}, inputs={})
    assert not again.skipped
    assert (again.folder / "deep" / "a.txt").read_text() == "whole"


def test_a_stage_that_fails_leaves_nothing_and_keeps_what_was_there(run: Run) -> None:
    def fail(folder: Path) -> Facts:
        (folder / "half.txt").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run.stage(TRAIN, fail, config={}, inputs={})
    assert run.published(TRAIN) is None
    assert not list((run.path / "round-00").iterdir())
    run.stage(TRAIN, produce, config={}, inputs={})
    with pytest.raises(OSError, match="No space left"):
        run.stage(TRAIN, fail, config={"epochs": 9}, inputs={})
    assert (run.path / "round-00/train/deep/a.txt").read_text() == "whole"


def test_leftovers_of_a_killed_process_are_removed(run: Run) -> None:
    leftover = run.path / "round-00" / ".growpipe-x"
    leftover.mkdir(parents=True)
    with run.locked():
        assert not leftover.exists()


def test_one_process_at_a_time(run: Run) -> None:
    holder = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(run.path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UsageError, match="another growpipe is working"), run.locked():
            pass
        other.kill()
    with run.locked(), run.locked():  # the command takes the lock before the run does
        pass


def test_directories_that_are_no_run_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run; start one with"):
        Run.open(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        Run.create(tmp_path / "file", RECIPE, None, seed=0, device="cpu")
    with pytest.raises(UsageError, match="not empty and holds no run"):
        Run.create(tmp_path, RECIPE, None, seed=0, device="cpu")
    other = RECIPE.model_copy(update={"name": "other"})
    with pytest.raises(UsageError, match=r"another recipe \(name is 'mine' there, 'other' here\)"):
        Run.create(run.path, other, None, seed=0, device="cpu")
    (run.path / "run.json").write_text("{")
    with pytest.raises(UsageError, match=r"run\.json cannot be read: it is not JSON"):
        Run.open(run.path)


def test_facts_come_back_as_they_were_written(run: Run) -> None:
    first = run.stage(TRAIN, produce, config={}, inputs={})
    again = run.stage(TRAIN, produce, config={}, inputs={})
    published = run.published(TRAIN)
    assert published is not None
    assert first.facts == again.facts == published.facts == Facts(1, 0.5, Inner(0.25))
    assert run.published(Stage("round-01/train", Facts)) is None


def test_facts_of_another_version_are_refused_by_readers_and_done_again(run: Run) -> None:
    record = run.stage(TRAIN, produce, config={}, inputs={})
    manifest = record.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"epochs": 1,', '"epochs": "many",'))
    with pytest.raises(
        UsageError, match=r"round-00/train reported is damaged, or of another version.*'epochs'.*; remove"
    ) as caught:
        run.published(TRAIN)
    assert "\n" not in str(caught.value)
    assert not run.stage(TRAIN, produce, config={}, inputs={}).skipped


def test_the_store_loads_no_torch() -> None:
    code = "import sys, growpipe.run.store; print('torch' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "False"
