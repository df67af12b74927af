"""What the benchmarks of the analyser are about: one network, its training step, its analysis, a clock."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from growpipe.analyser.curvature.metric import GrowingMetric
from growpipe.analyser.curvature.operator import SplittingProducts
from growpipe.analyser.options import GrowthOptions, SpectraOptions
from growpipe.analyser.preparation import Subject, prepare
from growpipe.analyser.resources import default_memory
from growpipe.analyser.samples import collect
from growpipe.analyser.schemes import scheme_of
from growpipe.analyser.spectra.analysis_set import GrowingSet
from growpipe.analyser.spectra.drive import Apply
from growpipe.analyser.spectra.spectra import Spectra, measure_spectra
from growpipe.parallel.processes import processes

MICRO_BATCH = SpectraOptions().micro_batch

KEEPS: dict[str, dict[str, Any] | None] = {
    "what it does by default": None,
    "everything": {"memory_limit": None},
    "everything in bfloat16": {"memory_limit": None, "storage": torch.bfloat16},
    "nothing": {"memory_limit": 0},
}
"""What a whole analysis of 2,048 samples keeps between products."""


def mobilenet(activation: type[nn.Module], width: float, classes: int = 10, depth: int = 1) -> nn.Sequential:
    """MobileNetV1: a strided convolution, thirteen depthwise-separable blocks, a pooled classifier.

    With a ``depth`` every block is followed by ``depth - 1`` of its output's shape.
    """

    def channels(n: int) -> int:
        return int(n * width)

    def block(i: int, o: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(i, i, 3, stride, 1, groups=i, bias=False), nn.BatchNorm2d(i), activation(),
            nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o), activation(),
        ]  # fmt: skip

    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    last = channels(32)
    layers = [nn.Conv2d(3, last, 3, 2, 1, bias=False), nn.BatchNorm2d(last), activation()]
    for out, stride in plan:
        for number in range(depth):
            layers += block(last, channels(out), 1 if number else stride)
            last = channels(out)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes))


class Bench:
    """The network after a few training steps on images with structure, and its training step."""

    def __init__(
        self, activation: type[nn.Module], batch: int, device: torch.device, width: float = 0.25
    ) -> None:
        torch.manual_seed(0)
        self.device, self.batch = device, batch
        self.model = mobilenet(activation, width).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.05, momentum=0.9)
        prototypes = torch.randn(10, 3, 8, 8)
        self.y = torch.randint(0, 10, (2048,))
        small = prototypes[self.y] + 0.7 * torch.randn(2048, 3, 8, 8)
        self.x = nn.functional.interpolate(small, size=(32, 32), mode="bilinear").to(device)
        self.y = self.y.to(device)
        for start in range(0, 2048, batch):
            self.step(start)
        self.prepare()

    def data(self, start: int = 0) -> tuple[Tensor, Tensor]:
        return self.x[start : start + self.batch], self.y[start : start + self.batch]

    def step(self, start: int = 0) -> None:
        x, y = self.data(start)
        self.model.train()
        self.optimizer.zero_grad()
        cross_entropy(self.model(x), y).backward()
        self.optimizer.step()

    def prepare(self) -> None:
        """Export and bind a copy of the network as it is: training goes on between products."""
        here = copy.deepcopy(self.model).cpu().eval()
        example = (self.x[:2].cpu(),)
        self.prepared = prepare(here, example, GrowthOptions(), self.device)

    def operator(self, samples: int | None = None, **options: Any) -> SplittingProducts:
        """The splitting operator over the first ``samples`` samples, one batch by default."""
        operator = SplittingProducts(self.prepared.program, **options)
        for start in range(0, self.batch if samples is None else samples, self.batch):
            x, y = self.data(start)
            operator.add((x,), y, cross_entropy)
        return operator


def clock(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds of ``work``: process time on a CPU, event time on CUDA."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000
    started = time.process_time()
    work()
    return time.process_time() - started


def products(operator: SplittingProducts) -> Apply:
    """S·v over all data, as Lanczos asks for it."""
    return lambda vectors: operator.apply_halves(vectors)[0]


def spectra_of(
    bench: Bench,
    samples: int,
    metric: GrowingMetric,
    keep: dict[str, Any] | None = None,
    **options: Any,
) -> Spectra:
    """What `analyse` measures: captures, metric and spectra of growing analysis sets.

    ``keep`` says what the operator keeps between products (as `analyse` does by default), ``options`` when
    it stops.
    """
    if keep is None:
        usual = (bench.x[:MICRO_BATCH],)
        keep = {"memory_limit": default_memory(bench.prepared.program, usual, bench.device)}
    subject = Subject(bench.model, cross_entropy, bench.prepared, processes(bench.device), bench.device)
    data, _ = collect(
        [(bench.x[:samples], bench.y[:samples])],
        max_samples=samples, micro_batch=MICRO_BATCH, device=bench.device, dtype=torch.float32,
    )  # fmt: skip
    return measure_spectra(
        GrowingSet(bench.operator(0, **keep), data, subject),
        metric,
        scheme_of("m4", 3.0),
        SpectraOptions(**options),
    )
