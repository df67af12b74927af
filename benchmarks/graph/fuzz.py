"""Mutated ONNX files through every command that reads and writes graphs.

    python -m benchmarks.graph.fuzz [--count 100000] [--seed 0] [--work FOLDER] [--record]
    python -m benchmarks.graph.fuzz --input 4711          (one input, with its traceback; kept as a file)
    python -m benchmarks.graph.fuzz --minimise 4711       (the smallest part of it that still fails alike)

Input number n of a seed is always the same file (`mutations`), made from the files of `fuzz_seeds`. It goes
through ``inspect``, ``plan``, ``grow`` and ``deploy`` as the command line runs them. Inputs run in batches,
each batch in a process of its own; a process that dies or hangs costs one input only. What counts as a fault:
an exception that is not a `GrowpipeError`, more than 10 s, more than 2 GiB, a process that dies, a file
opened or changed outside the folder of the input, and a form that computes something else than its file (at
ε = 0, judged with onnxruntime by `parity`). A file that takes onnxruntime half of these limits by itself runs
without the commands' own proof. Time is processor time of all processes together. A run that was
stopped goes on where it was; inputs that showed a fault on another revision of growpipe run again.
``--record`` writes results/fuzz.json and RESULTS.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.common.batches import Entry
from benchmarks.common.command import run_command
from benchmarks.common.forked import forked_models
from benchmarks.common.fuzzing import Fuzzer, fault_words, revision_words, run_fuzzer
from benchmarks.common.watch import MEGABYTES, SECONDS
from benchmarks.graph.fuzz_input import run_input
from benchmarks.graph.fuzz_minimise import minimise
from benchmarks.graph.fuzz_seeds import seeds

_corpus = cache(seeds)


def _run(work: Path, seed: int, number: int, folder: Path, show: bool) -> Entry:
    return run_input(_corpus(work), seed, number, folder, show=show)


def _facts(entries: Sequence[Entry]) -> dict[str, Any]:
    """What results/fuzz.json keeps of the mutations and of the forms."""
    return {
        "kinds": dict(Counter(kind for entry in entries for kind in entry["kinds"].split("+"))),
        "proved_by_the_commands": sum(entry["proved"] for entry in entries),
        "too_heavy_for_a_proof": _heavy(entries),
        "judged_the_same": sum(entry["judged"] for entry in entries),
    }


def _heavy(entries: Sequence[Entry]) -> int:
    """The inputs that ran without the proof, as the model by itself takes too much."""
    return sum(entry.get("heavy", False) for entry in entries)


def _summary(entries: Sequence[Entry], seed: int) -> str:
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
    judged = sum(entry["judged"] for entry in entries)
    proved = sum(entry["proved"] for entry in entries)
    slowest = max(entry["seconds"] for entry in entries)
    peak = max(entry["peak_mb"] for entry in entries)
    return f"""
## Mutated files (`graph/fuzz.py`)

{len(entries):,} mutated ONNX files (seed {seed}) through `inspect`, `plan`, `grow` and `deploy`.
{revision_words(entries)}
Faults: {fault_words(entries)}. The slowest input took {slowest:.1f} s of processor time (limit
{SECONDS:.0f} s), the largest peak of memory was {peak} MB (limit {MEGABYTES} MB), both in all processes
together. The commands ran their own proof of what they write on {proved:,} of them; {_heavy(entries):,}
more ran without it, as onnxruntime takes half of these limits for the file by itself. Of the
files whose forms onnxruntime runs, {judged:,} compute the same in every form at ε = 0. An
outcome is the last command that succeeded, or `refused` if the file was not read at all. A file of several
mutations counts in the row of each.

| mutation | inputs | {" | ".join(order)} |
|---|---|{"---|" * len(order)}
{rows}
| all | {len(entries)} | {" | ".join(str(outcomes[name]) for name in order)} |
"""


FUZZER = Fuzzer(
    name="fuzz",
    module="benchmarks.graph.fuzz",
    description=__doc__,
    run=_run,
    prepare=_corpus,
    summary=_summary,
    facts=_facts,
    minimise=minimise,
    within=forked_models,
)

if __name__ == "__main__":
    run_command(lambda: run_fuzzer(FUZZER))
