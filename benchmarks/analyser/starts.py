"""What the ends of an earlier round would be worth as a start, by the training since."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.analyser.problem import Bench
from growpipe.analyser.curvature.metric import GrowingMetric, Metric
from growpipe.analyser.options import SpectraOptions
from growpipe.analyser.spectra.drive import Extremes, random_start
from growpipe.analyser.spectra.solvers import Start, solve
from growpipe.analyser.spectra.spectra import BLOCK

STEPS = (0, 5, 20, 100)
"""Training steps between one analysis and the next; a round of growth takes hundreds."""


def measure_starts(
    activation: type[nn.Module], batch: int, device: torch.device, samples: int = 512
) -> dict[str, Any]:
    """Products per group on a first analysis set, from random weights and from the ends found before.

    The network does not grow in between: with the channels' copies the old ends could only fit worse.
    """
    bench = Bench(activation, batch, device)

    def found(ends: list[Tensor] | None) -> tuple[Extremes, Metric]:
        bench.prepare()
        operator = bench.operator(samples)
        metric = GrowingMetric("input")(operator)
        weights = random_start(operator.zeros(), 0, BLOCK) if ends is None else ends
        extremes, _, _ = solve(
            operator, metric, Start(metric.from_raw(weights)), SpectraOptions(solver="lanczos")
        )
        return extremes, metric

    extremes, metric = found(None)
    pairs = zip(metric.to_raw(extremes.minus), metric.to_raw(extremes.plus), strict=True)
    ends = [torch.stack(pair) for pair in pairs]
    groups = len(ends)
    rows = []
    taken = 0
    for steps in STEPS:
        for step in range(taken, steps):
            bench.step(step * batch % len(bench.x))
        taken = steps
        rows.append(
            {
                "steps": steps,
                "random": found(None)[0].group_products / groups,
                "old_ends": found(ends)[0].group_products / groups,
            }
        )
    return {"samples": samples, "rows": rows}
