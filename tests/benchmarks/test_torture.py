"""A seeded part of the torture suite: no input makes anything but a result or one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.torture.formats import FORMATS, seed_files
from benchmarks.torture.run import read_input, run_input

INPUTS = 350
pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")


def is_installed(name: str) -> bool:
    try:
        seed_files(name)
    except ImportError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_the_well_formed_input_of_every_format_is_read(name: str, tmp_path: Path) -> None:
    if not is_installed(name):
        pytest.skip("an extra is not installed")
    for path, content in seed_files(name).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    entry = read_input(name, tmp_path)
    assert (entry["outcome"], entry["fault"]) == ("read", "")


@pytest.mark.slow
def test_mutated_inputs_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    seed = int(os.environ.get("GROWPIPE_TORTURE_SEED", "0"))
    entries = [run_input(seed, number, tmp_path / str(number)) for number in range(INPUTS)]
    # Time depends on the machine: it is measured in benchmarks, and a hang ends the test.
    faults = [e for e in entries if e["fault"] and not e["fault"].startswith(("slow", "memory"))]
    assert faults == []
    assert {entry["outcome"] for entry in entries} == {"read", "refused"}


def test_an_input_of_a_number_is_always_the_same(tmp_path: Path) -> None:
    for number in (3, 17, 40):
        entries = [run_input(1, number, tmp_path / f"{number}-{again}") for again in range(2)]
        assert entries[0]["outcome"] == entries[1]["outcome"]
        contents = [
            {path.name: path.read_bytes() for path in sorted((tmp_path / f"{number}-{again}").rglob("*.*"))}
            for again in range(2)
        ]
        assert contents[0].keys() == contents[1].keys()
