"""A disk that takes no more: one line, exit code 3, what was there stays, nothing half-written is left."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.torture.formats import made_run
from growpipe.graph_ops.files.load_save import save_model
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.data_free import random_plan
from tests.helpers.text_models import two_layers

pytestmark = pytest.mark.slow

ROOM = 4096  # bytes that a file may have

COMMANDS = {
    "plan": "plan model.onnx --random --epsilon 0.1 -o plan",
    "grow": "grow model.onnx --plan plan --no-verify -o grown.onnx",
    "deploy": "deploy model.onnx -o bundle",
    "diff": "diff model.onnx other.onnx --html page.html",
    "check": "check model.onnx other.onnx --only cost --only structure --only safety --format json=report",
}


def limit() -> None:
    """Files cannot grow beyond `ROOM`, as if the disk were full then."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = two_layers(20, 90)
    for name in ("model.onnx", "other.onnx"):
        save_model(model, tmp_path / name)
    random_plan(find_channel_groups(model), model, growth=0.5, epsilon=0.1).save(tmp_path / "plan")
    for name in ("grown.onnx", "page.html", "report"):
        (tmp_path / name).write_text("an earlier one")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line_and_exit_code_3(folder: Path, command: str) -> None:
    before = contents(folder)
    done = subprocess.run(
        [sys.executable, "-m", "growpipe", *COMMANDS[command].split()],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    written = COMMANDS[command].replace("=", " ").split()[-1]
    assert "File too large" in line
    assert str(folder / written) in line
    assert contents(folder) == before
    assert not list(folder.rglob(".*"))


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        made_run(tmp_path / "run")
        model = two_layers(2)
        save_model(model, tmp_path / "run" / "model.onnx", external_data=True)
        random_plan(find_channel_groups(model), model, growth=0.5).save(tmp_path / "run" / "plan")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*")]
    assert {"plan.safetensors", "model.onnx", "manifest.json", "run.json", ".lock"} <= {f.name for f in files}
    for path in files:
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
