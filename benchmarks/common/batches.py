"""Many numbered inputs in batches, each batch in a process of its own, with a journal to go on from."""

from __future__ import annotations

import json
import selectors
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import record
from benchmarks.common.child import limit_memory
from benchmarks.common.watch import SECONDS

__all__ = ["run_batches"]

BATCH = 200
_GRACE = 20.0
"""Seconds that a process may be silent beyond the limit of one input before it is ended."""

_START = 300.0
"""Seconds that a process may take to import what it needs."""


def run_batches(
    command: Sequence[str], journal: Path, numbers: range, *, megabytes: int
) -> dict[int, dict[str, Any]]:
    """Run what the journal does not have yet; return the entries by number.

    Args:
        command: with ``--batch FIRST END`` it runs these inputs and prints one JSON line for each, with
            ``number``, ``outcome``, ``fault``, ``seconds`` and ``peak_mb``.
        journal: one line for each input that has run; a kill may cut off the last one.
        numbers: the inputs.
        megabytes: the address space that a process may take.
    """
    done = {entry["number"]: entry for entry in _entries(journal)}
    started, shown, before = time.monotonic(), 0.0, len(done)
    for begin in range(numbers.start, numbers.stop, BATCH):
        waiting = [n for n in range(begin, min(begin + BATCH, numbers.stop)) if n not in done]
        while waiting:
            for entry in _batch(command, waiting[0], waiting[-1] + 1, megabytes):
                done[entry["number"]] = entry
                with journal.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
                if entry["fault"]:
                    print(f"  {entry['number']} {entry['fault']}", flush=True)
            waiting = [n for n in waiting if n not in done]
        elapsed = time.monotonic() - started
        if elapsed - shown > 15 or begin + BATCH >= numbers.stop:
            shown, fresh = elapsed, len(done) - before
            faults = sum(bool(entry["fault"]) for entry in done.values())
            rate = fresh / elapsed if elapsed else 0.0
            left = (numbers.stop - begin - BATCH) / rate / 60 if rate else 0.0
            print(f"[{len(done)}: {faults} faults, {rate:.0f}/s, {left:.0f} min left]", flush=True)
    return done


def _entries(journal: Path) -> Iterable[dict[str, Any]]:
    if not journal.exists():
        return
    for line in journal.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that a kill cut off


def _batch(command: Sequence[str], begin: int, end: int, megabytes: int) -> Iterable[dict[str, Any]]:
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
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while current < end:
            if not selector.select(SECONDS + _GRACE + (_START if current == begin else 0)):
                process.kill()
                process.wait()
                yield _lost(current, "hang: the process did not answer")
                return
            line = process.stdout.readline()
            if not line:
                break
            entry = json.loads(line)
            yield entry
            current = entry["number"] + 1
    if current >= end:
        process.kill()  # it has nothing more to say, and may take long to end
    code = process.wait()
    if current < end:
        yield _lost(current, f"crash: the process ended with {code}")


def _lost(number: int, fault: str) -> dict[str, Any]:
    return {
        "number": number,
        "format": "",
        "kinds": "",
        "outcome": "fault",
        "fault": fault,
        "seconds": 0.0,
        "peak_mb": 0,
        "judged": False,
    }
