"""Mutated ONNX files through every command that reads and writes graphs.

    python -m benchmarks.graph.fuzz [--count 100000] [--seed 0] [--work FOLDER] [--record]
    python -m benchmarks.graph.fuzz --input 4711          (one input, with its traceback; kept as a file)
    python -m benchmarks.graph.fuzz --minimise 4711       (the smallest part of it that still fails alike)

Input number n of a seed is always the same file (`mutations`), made from the files of `fuzz_seeds`. It goes
through ``inspect``, ``plan``, ``grow`` and ``deploy`` as the command line runs them. Inputs run in batches,
each batch in a process of its own; a process that dies or hangs costs one input only. What counts as a fault:
an exception that is not a `GrowpipeError`, more than 10 s, more than 2 GiB, a process that dies, a file
opened or changed outside the folder of the input, and a form that computes something else than its file (at
ε = 0, judged with onnxruntime by `parity`). A run that was stopped goes on where it was, as long as the code
of growpipe stays the same. ``--record`` writes results/fuzz.json and RESULTS.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import selectors
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.common import record
from benchmarks.common.child import limit_memory
from benchmarks.common.command import run_command
from benchmarks.graph.corpus import cache_folder
from benchmarks.graph.fuzz_input import MEGABYTES, SECONDS, made, run_input
from benchmarks.graph.fuzz_seeds import seeds
from growpipe.graph_ops.errors import CheckFailed

BATCH = 200
COMMAND = "python -m benchmarks.graph.fuzz"
_GRACE = 20.0
"""Seconds that a process may be silent beyond the limit of one input before it is ended."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where inputs, faults and the journal go")
    parser.add_argument("--input", type=int, help="run one input here, and keep it")
    parser.add_argument("--minimise", type=int, help="shrink one input")
    parser.add_argument("--record", action="store_true", help="write results/fuzz.json and RESULTS.md")
    parser.add_argument("--batch", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work: Path = (arguments.work or cache_folder("fuzz")).absolute()
    work.mkdir(parents=True, exist_ok=True)
    if arguments.batch:
        batch(work, arguments.seed, *arguments.batch)
    elif arguments.input is not None:
        one(work, arguments.seed, arguments.input)
    elif arguments.minimise is not None:
        from benchmarks.graph.fuzz_minimise import minimise

        minimise(work, arguments.seed, arguments.minimise)
    else:
        everything(work, arguments)


def everything(work: Path, arguments: argparse.Namespace) -> None:
    """Run what the journal does not have yet, and sum up."""
    numbers = range(arguments.first, arguments.first + arguments.count)
    seeds(work)
    journal = work / f"journal-{arguments.seed}-{record.code_hash()}.jsonl"
    done = {entry["number"]: entry for entry in _entries(journal)}
    started, shown, before = time.monotonic(), 0.0, len(done)
    for begin in range(numbers.start, numbers.stop, BATCH):
        waiting = [n for n in range(begin, min(begin + BATCH, numbers.stop)) if n not in done]
        while waiting:
            for entry in _batch(work, arguments.seed, waiting[0], waiting[-1] + 1):
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
    entries = [done[n] for n in numbers if n in done]
    text = summary(entries, arguments.seed)
    if arguments.record:
        record.append("fuzz", facts(entries, arguments))
        record.summarise("fuzz", text)
    print(text)
    faults = sum(bool(entry["fault"]) for entry in entries)
    if faults:
        raise CheckFailed(f"{faults} of {len(entries)} inputs show a fault")


def _entries(journal: Path) -> Iterable[dict[str, Any]]:
    if not journal.exists():
        return
    for line in journal.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that a kill cut off


def _batch(work: Path, seed: int, begin: int, end: int) -> Iterable[dict[str, Any]]:
    """The entries of a batch as they come; the last one tells of an input that ended the process."""
    command = [sys.executable, "-m", "benchmarks.graph.fuzz", "--work", str(work), "--seed", str(seed)]
    command += ["--batch", str(begin), str(end)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=record.FOLDER.parent,
        preexec_fn=limit_memory(2 * MEGABYTES),
        start_new_session=True,
    )
    assert process.stdout is not None
    current = begin
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(SECONDS + _GRACE + (40 if current == begin else 0)):
                process.kill()
                process.wait()
                yield _lost(seed, current, "hang: the process did not answer")
                return
            line = process.stdout.readline()
            if not line:
                break
            entry = json.loads(line)
            yield entry
            current = entry["number"] + 1
    code = process.wait()
    if current < end:
        yield _lost(seed, current, f"crash: the process ended with {code}")


def _lost(seed: int, number: int, fault: str) -> dict[str, Any]:
    return {
        "number": number,
        "kinds": "",
        "outcome": "fault",
        "fault": fault,
        "seconds": 0.0,
        "peak_mb": 0,
        "judged": False,
    }


def batch(work: Path, seed: int, begin: int, end: int) -> None:
    """Run inputs in this process, one JSON line each on stdout."""
    corpus = seeds(work)
    out = sys.stdout
    for number in range(begin, end):
        folder = work / f"input-{seed}-{number}"
        entry = run_input(corpus, seed, number, folder)
        shutil.rmtree(folder, ignore_errors=True)
        out.write(json.dumps(entry) + "\n")
        out.flush()


def one(work: Path, seed: int, number: int) -> None:
    """Run one input with its traceback on stderr; the file stays."""
    folder = work / f"kept-{seed}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    entry = run_input(seeds(work), seed, number, folder, show=True)
    print(json.dumps(entry, indent=1))
    print(f"{folder / 'model.onnx'}: made by {made(seeds(work), seed, number)[1]}")


def facts(entries: list[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """What results/fuzz.json keeps."""
    return {
        "command": f"{COMMAND} --count {arguments.count} --seed {arguments.seed} --record",
        "inputs": len(entries),
        "outcomes": dict(Counter(entry["outcome"] for entry in entries)),
        "kinds": dict(Counter(kind for entry in entries for kind in entry["kinds"].split("+"))),
        "faults": [entry for entry in entries if entry["fault"]],
        "seconds": {"sum": sum(e["seconds"] for e in entries), "most": max(e["seconds"] for e in entries)},
        "peak_mb": max(entry["peak_mb"] for entry in entries),
        "judged_the_same": sum(entry["judged"] for entry in entries),
        "journal_sha256": hashlib.sha256(json.dumps(entries).encode()).hexdigest(),
    }


def summary(entries: list[dict[str, Any]], seed: int) -> str:
    """The section of RESULTS.md."""
    kinds: dict[str, Counter[str]] = {}
    for entry in entries:
        for kind in entry["kinds"].split("+"):
            kinds.setdefault(kind or "lost", Counter())[entry["outcome"]] += 1
    outcomes = Counter(entry["outcome"] for entry in entries)
    order = [name for name, _ in outcomes.most_common()]
    rows = "\n".join(
        f"| {kind} | {sum(c.values())} | " + " | ".join(str(c[name]) for name in order) + " |"
        for kind, c in sorted(kinds.items())
    )
    faults = Counter(entry["fault"].split(":")[0] for entry in entries if entry["fault"])
    shown = ", ".join(f"{n} {name}" for name, n in faults.most_common()) or "none"
    judged = sum(entry["judged"] for entry in entries)
    slowest = max(entry["seconds"] for entry in entries)
    peak = max(entry["peak_mb"] for entry in entries)
    return f"""
## Mutated files (`graph/fuzz.py`)

{len(entries)} mutated ONNX files (seed {seed}) through `inspect`, `plan`, `grow` and `deploy`.
Faults: {shown}. The slowest input took {slowest:.1f} s (limit {SECONDS:.0f} s), the largest peak of
memory was {peak} MB (limit {MEGABYTES} MB), both processes together. Of the files whose forms
onnxruntime runs, {judged} compute the same in every form at ε = 0. An outcome is the last command that
succeeded, or `refused` if the file was not read at all. A file of several mutations counts in the row of
each.

| mutation | inputs | {" | ".join(order)} |
|---|---|{"---|" * len(order)}
{rows}
| all | {len(entries)} | {" | ".join(str(outcomes[name]) for name in order)} |
"""


if __name__ == "__main__":
    run_command(main)
