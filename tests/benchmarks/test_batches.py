"""Inputs in batches: what is lost with a process, what a journal counts, and what is over its time."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.common import batches
from benchmarks.common.batches import read_journal, run_batches
from benchmarks.common.child import run_child

pytestmark = pytest.mark.slow

PROGRAM = """
import json, os, signal, sys, time
begin, end = map(int, sys.argv[2:])
for number in range(begin, end):
    {deed}
    print(json.dumps({{"number": number, "outcome": "read", "fault": "", "pid": os.getpid()}}), flush=True)
"""


@pytest.fixture
def run(tmp_path):
    def run(deed, count=6):
        command = [sys.executable, "-c", PROGRAM.format(deed=deed)]
        return run_batches(command, tmp_path / "journal.jsonl", range(count), megabytes=4096)

    return run


def faults(entries):
    return {entry["number"]: entry["fault"] for entry in entries if entry["fault"]}


def test_a_process_that_dies_costs_one_input(run):
    entries = run("number == 3 and os.kill(os.getpid(), signal.SIGSEGV)")
    assert [entry["number"] for entry in entries] == list(range(6))
    assert faults(entries) == {3: "crash: the process ended with -11"}


def test_what_a_library_prints_is_no_entry(run):
    entries = run("print('free(): invalid pointer')")
    assert [entry["number"] for entry in entries] == list(range(6))
    assert faults(entries) == {}


def test_a_process_may_end_after_an_input(run):
    entries = run("number > begin and sys.exit(0)")
    assert faults(entries) == {}
    assert len({entry["pid"] for entry in entries}) == 6


def test_a_process_that_ends_before_an_input_is_a_fault(run):
    assert faults(run("sys.exit(0)", count=2)) == dict.fromkeys(range(2), "crash: the process ended with 0")


def test_a_process_that_computes_for_too_long_is_a_hang(run, monkeypatch):
    for name in ("SECONDS", "_GRACE", "_START"):
        monkeypatch.setattr(batches, name, 0.1)
    assert faults(run("while number == 1: pass", count=3)) == {1: "hang: the process did not answer"}


def test_a_process_that_waits_is_no_hang(run, monkeypatch):
    for name in ("SECONDS", "_GRACE", "_START"):
        monkeypatch.setattr(batches, name, 0.1)
    assert faults(run("number == 1 and time.sleep(2)", count=3)) == {}


def test_the_journal_goes_on_over_revisions_and_repeats_what_failed(run, monkeypatch, tmp_path):
    monkeypatch.setattr(batches.record, "code_hash", lambda: "old")
    assert faults(run("number == 2 and os.abort()", count=4)).keys() == {2}
    with (tmp_path / "journal.jsonl").open("a") as journal:
        journal.write(json.dumps({"number": 5})[:-3])  # a kill cuts off a line
    monkeypatch.setattr(batches.record, "code_hash", lambda: "new")
    entries = run("")
    assert faults(entries) == {}
    assert [entry["code"] for entry in entries] == ["old", "old", "new", "old", "new", "new"]
    assert read_journal(tmp_path / "journal.jsonl") == {entry["number"]: entry for entry in entries}


def test_a_command_is_ended_after_its_processor_time_and_not_while_it_waits():
    waits = run_child(
        [sys.executable, "-c", "import time; time.sleep(2.5); print('done')"], seconds=1, megabytes=4096
    )
    assert (waits.code, waits.stdout, waits.timed_out) == (0, "done\n", False)
    computes = run_child([sys.executable, "-c", "while True: pass"], seconds=0.5, megabytes=4096)
    assert computes.timed_out
    assert computes.signal is None
    assert computes.code == -9
