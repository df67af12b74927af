"""Mutated files of every format but ONNX, read as growpipe reads them (ONNX: ``benchmarks.graph.fuzz``).

    python -m benchmarks.torture.run [--count 100000] [--seed 0] [--work FOLDER] [--record]
    python -m benchmarks.torture.run --input 4711         (one input, with its traceback; its files are kept)

Input number n of a seed is always the same: a well-formed input of one of the `FORMATS`, of which one file is
mutated. Inputs run in batches, each batch in a process of its own; a process that dies or hangs costs one
input only. What counts as a fault: an exception that is not a `GrowpipeError`, a message of several lines,
more than 10 s, more than 2 GiB (with the largest child), a process that dies, a file opened or changed
outside the folder of the input. A run that was stopped goes on where it was, as long as the code of growpipe
stays the same. ``--record`` writes results/torture.json and RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.common import record
from benchmarks.common.batches import run_batches
from benchmarks.common.command import run_command
from benchmarks.common.watch import MEGABYTES, SECONDS, ended, peak, reset_peak, watched
from benchmarks.graph.corpus import cache_folder
from benchmarks.torture.formats import FORMATS, seed_files
from growpipe.graph_ops.errors import CheckFailed, GrowpipeError

COMMAND = "python -m benchmarks.torture.run"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where inputs, faults and the journal go")
    parser.add_argument("--input", type=int, help="run one input here, and keep it")
    parser.add_argument("--record", action="store_true", help="write results/torture.json and RESULTS.md")
    parser.add_argument("--batch", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work: Path = (arguments.work or cache_folder("torture")).absolute()
    work.mkdir(parents=True, exist_ok=True)
    if arguments.batch:
        batch(work, arguments.seed, *arguments.batch)
    elif arguments.input is not None:
        folder = work / f"kept-{arguments.seed}-{arguments.input}"
        shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps(run_input(arguments.seed, arguments.input, folder, show=True), indent=1))
        print(f"the files are in {folder}")
    else:
        everything(work, arguments)


def everything(work: Path, arguments: argparse.Namespace) -> None:
    """Run what the journal does not have yet, and sum up."""
    numbers = range(arguments.first, arguments.first + arguments.count)
    command = [
        sys.executable,
        "-m",
        "benchmarks.torture.run",
        "--work",
        str(work),
        "--seed",
        str(arguments.seed),
    ]
    journal = work / f"journal-{arguments.seed}-{record.code_hash()}.jsonl"
    done = run_batches(command, journal, numbers, megabytes=4 * MEGABYTES)
    entries = [done[number] for number in numbers]
    text = summary(entries, arguments.seed)
    if arguments.record:
        faults = [entry for entry in entries if entry["fault"]]
        record.append("torture", {"command": f"{COMMAND} --count {arguments.count}", "faults": faults})
        record.summarise("torture", text)
    print(text)
    faulty = sum(bool(entry["fault"]) for entry in entries)
    if faulty:
        raise CheckFailed(f"{faulty} of {len(entries)} inputs show a fault")


def batch(work: Path, seed: int, begin: int, end: int) -> None:
    """Run inputs in this process, one JSON line each on stdout."""
    out = sys.stdout
    for name in FORMATS:
        seed_files(name)  # imports what reads the format, which may take longer than an input may
    for number in range(begin, end):
        folder = work / f"input-{seed}-{number}"
        entry = run_input(seed, number, folder)
        shutil.rmtree(folder, ignore_errors=True)
        out.write(json.dumps(entry) + "\n")
        out.flush()


def run_input(seed: int, number: int, folder: Path, *, show: bool = False) -> dict[str, Any]:
    """Make input ``number`` in ``folder`` and read it; what came of it, as JSON values."""
    random = Random(f"{seed} {number}")
    name = random.choices(list(FORMATS), [form.share for form in FORMATS.values()])[0]
    form = FORMATS[name]
    files = dict(seed_files(name))
    file = random.choice(sorted(form.mutations))
    mutate = random.choice(form.mutations[file])
    files[file] = mutate(files[file], random.choice(sorted(files.values())), random)
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return {"number": number, "format": name, **read_input(name, folder, show=show)}


def read_input(name: str, folder: Path, *, show: bool = False) -> dict[str, Any]:
    """Read an input of the format ``name`` as growpipe does, and say what came of it."""
    outcome = "read"

    def read() -> None:
        nonlocal outcome
        try:
            FORMATS[name].read(folder)
        except GrowpipeError as error:
            outcome = "refused"
            if len(str(error).splitlines()) != 1 or len(str(error)) > 2000:
                raise AssertionError("the message is not one line") from error

    reset_peak()
    started = time.monotonic()
    with watched(folder) as outside:
        fault = ended(read, show=show) or ""
    seconds = time.monotonic() - started
    if not fault and outside:
        fault = f"outside: {outside[0]}"
    if not fault and seconds > SECONDS:
        fault = f"slow: {seconds:.1f} s"
    if not fault and peak() > MEGABYTES:
        fault = f"memory: {peak()} MB"
    return {
        "outcome": "fault" if fault else outcome,
        "fault": fault,
        "seconds": round(seconds, 3),
        "peak_mb": peak(),
    }


def summary(entries: list[dict[str, Any]], seed: int) -> str:
    """The section of RESULTS.md."""
    rows = []
    for name in [*FORMATS, "all"]:
        own = [entry for entry in entries if name in ("all", entry["format"])]
        if own:
            rows.append(_row(name, own))
    faults = Counter(entry["fault"].split(":")[0] for entry in entries if entry["fault"])
    shown = ", ".join(f"{n} {kind}" for kind, n in faults.most_common()) or "none"
    return f"""
## Damaged and hostile files (`torture/run.py`)

{len(entries):,} mutated files of every format that growpipe reads besides ONNX (seed {seed}).
Faults: {shown}.
A fault is an exception that is not one of growpipe's own, a message of several lines, more than
{SECONDS:.0f} s, more than {MEGABYTES} MB in all processes together, or a file opened or changed outside.

| format | inputs | read | refused in one line | faults | slowest, s | most memory, MB |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


def _row(name: str, entries: list[Mapping[str, Any]]) -> str:
    outcomes = Counter(entry["outcome"] for entry in entries)
    slowest = max(entry["seconds"] for entry in entries)
    most = max(entry["peak_mb"] for entry in entries)
    counts = f"{len(entries):,} | {outcomes['read']:,} | {outcomes['refused']:,} | {outcomes['fault']:,}"
    return f"| {name} | {counts} | {slowest:.1f} | {most:,} |"


if __name__ == "__main__":
    run_command(main)
