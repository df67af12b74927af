"""`inspect`, `plan`, `grow`, `deploy`, `check` and `report` import no code that a file or a folder names."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.torture.formats import made_run
from growpipe.graph_ops.files.load_save import save_model
from tests.helpers.text_models import text_model

TRAP = "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\nraise SystemExit(99)\n"

# Names that Python, its libraries or a recipe could import from the folder that one stands in.
NAMES = (
    "net",
    "data",
    "torch",
    "onnx",
    "numpy",
    "growpipe",
    "json",
    "sitecustomize",
    "usercustomize",
    "h5py",
    "click",
)

COMMANDS = {
    "inspect": "inspect model.onnx",
    "plan": "plan model.onnx --random -o plan",
    "grow": "grow model.onnx --plan plan -o grown.onnx",
    "deploy": "deploy model.onnx -o bundle",
    "check": "check model.onnx --policy policy.toml --skip latency",
    "report": "report run",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a stranger's, whose every file could be imported."""
    place = tmp_path_factory.mktemp("stranger")
    weights = {"a": np.ones((2, 3), np.float32), "b": np.ones((3, 1), np.float32)}
    model = text_model(
        "h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)", "float[N,2] x", "float[N,1] y", **weights
    )
    model.metadata_props["growpipe.code"] = "net.py:build"
    save_model(model, place / "model.onnx")
    (place / "policy.toml").write_text("[limits]\nseconds = 60\n")
    made_run(place / "run")
    for where in (place, place / "run", place / "run" / "round-00", place / "run" / "round-00" / "train"):
        for name in NAMES:
            (where / f"{name}.py").write_text(TRAP)
    shutil.copy(place / "net.py", place / "run" / "round-00" / "train" / "libcustom.so")
    return place


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_of_a_strangers_folder_is_imported(folder: Path, command: str) -> None:
    script = Path(sys.executable).with_name("growpipe")
    done = subprocess.run(
        [sys.executable, str(script), *COMMANDS[command].split()],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.rglob("*.ran"))


@pytest.mark.slow
def test_a_command_that_runs_code_does_so(folder: Path) -> None:
    """The trap works: this is what the others must not do."""
    script = Path(sys.executable).with_name("growpipe")
    run = folder / "run"
    done = subprocess.run(
        [sys.executable, str(script), "train", str(run)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    ran = {path.name for path in folder.rglob("*.ran")}
    assert ran
    assert ran <= {"net.ran", "data.ran"}
