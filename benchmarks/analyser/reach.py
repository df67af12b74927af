"""How much of the device an analysis uses, and how large a network it reaches."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import nn

from benchmarks.analyser.problem import Bench, clock, spectra_of
from growpipe.analyser.curvature.metric import GrowingMetric

SAMPLES = 256
"""Of the analyses of ever larger networks."""


def conv_limit(device: torch.device, repeats: int = 10) -> float:
    """Multiply-adds per second of a convolution that suits any device: 3 x 3, 256 to 256 channels."""
    batch, channels, size = 32, 256, 32
    x = torch.randn(batch, channels, size, size, device=device)
    weight = torch.randn(channels, channels, 3, 3, device=device)

    def work() -> None:
        nn.functional.conv2d(x, weight, padding=1)

    work()
    seconds = statistics.median(clock(device, work) for _ in range(repeats))
    return batch * channels**2 * 9 * size**2 / seconds


def measure_share(bench: Bench, product_seconds: float) -> dict[str, Any]:
    """The multiply-adds that one S·v over all groups needs, per second, over `conv_limit`."""
    operator = bench.operator()
    works = zip(operator.groups, operator.work(), strict=True)
    needed = sum(group.width * work for group, work in works)
    limit = conv_limit(bench.device)
    return {
        "multiply_adds": needed,
        "conv_limit": limit,
        "share": needed / product_seconds / limit,
        "tf32": bool(torch.backends.cudnn.allow_tf32),
    }


def measure_largest(
    activation: type[nn.Module], batch: int, device: torch.device, most_seconds: float
) -> dict[str, Any]:
    """The widest MobileNetV1, by doubling, whose analysis ends within the memory and the time."""
    found: list[dict[str, Any]] = []
    width = 0.25
    while True:
        try:
            bench = Bench(activation, batch, device, width)
            seconds = clock(device, lambda bench=bench: spectra_of(bench, SAMPLES, GrowingMetric("input")))
        except torch.OutOfMemoryError:
            stopped = f"at width {width:g} memory ran out"
            break
        if seconds > most_seconds:
            stopped = f"width {width:g} took {seconds:.0f} s"
            break
        groups = bench.prepared.program.groups
        found.append(
            {
                "width": width,
                "parameters": sum(p.numel() for p in bench.model.parameters()),
                "channels": sum(group.width for group in groups),
                "largest_dimension": max(group.dimension for group in groups),
                "seconds": seconds,
            }
        )
        width *= 2
    return {"samples": SAMPLES, "most_seconds": most_seconds, "stopped": stopped, "networks": found}
