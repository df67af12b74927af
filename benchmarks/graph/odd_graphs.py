"""Odd random graphs: does every form keep the function?

    python -m benchmarks.graph.odd_graphs [--count 10000] [--seed 0] [--work FOLDER] [--record]
    python -m benchmarks.graph.odd_graphs --input 4711    (one graph, with its traceback; kept as a file)

Graph number n of a seed is always the same: a random network of ``tests/helpers/random_graphs.py`` with some
of the oddities of ``tests/helpers/odd_graphs.py`` (wrong declared shapes, subgraphs, weights in Constant
nodes, initializers that are inputs, repeated operator sets, inputs that are outputs), which do not change its
function. It is deployed, and grown at ε = 0 by a random plan. What counts as a fault: a form that computes
something else or does not run where the graph runs, an exception that is not growpipe's own, more than 10 s
of processor time, more than 2 GiB, a process that dies. ``--record`` writes results/odd_graphs.json and
RESULTS.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from benchmarks.common.batches import Entry
from benchmarks.common.command import run_command
from benchmarks.common.fuzzing import Fuzzer, fault_words, revision_words, run_fuzzer
from benchmarks.common.processor_time import processor_seconds
from benchmarks.common.watch import MEGABYTES, ended, peak, reset_peak
from tests.helpers.odd_graphs import ODDITIES, changes_of_function, odd_graph
from tests.helpers.random_graphs import Step


def _run(work: Path, seed: int, number: int, folder: Path, show: bool) -> Entry:
    random = np.random.default_rng([seed, number])
    steps: list[Step] = [tuple(random.integers(0, 64, 4).tolist()) for _ in range(random.integers(1, 8))]
    odd = random.choice(len(ODDITIES), int(random.integers(1, 5)), replace=False).tolist()
    folder.mkdir(parents=True)
    onnx.save(odd_graph(steps, number, odd), folder / "source.onnx")
    changes: dict[str, str] | None = {}

    def change() -> None:
        nonlocal changes
        changes = changes_of_function(folder / "source.onnx", number)

    reset_peak()
    started = processor_seconds()
    fault = str(ended(change, show=show) or "")
    forms = changes or {}
    wrong = [f"{form}: {what}" for form, what in forms.items() if what not in ("", "refused")]
    if not fault and wrong:
        fault = f"another function: {wrong[0]}"
    if not fault and peak() > MEGABYTES:
        fault = f"memory: {peak()} MB"
    words = [f"{form} refused" if what == "refused" else form for form, what in forms.items()]
    return {
        "number": number,
        "kinds": "+".join(ODDITIES[position].__name__ for position in sorted(odd)),
        "outcome": "fault" if fault else ", ".join(words) if forms else "not run",
        "fault": fault,
        "seconds": round(processor_seconds() - started, 3),
        "peak_mb": peak(),
    }


def _summary(entries: Sequence[Entry], seed: int) -> str:
    """The section of RESULTS.md."""
    rows = []
    for name in [*(oddity.__name__ for oddity in ODDITIES), "all"]:
        own = Counter(e["outcome"] for e in entries if name in ("all", *e["kinds"].split("+")))
        grown = sum(n for outcome, n in own.items() if outcome.endswith("grown"))
        refused = sum(n for outcome, n in own.items() if "refused" in outcome)
        deployed = sum(
            n
            for outcome, n in own.items()
            if outcome.startswith("deployed") and "deployed refused" not in outcome
        )
        counts = (sum(own.values()), own["not run"], deployed, grown, refused, own["fault"])
        rows.append(f"| {name.replace('_', ' ')} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    return f"""
## Odd random graphs (`graph/odd_graphs.py`)

{len(entries):,} random graphs with one to four oddities each (seed {seed}), deployed, and grown at ε = 0.
{revision_words(entries)}
Faults: {fault_words(entries)}. A graph that onnxruntime itself does not run is not compared. The forms of the
others are compared at batch sizes of 1 and 3, at the lowest and the highest optimisation.

| oddity | graphs | not run | deployed | grown | a form refused | faults |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


FUZZER = Fuzzer(
    name="odd_graphs",
    module="benchmarks.graph.odd_graphs",
    description=__doc__,
    run=_run,
    prepare=lambda work: None,
    summary=_summary,
    megabytes=2 * MEGABYTES,
    count=10_000,
)

if __name__ == "__main__":
    run_command(lambda: run_fuzzer(FUZZER))
