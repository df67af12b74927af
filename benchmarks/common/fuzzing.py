"""What the fuzzers share: their command line, their batches, and the words about their journal."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import record
from benchmarks.common.batches import Entry, run_batches
from benchmarks.common.watch import MEGABYTES, children_peak
from benchmarks.graph.corpus import cache_folder
from growpipe.graph_ops.errors import CheckFailed, UsageError

__all__ = ["Fuzzer", "fault_words", "revision_words", "run_fuzzer"]


_IN_MEMORY = Path("/dev/shm")
"""Where the files of an input go, if there is such a place: the commands wait for the disk."""


@dataclass(frozen=True)
class Fuzzer:
    """A kind of inputs, and what is done with them.

    Attributes:
        name: of the section of RESULTS.md, of the file in results/ and of the folder in the cache.
        module: what ``python -m`` runs.
        description: of the command line.
        run: runs one input: the folder of all of them, the seed, the number, a folder for its files that is
            not there yet, and whether the traceback of a fault is shown.
        prepare: is called with the folder of all inputs, once in every process before its first input.
        summary: the section of RESULTS.md.
        facts: what results/NAME.json keeps besides what all fuzzers keep.
        megabytes: the address space that a process may take.
        count: how many inputs run if the command line does not say it.
        minimise: shrinks one input; None if there is no such thing.
        within: every batch runs within it.
    """

    name: str
    module: str
    description: str
    run: Callable[[Path, int, int, Path, bool], Entry]
    prepare: Callable[[Path], object]
    summary: Callable[[Sequence[Entry], int], str]
    facts: Callable[[Sequence[Entry]], dict[str, Any]] = field(default=lambda entries: {})
    megabytes: int = 2 * MEGABYTES
    count: int = 100_000
    minimise: Callable[[Path, int, int], None] | None = None
    within: Callable[[], AbstractContextManager[None]] = nullcontext


def run_fuzzer(fuzzer: Fuzzer) -> None:
    """The command line of a fuzzer."""
    parser = argparse.ArgumentParser(
        description=fuzzer.description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=fuzzer.count)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where inputs, faults and the journal go")
    parser.add_argument("--input", type=int, help="run one input here, and keep it")
    parser.add_argument(
        "--minimise", type=int, help="shrink one input" if fuzzer.minimise else argparse.SUPPRESS
    )
    parser.add_argument(
        "--record", action="store_true", help=f"write results/{fuzzer.name}.json and RESULTS.md"
    )
    parser.add_argument("--batch", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work: Path = (arguments.work or cache_folder(fuzzer.name)).absolute()
    work.mkdir(parents=True, exist_ok=True)
    if arguments.batch:
        _batch(fuzzer, work, arguments.seed, *arguments.batch)
    elif arguments.input is not None:
        folder = work / f"kept-{arguments.seed}-{arguments.input}"
        shutil.rmtree(folder, ignore_errors=True)
        fuzzer.prepare(work)
        print(json.dumps(fuzzer.run(work, arguments.seed, arguments.input, folder, True), indent=1))
        print(f"the files are in {folder}")
    elif arguments.minimise is not None:
        if fuzzer.minimise is None:
            raise UsageError(f"{fuzzer.module} shrinks nothing")
        fuzzer.minimise(work, arguments.seed, arguments.minimise)
    else:
        _everything(fuzzer, work, arguments)


def _everything(fuzzer: Fuzzer, work: Path, arguments: argparse.Namespace) -> None:
    """Run what the journal does not have yet, and sum up."""
    fuzzer.prepare(work)
    numbers = range(arguments.first, arguments.first + arguments.count)
    options = ["--work", str(work), "--seed", str(arguments.seed)]
    journal = work / f"journal-{arguments.seed}.jsonl"
    command = [sys.executable, "-m", fuzzer.module, *options]
    entries = run_batches(command, journal, numbers, megabytes=fuzzer.megabytes)
    text = fuzzer.summary(entries, arguments.seed)
    faults = [entry for entry in entries if entry["fault"]]
    if arguments.record:
        told = f"python -m {fuzzer.module} --count {arguments.count} --seed {arguments.seed} --record"
        facts = {
            "command": told,
            "inputs": len(entries),
            "revisions": _revisions(entries),
            "outcomes": dict(Counter(entry["outcome"] for entry in entries)),
            "seconds": {
                "sum": sum(e["seconds"] for e in entries),
                "most": max(e["seconds"] for e in entries),
            },
            "peak_mb": max(entry["peak_mb"] for entry in entries),
            "journal_sha256": hashlib.sha256(json.dumps(entries).encode()).hexdigest(),
            "faults": faults,
        }
        record.append(fuzzer.name, facts | fuzzer.facts(entries))
        record.summarise(fuzzer.name, text)
    print(text)
    if faults:
        raise CheckFailed(f"{len(faults)} of {len(entries)} inputs show a fault")


def _batch(fuzzer: Fuzzer, work: Path, seed: int, begin: int, end: int) -> None:
    """Run inputs in this process, one JSON line each on stdout."""
    out = sys.stdout
    fuzzer.prepare(work)
    scratch = (_IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else work) / f"growpipe-{fuzzer.name}"
    with fuzzer.within():
        for number in range(begin, end):
            folder = scratch / f"input-{seed}-{number}"
            shutil.rmtree(folder, ignore_errors=True)
            entry = fuzzer.run(work, seed, number, folder, False)
            shutil.rmtree(folder, ignore_errors=True)
            out.write(json.dumps(entry) + "\n")
            out.flush()
            if children_peak() > MEGABYTES // 4:
                return  # the largest child counts for every later input of this process


def fault_words(entries: Sequence[Entry]) -> str:
    """How many faults of each kind there are, or ``none``."""
    faults = Counter(entry["fault"].split(":")[0] for entry in entries if entry["fault"])
    return ", ".join(f"{n} {kind}" for kind, n in faults.most_common()) or "none"


def revision_words(entries: Sequence[Entry]) -> str:
    """How many inputs ran on which revision of growpipe, in one sentence."""
    revisions = _revisions(entries)
    last = record.code_hash()
    others = [f"{count:,} on {code}" for code, count in revisions.items() if code != last]
    text = f"{revisions.get(last, 0):,} of them ran on the revision {last} of the code"
    if not others:
        return f"{text}."
    return f"{text}, the others on earlier ones ({', '.join(others)}); what showed a fault there ran again."


def _revisions(entries: Sequence[Entry]) -> dict[str, int]:
    return dict(Counter(str(entry["code"]) for entry in entries))
