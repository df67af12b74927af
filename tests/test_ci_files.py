"""The GitHub action, the GitLab job, the pre-commit hook and the examples of the documentation work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from growpipe.checks.policy import Policy
from growpipe.checks.registry import all_checks
from tests.helpers.good_models import cnn, save

ROOT = Path(__file__).parents[1]


def loaded(file: str) -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))


def shell(script: str, folder: Path, program: str = "bash", **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **variables, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    flags = ["-e", "-o", "pipefail"] if program == "bash" else ["-e"]
    return subprocess.run(
        [program, *flags, "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def action_variables(folder: Path, **inputs: str) -> tuple[str, dict[str, str]]:
    """The script of the action's step and its environment, as GitHub would fill it in."""
    action = loaded("action.yml")
    values = {name: str(entry.get("default", "")) for name, entry in action["inputs"].items()} | inputs
    step = next(s for s in action["runs"]["steps"] if s.get("id") == "check")
    variables = {}
    for name, expression in step["env"].items():
        match = re.fullmatch(r"\$\{\{ inputs\.([a-z-]+) \}\}", expression)
        assert match is not None, expression
        variables[name] = values[match.group(1)]
    variables["GITHUB_OUTPUT"] = str(folder / "output")
    variables["GITHUB_STEP_SUMMARY"] = str(folder / "summary.md")
    return step["run"], variables


@pytest.mark.slow
def test_the_action_passes_a_good_model(tmp_path: Path) -> None:
    save(cnn(), tmp_path)
    arguments = "--only\nsafety\n--only\nstructure/checker"
    script, variables = action_variables(tmp_path, model="model.onnx", args=arguments, junit="check.xml")
    done = shell(script, tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output").read_text() == "exit-code=0\n"
    assert json.loads((tmp_path / "growpipe-check.json").read_text())["exit_code"] == 0
    assert ET.parse(tmp_path / "check.xml").getroot().tag == "testsuites"
    assert "growpipe check: passed" in (tmp_path / "summary.md").read_text()


@pytest.mark.slow
def test_the_action_fails_and_annotates(tmp_path: Path) -> None:
    (tmp_path / "bad $(touch pwned).onnx").write_text("nothing")
    script, variables = action_variables(tmp_path, model="bad $(touch pwned).onnx\n")
    done = shell(script, tmp_path, **variables)
    assert done.returncode == 4
    assert "::error file=bad $(touch pwned).onnx,title=safety/load unsafe::" in done.stdout
    assert (tmp_path / "output").read_text() == "exit-code=4\n"
    assert not (tmp_path / "pwned").exists()


def test_the_action_hands_every_input_to_its_script() -> None:
    action = loaded("action.yml")
    text = "".join(str(step.get("env", "")) for step in action["runs"]["steps"]) + str(action["outputs"])
    for name in action["inputs"]:
        assert f"inputs.{name}" in text, name
    for step in action["runs"]["steps"]:
        assert "${{" not in step["run"]


@pytest.mark.slow
def test_the_gitlab_job(tmp_path: Path) -> None:
    job = loaded("docs/ci/gitlab.yml")["growpipe-check"]
    save(cnn(), tmp_path)
    (tmp_path / "policy.toml").write_text('only = ["structure/checker"]\n')
    variables = {**job["variables"], "POLICY": "policy.toml"}
    done = shell("\n".join(job["script"]), tmp_path, "sh", **variables)
    assert done.returncode == 0, done.stderr
    report = tmp_path / job["artifacts"]["reports"]["junit"]
    assert ET.parse(report).getroot().attrib["tests"] == "2"
    assert (tmp_path / job["artifacts"]["paths"][0]).is_file()
    (tmp_path / "model.onnx").write_text("nothing")
    assert shell("\n".join(job["script"]), tmp_path, "sh", **variables).returncode == 4


def test_the_pre_commit_hook() -> None:
    (hook,) = loaded(".pre-commit-hooks.yaml")
    assert hook["entry"] == "growpipe check"
    assert re.search(hook["files"], "models/net.onnx")
    assert not re.search(hook["files"], "models/net.onnx.data")


def test_the_documented_policy_is_a_policy() -> None:
    text = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    policy = Policy.model_validate(tomllib.loads(block))
    assert policy.latency.max_ratio == 1.05
    assert policy.waivers[0].check in {c.id for c in all_checks()}
    named = set(re.findall(r"`((?:safety|structure|numerics|accuracy|cost|latency|provider)/\w+)`", text))
    assert named <= {c.id for c in all_checks()}
    examples = re.findall(r"```yaml\n(.*?)```", text, re.S)
    yaml = pytest.importorskip("yaml")
    inputs = set(loaded("action.yml")["inputs"])
    steps = yaml.safe_load(examples[0])["jobs"]["export"]["steps"]
    assert set(steps[2]["with"]) <= inputs


def test_the_workflow_runs_the_ci_script_on_files_that_are_there() -> None:
    job = loaded(".github/workflows/ci.yml")["jobs"]["tests"]
    assert job["steps"][-1]["run"] == ".ci/run"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    entries = job["strategy"]["matrix"]["include"]
    assert {(e["python"], e["constraints"]) for e in entries} == {
        ("3.11", "constraints.txt"),
        ("3.13", "constraints.txt"),
        ("3.11", "constraints-lowest.txt"),
    }
    assert all((ROOT / entry["constraints"]).is_file() for entry in entries)


@pytest.mark.parametrize(("subject", "code"), [("a" * 72, 0), ("a" * 73, 1)])
def test_the_repository_s_own_hook_bounds_the_subject(tmp_path: Path, subject: str, code: int) -> None:
    (repository,) = loaded(".pre-commit-config.yaml")["repos"]
    (hook,) = (hook for hook in repository["hooks"] if hook["id"] == "subject")
    (tmp_path / "message").write_text(f"{subject}\n\nwhy it was done, at any length: {'b' * 80}\n")
    assert shell(f"{hook['entry']} message", tmp_path).returncode == code
