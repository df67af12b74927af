"""Signals end a command with one line and the exit code of a shell; the lock comes before torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from growpipe.run.recipe import Recipe
from growpipe.run.store import Run
from growpipe.signals import Stopped, stoppable

RECIPE = 'name = "mine"\nmodel = "net.py:build"\ndata = "net.py:loaders"\ntask = "regression"\n'
NET = """import pathlib, subprocess, sys, time
def build():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        pathlib.Path(__file__).with_name("started").touch()
        time.sleep(60)
    finally:
        child.kill()
        child.wait()
        pathlib.Path(__file__).with_name("ended").touch()
def loaders(batch_size, seed):
    from growpipe.data import Loaders
    return Loaders([], [], [])
"""


def launch(folder: Path, *ignored: int) -> subprocess.Popen[str]:
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "net.py").write_text(NET)

    def ignore() -> None:
        # What started the tests may ignore signals itself, as nohup does; a child would inherit that.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    command = [sys.executable, "-m", "growpipe", "run", "recipe.toml", "--out", "run"]
    process = subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=ignore
    )
    wait_for(folder / "started", process)
    return process


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    while not file.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_run_with_one_line(tmp_path: Path, name: str) -> None:
    number = signal.Signals[name]
    with launch(tmp_path) as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    lines = [line for line in errors.splitlines() if line]
    assert lines[-1] == (
        f"growpipe: stopped by {name}; nothing is half-written; to go on, run the same command again"
    )
    assert process.returncode == 128 + number
    assert (tmp_path / "ended").exists()
    files = sorted(path.name for path in (tmp_path / "run").rglob("*") if not path.is_dir())
    assert files == [".lock", "run.json"]
    assert not list((tmp_path / "run").rglob(".growpipe-*"))
    with Run.open(tmp_path / "run").locked():
        pass  # the lock is free


@pytest.mark.slow
def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    with launch(tmp_path, signal.SIGHUP) as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


def test_the_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(Stopped) as stopped, stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.exit_code == 143
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


@pytest.mark.parametrize("command", ["run recipe.toml --out run", "export run", "check-round run"])
def test_a_directory_in_use_is_told_before_torch_is_imported(tmp_path: Path, command: str) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    recipe = Recipe(name="mine", model="net.py:build", data="net.py:loaders", task="regression")
    run = Run.create(tmp_path / "run", recipe, tmp_path, seed=0, device="cpu")
    script = (
        "import sys\nfrom growpipe.cli import main\ntry:\n    main(sys.argv[1:])\n"
        "finally:\n    print('torch' in sys.modules)"
    )
    with run.locked():
        done = subprocess.run(
            [sys.executable, "-c", script, *command.split()],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "another growpipe is working on run" in done.stderr
    assert done.stdout.strip() == "False"
