"""Peak memory of an analysis against that of a training step.

On a CPU it is the resident memory of a process that does nothing else, on CUDA what torch has allocated.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import torch
from torch import nn

from benchmarks.analyser.problem import KEEPS, Bench, clock, products, spectra_of
from growpipe.analyser.curvature.metric import GrowingMetric
from growpipe.analyser.spectra.drive import lanczos, random_start

WORK = ("step", "analysis", "limited", *KEEPS)
"""Training steps; a capture and products that keep all, or nothing; analyses of 2,048 samples."""


def _do(bench: Bench, what: str) -> None:
    if what == "step":
        for _ in range(3):
            bench.step()
    elif what in KEEPS:
        spectra_of(bench, 2048, GrowingMetric("input"), KEEPS[what], stability=1.0)
    else:
        operator = bench.operator(memory_limit=0 if what == "limited" else None)
        extremes = lanczos(products(operator), random_start(operator.zeros(), 0), max_steps=8, tolerance=0.0)
        assert extremes.steps == 8


def child(what: str, batch: int, activation: str) -> None:
    """Peak resident memory of one kind of work above what was there before it, as JSON on stdout."""
    bench = Bench(getattr(nn, activation), 8, torch.device("cpu"))
    bench.batch = batch
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")  # forget the peak so far
    before = _resident("VmRSS")
    started = time.process_time()
    _do(bench, what)
    seconds = time.process_time() - started
    print(json.dumps({"mebibytes": _resident("VmHWM") - before, "seconds": seconds}))


def _resident(which: str) -> float:
    """The resident memory (``VmRSS``) or its peak (``VmHWM``) in MiB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(which)) / 1024


def _in_a_process(what: str, batch: int, activation: str) -> dict[str, float]:
    arguments = ["--child", what, "--batch", str(batch), "--activation", activation]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.analyser.speed", *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _on_cuda(what: str, bench: Bench) -> dict[str, float]:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(bench.device)
    torch.cuda.reset_peak_memory_stats(bench.device)
    seconds = clock(bench.device, lambda: _do(bench, what))
    peak = torch.cuda.max_memory_allocated(bench.device) - before
    return {"mebibytes": peak / 2**20, "seconds": seconds}


def measure_memory(bench: Bench, activation: str) -> dict[str, Any]:
    """Of every kind of work in `WORK`, over that of a training step at the same batch size."""
    found = {
        what: _on_cuda(what, bench)
        if bench.device.type == "cuda"
        else _in_a_process(what, bench.batch, activation)
        for what in WORK
    }
    step = found["step"]["mebibytes"]
    whole = {
        keep: {
            "steps": found[keep]["mebibytes"] / step,
            "times": found[keep]["seconds"] / found["everything"]["seconds"],
            "default": limit is None,
        }
        for keep, limit in KEEPS.items()
    }
    return {
        "batch": bench.batch,
        **{what: found[what]["mebibytes"] for what in ("step", "analysis", "limited")},
        "ratio": found["analysis"]["mebibytes"] / step,
        "whole": whole,
    }
