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
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.common import record
from benchmarks.common.batches import run_batches
from benchmarks.common.command import run_command
from benchmarks.common.watch import MEGABYTES, SECONDS
from benchmarks.graph.corpus import cache_folder
from benchmarks.graph.fuzz_input import made, run_input
from benchmarks.graph.fuzz_seeds import seeds
from growpipe.graph_ops.errors import CheckFailed

COMMAND = "python -m benchmarks.graph.fuzz"


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
    command = [
        sys.executable,
        "-m",
        "benchmarks.graph.fuzz",
        "--work",
        str(work),
        "--seed",
        str(arguments.seed),
    ]
    done = run_batches(command, journal, numbers, megabytes=2 * MEGABYTES)
    entries = [done[n] for n in numbers if n in done]
    text = summary(entries, arguments.seed)
    if arguments.record:
        record.append("fuzz", facts(entries, arguments))
        record.summarise("fuzz", text)
    print(text)
    faults = sum(bool(entry["fault"]) for entry in entries)
    if faults:
        raise CheckFailed(f"{faults} of {len(entries)} inputs show a fault")


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
