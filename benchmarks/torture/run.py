"""Mutated files of every format but ONNX, read as growpipe reads them (ONNX: ``benchmarks.graph.fuzz``).

    python -m benchmarks.torture.run [--count 100000] [--seed 0] [--work FOLDER] [--record]
    python -m benchmarks.torture.run --input 4711         (one input, with its traceback; its files are kept)

Input number n of a seed is always the same: a well-formed input of one of the `FORMATS`, of which one file is
mutated. Inputs run in batches, each batch in a process of its own; a process that dies or hangs costs one
input only. What counts as a fault: an exception that is not a `GrowpipeError`, a message of several lines,
more than 10 s, more than 2 GiB (with the largest child), a process that dies, a file opened or changed
outside the folder of the input. Time is processor time of all processes together. A run that was stopped goes
on where it was; inputs that showed a fault on another revision of growpipe run again. ``--record`` writes
results/torture.json and RESULTS.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

from benchmarks.common.batches import Entry
from benchmarks.common.command import run_command
from benchmarks.common.fuzzing import Fuzzer, fault_words, revision_words, run_fuzzer
from benchmarks.common.processor_time import processor_seconds
from benchmarks.common.watch import MEGABYTES, SECONDS, ended, peak, reset_peak, watched
from benchmarks.torture.formats import FORMATS, seed_files
from growpipe.graph_ops.errors import GrowpipeError


def _prepare(work: Path) -> None:
    for name in FORMATS:
        seed_files(name)  # imports what reads the format, which may take longer than an input may


def run_input(seed: int, number: int, folder: Path, *, show: bool = False) -> Entry:
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


def read_input(name: str, folder: Path, *, show: bool = False) -> Entry:
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
    started = processor_seconds()
    with watched(folder) as outside:
        fault = ended(read, show=show) or ""
    seconds = processor_seconds() - started
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


def _summary(entries: Sequence[Entry], seed: int) -> str:
    """The section of RESULTS.md."""
    rows = []
    for name in [*FORMATS, "all"]:
        own = [entry for entry in entries if name in ("all", entry["format"])]
        if own:
            rows.append(_row(name, own))
    return f"""
## Damaged and hostile files (`torture/run.py`)

{len(entries):,} mutated files of every format that growpipe reads besides ONNX (seed {seed}).
{revision_words(entries)}
Faults: {fault_words(entries)}.
A fault is an exception that is not one of growpipe's own, a message of several lines, more than
{SECONDS:.0f} s of processor time or {MEGABYTES} MB in all processes together, or a file opened or changed
outside.

| format | inputs | read | refused in one line | faults | slowest, s | most memory, MB |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


def _row(name: str, entries: Sequence[Entry]) -> str:
    outcomes = Counter(entry["outcome"] for entry in entries)
    slowest = max(entry["seconds"] for entry in entries)
    most = max(entry["peak_mb"] for entry in entries)
    counts = f"{len(entries):,} | {outcomes['read']:,} | {outcomes['refused']:,} | {outcomes['fault']:,}"
    return f"| {name} | {counts} | {slowest:.1f} | {most:,} |"


FUZZER = Fuzzer(
    name="torture",
    module="benchmarks.torture.run",
    description=__doc__,
    run=lambda work, seed, number, folder, show: run_input(seed, number, folder, show=show),
    prepare=_prepare,
    summary=_summary,
    megabytes=4 * MEGABYTES,
)

if __name__ == "__main__":
    run_command(lambda: run_fuzzer(FUZZER))
