"""Help and usage errors of every command come at once: they import none of the libraries that take time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from growpipe.cli import COMMANDS, SECTIONS

pytestmark = pytest.mark.slow

HEAVY = (
    "onnx",
    "onnx_ir",
    "torch",
    "numpy",
    "scipy",
    "onnxruntime",
    "growpipe.analyser",
    "growpipe.graph_ops.axes",
)
NOT_FOR_HELP = (*HEAVY, "rich", "pydantic", "importlib.metadata")

SCRIPT = """
import json, sys
from growpipe.cli import main
try:
    main(json.loads(sys.argv[1]))
except SystemExit as end:
    code = end.code
print(json.dumps([code, sorted(set(json.loads(sys.argv[2])) & set(sys.modules))]))
"""

USAGE_ERRORS = [
    ["nonsense"],
    ["--nonsense"],
    *([name, "--nonsense"] for name in COMMANDS),
    *([name] for name in COMMANDS if name != "check"),
    ["check"],
    ["check", "model.onnx", "--format", "xml"],
    ["check", "model.onnx", "--format", "json", "--format", "junit"],
    ["check", "model.onnx", "--device", "tpu"],
    ["check", "a.onnx", "b.onnx", "--write-baseline", "x.json"],
    ["check", "model.onnx", "--set", "latency.max_ration=2"],
    ["check", "model.onnx", "--policy", "nowhere.toml"],
    ["grow", "model.onnx", "--plan", "plan", "-o", "model.onnx"],
    ["plan", "model.onnx", "-o", "plan"],
    ["plan", "model.onnx", "-o", "plan", "--net2net", "--epsilon", "0.1"],
    ["plan", "model.onnx", "-o", "plan", "--random", "--seed", "-1"],
    ["run", "digitz", "--out", "nowhere"],
    ["run", "nowhere.toml", "--out", "nowhere"],
    ["run", "--out", "nowhere", "--rounds", "-1"],
    ["run", "--out", "nowhere", "--device", "tpu"],
    ["train", "nowhere", "--recipe", "digitz"],
    *([name, "nowhere"] for name in ("train", "export", "analyse", "rewrite", "check-round", "report")),
]


def call(arguments: list[str], unwanted: tuple[str, ...]) -> tuple[int, list[str], str]:
    """Exit code, the unwanted modules that were imported, and what was printed."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(arguments), json.dumps(unwanted)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    code, imported = json.loads(last)
    return code, imported, "\n".join(printed) + done.stderr


@pytest.mark.parametrize(
    "command", [[], *([name] for name in COMMANDS)], ids=lambda c: " ".join(c) or "growpipe"
)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code, imported, printed = call([*command, "--help"], NOT_FOR_HELP)
    assert code == 0
    assert imported == []
    assert printed.startswith("Usage: ")


@pytest.mark.parametrize("arguments", USAGE_ERRORS, ids=" ".join)
def test_a_usage_error_imports_nothing_heavy(arguments: list[str]) -> None:
    code, imported, printed = call(arguments, HEAVY)
    assert code == 2, printed
    assert imported == []


def test_the_help_has_a_section_for_files_and_one_for_run_directories() -> None:
    _, _, printed = call(["--help"], ())
    places = [printed.index(f"\n{heading}:\n") for heading in SECTIONS]
    for heading, place, end in zip(SECTIONS, places, [*places[1:], None], strict=True):
        listed = [line.split()[0] for line in printed[place:end].splitlines()[2:] if line.strip()]
        assert listed == list(SECTIONS[heading])
    assert list(SECTIONS["Commands for an ONNX file"]) == [
        "inspect",
        "plan",
        "grow",
        "diff",
        "check",
        "deploy",
    ]
    assert "..." not in printed.split("[ARGS]...")[1]  # every command's line is whole
