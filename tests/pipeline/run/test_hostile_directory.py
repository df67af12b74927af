"""Run directories of strangers, or damaged ones: one line, in bounded time, and no file outside is read."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.torture.formats import made_run, trained
from growpipe.cli import cli
from growpipe.graph_ops.errors import GrowpipeError, UsageError
from growpipe.run.picture import draw_run
from growpipe.run.recipe import Recipe
from growpipe.run.stages.names import TRAIN, round_stage
from growpipe.run.store import Run
from growpipe.run.summary import rows_of

pytestmark = pytest.mark.slow

STAGES = ("train", "export", "analyse", "check")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return made_run(tmp_path / "run")


def report(path: Path) -> tuple[int, str]:
    """Exit code and message of ``growpipe report``; anything but a GrowpipeError is raised."""
    done = CliRunner().invoke(cli, ["report", str(path)], standalone_mode=False)
    if done.exception is None:
        return 0, done.output
    if not isinstance(done.exception, GrowpipeError):
        raise done.exception
    assert len(str(done.exception).splitlines()) == 1
    return done.exception.exit_code, str(done.exception)


def test_the_run_as_it_is_reports(run: Run) -> None:
    code, output = report(run.path)
    assert code == 0
    assert "1,000" in output


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "name", ["run.json", "round-00/check/manifest.json", "round-00/export/manifest.json"]
)
@pytest.mark.parametrize(
    "kind", ["pipe", "device", "link", "folder", "large", "deep", "digits", "list", "surrogate"]
)
def test_report_ends_with_one_line(run: Run, tmp_path: Path, name: str, kind: str) -> None:
    file = run.path / name
    content = file.read_text()
    file.unlink()
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "device":
            file.symlink_to("/dev/zero")
        case "link":
            (tmp_path / "other").write_text(content)
            file.symlink_to(tmp_path / "other")
        case "folder":
            file.mkdir()
        case "large":
            with file.open("wb") as sparse:
                sparse.truncate(1 << 40)
        case "deep":
            file.write_text("[" * 100_000)
        case "digits":
            file.write_text(content.replace("1", "9" * 5000))
        case "list":
            file.write_text("[]")
        case "surrogate":
            file.write_text(content.replace("mine", r"\ud800").replace("parameters", r"\udc00"))
    code, message = report(run.path)
    if kind == "surrogate" and code == 0:
        return  # neither word is in this file
    assert code == 2
    assert str(file) in message


def test_a_stage_that_is_a_link_to_elsewhere_is_not_read(run: Run, tmp_path: Path) -> None:
    (run.path / "round-00").rename(tmp_path / "elsewhere")
    (run.path / "round-00").symlink_to(tmp_path / "elsewhere")
    code, message = report(run.path)
    assert code == 2
    assert "'round-00' is a symbolic link, which is not followed there" in message


ODD: list[Any] = [None, [], {}, "text", -1, 1.5, True, {"a": []}, float("inf")]


def test_facts_of_any_type_end_with_one_line(run: Run) -> None:
    generator = random.Random(0)
    codes = set()
    for _ in range(150):
        stage = generator.choice(STAGES)
        manifest = run.path / "round-00" / stage / "manifest.json"
        whole = manifest.read_text()
        document = json.loads(whole)
        part = document["facts"]
        while True:
            key = generator.choice(list(part))
            if isinstance(part[key], dict) and part[key] and generator.random() < 0.5:
                part = part[key]
                continue
            break
        if generator.random() < 0.3:
            del part[key]
        else:
            part[key] = generator.choice(ODD)
        manifest.write_text(json.dumps(document))
        codes.add(report(run.path)[0])
        manifest.write_text(whole)
    assert codes <= {0, 2}


@pytest.mark.parametrize(
    "names",
    [
        ["../../outside"],
        ["/etc/hostname"],
        ["../run.json"],
        ["/dev/zero"],
        ["pipe"],
        ["metrics.jsonl/x"],
        [""],
    ],
)
@pytest.mark.timeout(20)
def test_outputs_outside_of_the_stage_are_never_read(run: Run, tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "outside").write_text("secret")
    os.mkfifo(run.path / "round-00" / "train" / "pipe")
    manifest = run.path / "round-00" / "train" / "manifest.json"
    document = json.loads(manifest.read_text())
    document["outputs"] |= {name: "0" * 64 for name in names}
    manifest.write_text(json.dumps(document))

    train = round_stage(0, TRAIN)
    assert not run.stage(train, lambda folder: trained(), config={}, inputs={}).skipped


def test_a_lock_that_is_a_link_is_neither_followed_nor_emptied(run: Run, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("content")
    lock = run.path / ".lock"
    for target in (tmp_path / "precious", tmp_path / "absent", Path("/dev/zero"), Path("run.json")):
        lock.unlink(missing_ok=True)
        lock.symlink_to(target)
        with pytest.raises(UsageError, match=r"\.lock is a symbolic link; remove it"), run.locked():
            pass
    assert (tmp_path / "precious").read_text() == "content"
    assert not (tmp_path / "absent").exists()
    lock.unlink()
    os.mkfifo(lock)
    with pytest.raises(UsageError, match="not a regular file"), run.locked():
        pass
    lock.unlink()
    lock.mkdir()
    with pytest.raises(UsageError, match="is a folder"), run.locked():
        pass
    lock.rmdir()
    lock.write_text("not ours")
    with run.locked():
        pass
    assert lock.read_text() == "not ours"


@pytest.mark.parametrize("target", ["precious", "absent", "/dev/null"])
def test_metrics_and_pages_are_not_written_through_links(run: Run, tmp_path: Path, target: str) -> None:
    (tmp_path / "precious").write_text("content")
    (run.path / "metrics.jsonl").unlink()
    (run.path / "metrics.jsonl").symlink_to(tmp_path / target)
    with pytest.raises(UsageError, match=r"metrics\.jsonl is a link"), run.locked():
        pass
    (run.path / "report.html").symlink_to(tmp_path / target)
    done = CliRunner().invoke(cli, ["report", str(run.path), "--html"], standalone_mode=False)
    assert isinstance(done.exception, UsageError)
    assert "report.html is a link" in str(done.exception)
    assert (tmp_path / "precious").read_text() == "content"
    assert not (tmp_path / "absent").exists()


def test_a_directory_whose_creation_was_killed_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "run" / ".growpipe-0123").mkdir(parents=True)
    (tmp_path / "run" / ".growpipe-0123" / "run.json").write_text("{")
    (tmp_path / "run" / ".lock").touch()
    recipe = Recipe(name="mine", model="net.py:build", data="data.py:loaders")
    run = Run.create(tmp_path / "run", recipe, None, seed=0, device="cpu")
    assert sorted(entry.name for entry in run.path.iterdir()) == [".lock", "run.json"]


def test_damaged_lines_of_the_metrics_are_left_out(run: Run, tmp_path: Path) -> None:
    whole = (run.path / "metrics.jsonl").read_text()
    assert len(whole.splitlines()) == 8
    for damage in ("{", "", "[1]\n" * 3, "null", whole[: len(whole) // 2]):
        (run.path / "metrics.jsonl").write_text(damage)
        with run.locked():
            assert (run.path / "metrics.jsonl").read_text() == whole
    part = run.path / "round-00" / "train" / "metrics.jsonl"
    for line in ('{"validation_loss": 0.', "[" * 10_000, "9" * 5000, "3"):
        part.write_text(f'{{"validation_loss": 1.0}}\n{line}\n')
        with run.locked():
            assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 7
        draw_run(rows_of(run), run.path, tmp_path / "a.png", run.recipe.quality)
