"""Mistakes in documents and options that people write: one line that names the key or the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from growpipe.checks.baseline import load_baseline
from growpipe.checks.policy import load_policy
from growpipe.checks.runner import run_checks
from growpipe.graph_ops.errors import UsageError
from growpipe.run.recipe import load_recipe

HEAD = 'name = "m"\nmodel = "a.py:b"\ndata = "a.py:c"\n'
TABLE = "[budget.table]\nlimit = 5.0\n[[budget.table.terms]]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TABLE + 'groups = ["a"]\nrats = 1.0', r"'budget.table.terms.0.rats'; did you mean 'rate'\?"),
        (
            TABLE + 'groups = ["a"]\nrate = 1\n[[budget.table.terms]]\ngrups = ["a"]',
            "terms.1.grups'; did you mean",
        ),
        (TABLE.replace("[[budget.table.terms]]", "terms = 3"), "wrong at 'budget.table.terms'"),
        ("[budget.table.terms]\nrate = 1.0", "wrong at 'budget.table.terms'"),
        ("budget = 3", "wrong at 'budget'"),
        ("train = []", "wrong at 'train'"),
        ("[growth]\nmax_widths = [1]", "wrong at 'growth.max_widths'"),
        ("inputs = {a = 1}", "wrong at 'inputs'"),
    ],
)
def test_mistakes_in_a_recipe(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(HEAD + text)
    with pytest.raises(UsageError, match=message) as told:
        load_recipe(str(tmp_path / "r.toml"))
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tool = 3", "tool is int, not a table"),
        ('[tool]\ngrowpipe = "x"', "tool.growpipe is str, not a table"),
        ("[tool.growpipe]\ncheck = [1]", "tool.growpipe.check is list, not a table"),
        ("[[tool.growpipe.check]]", "tool.growpipe.check is list, not a table"),
    ],
)
def test_mistakes_in_a_pyproject(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(UsageError, match=f"pyproject.toml cannot be read: {message}"):
        load_policy(tmp_path / "pyproject.toml")


WAIVER = '[[waivers]]\ncheck = "cost/macs"\nreason = "x"\nexpires = 2030-01-01\n'


@pytest.mark.parametrize(
    "setting",
    [
        "waivers.check=1",
        "waivers.0.check='x'",
        "numerics.batch_sizes.0=3",
        "only.area='x'",
        "=3",
        "numerics=[1]",
    ],
)
def test_settings_that_do_not_fit_the_policy(tmp_path: Path, setting: str) -> None:
    (tmp_path / "p.toml").write_text(WAIVER + "[numerics]\nbatch_sizes = [1]\n")
    with pytest.raises(UsageError) as told:
        load_policy(tmp_path / "p.toml", [setting])
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.timeout(20)
def test_names_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    for name in ("", ".", "absent", "pipe", "/dev/zero"):
        with pytest.raises(UsageError, match="cannot be read"):
            load_policy(name)
        with pytest.raises(UsageError, match="cannot be read"):
            load_baseline(name)
        with pytest.raises(UsageError, match="cannot be read"):
            run_checks("model.onnx", data=[name])
        with pytest.raises(UsageError, match=r"cannot be read|there is no recipe"):
            load_recipe(name)
    with pytest.raises(UsageError, match="the name of the model is empty"):
        run_checks("")
