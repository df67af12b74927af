"""Many numbered inputs in batches, each batch in a process of its own, with a journal to go on from."""

from __future__ import annotations

import json
import selectors
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import record
from benchmarks.common.child import limit_memory
from benchmarks.common.processor_time import processor_seconds
from benchmarks.common.watch import SECONDS, WAITING_SECONDS

__all__ = ["Entry", "read_journal", "run_batches"]

BATCH = 500
_GRACE = 20.0
"""Seconds of processor time that a process may be silent beyond the limit of one input before it is ended."""

_START = 120.0
"""Seconds of processor time that a process may take to import what it needs."""

Entry = dict[str, Any]


def run_batches(command: Sequence[str], journal: Path, numbers: range, *, megabytes: int) -> list[Entry]:
    """Run what the journal does not have yet; return the entries of all numbers, in order.

    An input that ran on another revision of growpipe counts; if it showed a fault there it runs again.

    Args:
        command: with ``--batch FIRST END`` it runs these inputs and prints one JSON line for each, with
            ``number``, ``outcome``, ``fault``, ``seconds`` and ``peak_mb``. It may end after any of them.
        journal: one line for each input that has run, with the revision as ``code``; a kill may cut off the
            last one.
        numbers: the inputs.
        megabytes: the address space that a process may take.
    """
    code = record.code_hash()
    done = {n: e for n, e in read_journal(journal).items() if not e["fault"] or e["code"] == code}
    if journal.exists() and not journal.read_bytes().endswith(b"\n"):
        with journal.open("a") as file:
            file.write("\n")
    started, shown, before = time.monotonic(), 0.0, len(done)
    for begin in range(numbers.start, numbers.stop, BATCH):
        waiting = [n for n in range(begin, min(begin + BATCH, numbers.stop)) if n not in done]
        while waiting:
            for entry in _batch(command, *_first_run(waiting), megabytes):
                done[entry["number"]] = entry | {"code": code}
                with journal.open("a") as file:
                    file.write(json.dumps(done[entry["number"]]) + "\n")
                if entry["fault"]:
                    print(f"  {entry['number']} {entry['fault']}", flush=True)
            waiting = [n for n in waiting if n not in done]
        elapsed = time.monotonic() - started
        if elapsed - shown > 15 or begin + BATCH >= numbers.stop:
            shown, fresh = elapsed, len(done) - before
            faults = sum(bool(entry["fault"]) for entry in done.values())
            rate = fresh / elapsed if elapsed else 0.0
            left = max(0, numbers.stop - begin - BATCH) / rate / 60 if rate else 0.0
            print(f"[{len(done)}: {faults} faults, {rate:.0f}/s, {left:.0f} min left]", flush=True)
    return [done[number] for number in numbers]


def read_journal(journal: Path) -> dict[int, Entry]:
    """By number the last entry of each input."""
    if not journal.exists():
        return {}
    return {entry["number"]: entry for entry in _entries(journal.read_text().splitlines())}


def _entries(lines: Iterable[str]) -> Iterator[Entry]:
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that a kill cut off, or what a library printed


def _first_run(waiting: Sequence[int]) -> tuple[int, int]:
    """The first numbers that follow each other: the first, and the one after the last."""
    end = waiting[0] + 1
    while end - waiting[0] < len(waiting) and waiting[end - waiting[0]] == end:
        end += 1
    return waiting[0], end


def _batch(command: Sequence[str], begin: int, end: int, megabytes: int) -> Iterator[Entry]:
    """The entries of a batch as they come; the last one tells of an input that ended the process."""
    process = subprocess.Popen(
        [*command, "--batch", str(begin), str(end)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=record.FOLDER.parent,
        preexec_fn=limit_memory(megabytes),
        start_new_session=True,
    )
    assert process.stdout is not None
    current = begin
    with process.stdout, selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while current < end:
            if not _answers(selector, process.pid, _START if current == begin else 0.0):
                process.kill()
                process.wait()
                yield _lost(current, "hang: the process did not answer")
                return
            line = process.stdout.readline()
            if not line:
                break
            for entry in _entries([line]):
                yield entry
                current = entry["number"] + 1
    if current >= end:
        process.kill()  # it has nothing more to say, and may take long to end
    code = process.wait()
    if current < end and (code or current == begin):
        yield _lost(current, f"crash: the process ended with {code}")


def _answers(selector: selectors.BaseSelector, process: int, start: float) -> bool:
    """Wait for a line; False if the process has had more time than an input may take."""
    if selector.select(1.0):
        return True
    begin = processor_seconds(process)
    # Seconds that are waited one by one: as many pass for this process as for the other, if both are stopped.
    for _ in range(WAITING_SECONDS + int(start)):
        if selector.select(1.0):
            return True
        if processor_seconds(process) - begin > SECONDS + _GRACE + start:
            return False
    return False


def _lost(number: int, fault: str) -> Entry:
    return {
        "number": number,
        "format": "",
        "kinds": "",
        "outcome": "fault",
        "fault": fault,
        "seconds": 0.0,
        "peak_mb": 0,
        "judged": False,
        "proved": False,
    }
