"""What `analyse` costs with its defaults, everything counted, as a share of an epoch of training.

    OMP_NUM_THREADS=1 python -m benchmarks.analyser.price [NETWORK ...] [--samples 2048] [--device cuda]
        [--products auto|whole|rounded]

Each network trains for a few steps, then `analyse` runs on it: export, spectra, trials, line search, plan.
Training steps are timed before and after it in the same process, and the share is of 50,000 samples at their
mean. One process per network; a network that takes more than ``--seconds`` is a row that says so. The first
analysis of a process pays for torch's exporter being loaded, so that the export is also timed once more.
The work that was announced before the analysis is compared with what it was, in time and in counts.
Training steps are those of float32. Steps under torch.autocast are timed as well, for those who train so.

On a CPU times are those of the process with one thread; on CUDA they are event times. Results go to
results/analyser_price.json and RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from typing import Any

import torch

from benchmarks.analyser.networks import NETWORKS
from benchmarks.analyser.problem import clock
from benchmarks.common import record
from benchmarks.common.command import run_command
from growpipe.analyser.analysis import analysis_of
from growpipe.analyser.curvature.closed_form import find_chain
from growpipe.analyser.curvature.operator import SplittingProducts
from growpipe.analyser.options import AnalysisOptions, GrowthOptions
from growpipe.analyser.preparation import prepare
from growpipe.analyser.spectra.drive import random_start
from growpipe.analyser.watch import Watch
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.outputs import denormals_as_zero

EPOCH = 50_000
PRODUCTS = {"auto": None, "whole": False, "rounded": True}
PHASES = ("export", "spectra", "trials", "line search", "plan")


class Clocks(Watch):
    """The time of every phase."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.work, self.expected, self.corrected = 0.0, (0.0, 0.0), 0.0
        self._unit = 0.0
        self._phase: str | None = None
        self._began = self._now()

    def _now(self) -> Any:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        return resource.getrusage(resource.RUSAGE_SELF)

    def phase(self, name: str) -> None:
        now = self._now()
        if self._phase is not None:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
                passed = self._began.elapsed_time(now) / 1000
            else:
                passed = sum(getattr(now, k) - getattr(self._began, k) for k in ("ru_utime", "ru_stime"))
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + passed
        self._phase, self._began = name, now

    def advance(self, work: float) -> None:
        self.work += work

    def expect(self, least: float, most: float, seconds: float) -> None:
        self.expected, self._unit = (least * seconds, most * seconds), seconds

    def correct(self, most: float) -> None:
        self.corrected = most * self._unit


def measure(name: str, samples: int, device: torch.device, ranking: str, products: str) -> dict[str, Any]:
    """One network, in this process."""
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = network.build().to(device)
    # As many unseen samples as the trials want at most.
    task = network.task(samples + min(512, samples // 4))
    optimizer = torch.optim.SGD(model.parameters(), task.rate, momentum=0.9)
    batches = [(x.to(device), y.to(device)) for x, y in task.batches()]

    def step(number: int) -> None:
        x, y = batches[number % len(batches)]
        optimizer.zero_grad()
        task.loss(model(x), y).backward()
        if task.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), task.clip)
        optimizer.step()

    def steps(count: int) -> list[float]:
        model.train()
        found = [clock(device, lambda number=number: step(number)) for number in range(count)]
        model.eval()
        return found

    steps(10)
    before = steps(5)
    peak = peak_memory(device)
    clocks = Clocks(device)
    example = (task.inputs[:2].to(device),)
    single = {"max_samples": samples, "ranking": ranking, "rounded_products": PRODUCTS[products]}
    options = AnalysisOptions.of(None, None, None, single)
    analysis = analysis_of(model, task.loss, batches, example, options, None, clocks)
    clocks.phase("end")
    after = peak_memory(device)
    here = model if device.type == "cpu" else model.cpu()
    cpu = torch.device("cpu")
    again = clock(cpu, lambda: export_growth_form(here, (task.inputs[:2],)).groups())
    model.to(device)
    seconds = statistics.median([*before, *steps(5)]) / task.batch
    report = analysis.report
    ratio = product(model, task, device, seconds, report.rounded_products)
    with torch.autocast(device.type, torch.bfloat16):
        autocast = statistics.median(steps(6)[1:]) / task.batch
    return {
        "network": name,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "samples": samples,
        "ranking": ranking,
        "products": products,
        "rounded": report.rounded_products,
        "autocast_step": autocast / seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "groups": len(report.groups),
        "largest_dimension": max(group.dimension for group in report.groups.values()),
        "step_seconds": seconds * task.batch,
        "batch": task.batch,
        "epoch_seconds": seconds * EPOCH,
        "seconds": clocks.seconds,
        "export_again_seconds": again,
        "share": sum(clocks.seconds.values()) / (seconds * EPOCH),
        "announced": clocks.expected,
        "corrected": clocks.corrected,
        "counted": clocks.work * seconds,
        "stages": [[s.samples, round(s.products_per_group, 1)] for s in report.stages],
        "epsilon": analysis.plan.epsilon,
        "realised": analysis.plan.realised_change,
        "peak_training": peak,
        "peak": after,
        "product": ratio,
    }


def peak_memory(device: torch.device) -> int:
    """The most memory the process has held, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def product(
    model: torch.nn.Module, task: Any, device: torch.device, seconds: float, rounded: bool
) -> dict[str, Any]:
    """One S·v over all groups of one batch, what it needs of the batch kept, against a training step."""
    program = prepare(model, (task.inputs[:2],), GrowthOptions(), device).program
    operator = SplittingProducts(program.with_rounded_factors() if rounded else program)
    x, y = task.inputs[: task.batch].to(device), task.targets[: task.batch].to(device)
    vectors = random_start(operator.zeros(), 0)
    with denormals_as_zero():  # as in an analysis
        operator.add((x,), y, task.loss)
        operator.apply(vectors)
        took = statistics.median(clock(device, lambda: operator.apply(vectors)) for _ in range(5))
    chains = sum(find_chain(group) is not None for group in operator.groups)
    return {"ratio": took / (seconds * task.batch), "chains": chains}


def summary(rows: list[dict[str, Any]]) -> str:
    """The section of ``RESULTS.md``."""
    columns = [
        "network", "samples", "groups", "largest d", "step, ms", "export (again)", "spectra", "trials",
        "line search", "plan", "all", "wanted", "announced", "S·v / step", "peak / training", "factors",
        "autocast",
    ]  # fmt: skip
    lines = [
        "## The price of an analysis",
        "",
        "`python -m benchmarks.analyser.price`: `analyse` as a user calls it, everything counted, as a share",
        f"of {EPOCH:,} samples of training at the same batch. *again*: the export in a process that has",
        "exported before; a run gives the export that it has. *announced*: what the analysis said after the",
        "first products of the first set that it judges, without the export: at least, if the ranking is",
        "stable there, and at most; *then* at most, as it said before the last set. *peak*: of the memory of",
        "the whole process, against that before.",
        "*factors*: what spectra and trials multiply, rounded to bfloat16 or whole. *autocast*: a training",
        "step under `torch.autocast` in those of float32, in which all shares are given.",
        "",
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
    ]
    for row in rows:
        cells = [row["network"], str(row["samples"])]
        if "seconds" in row:
            epoch, wanted = row["epoch_seconds"], NETWORKS[row["network"]].wanted
            shares = [f"{row['seconds'].get(phase, 0.0) / epoch:.3f}" for phase in PHASES]
            shares[0] += f" ({row['export_again_seconds'] / epoch:.3f})"
            cells += [
                str(row["groups"]), str(row["largest_dimension"]), f"{1000 * row['step_seconds']:.0f}",
                *shares, f"**{row['share']:.3f}**", "" if wanted is None else f"{wanted:.2f}",
                announced(row), f"{row['product']['ratio']:.2f}",
                f"{row['peak'] / row['peak_training']:.1f}",
                "rounded" if row.get("rounded") else "whole",
                f"{row['autocast_step']:.2f}" if "autocast_step" in row else "",
            ]  # fmt: skip
        else:
            cells.append(row["failure"])
        lines.append("| " + " | ".join(cells + [""] * (len(columns) - len(cells))) + " |")
    return "\n".join(lines)


def announced(row: dict[str, Any]) -> str:
    """What was announced, as shares of an epoch; rows of earlier revisions have the larger end alone."""
    found = row["announced"]
    ends = found if isinstance(found, list) else [found]
    told = " to ".join(f"{end / row['epoch_seconds']:.3f}" for end in ends)
    corrected = row.get("corrected")
    return f"{told}, then {corrected / row['epoch_seconds']:.3f}" if corrected else told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["mobilenet"], choices=[*NETWORKS])
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--ranking", default="realised")
    parser.add_argument("--products", default="auto", choices=PRODUCTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=900, help="for one network")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    if arguments.child:
        (name,) = arguments.networks
        print(json.dumps(measure(name, arguments.samples, device, arguments.ranking, arguments.products)))
        return
    for name in arguments.networks:
        command = [
            sys.executable, "-W", "ignore", "-m", "benchmarks.analyser.price", "--child", name,
            "--samples", str(arguments.samples), "--ranking", arguments.ranking, "--device", arguments.device,
            "--products", arguments.products,
        ]  # fmt: skip
        row: dict[str, Any] = {
            "network": name,
            "samples": arguments.samples,
            "products": arguments.products,
        }
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.seconds)
        except subprocess.TimeoutExpired:
            row["failure"] = f"not done after {arguments.seconds:.0f} s"
        else:
            lines = done.stdout.strip().splitlines()
            row = json.loads(lines[-1]) if done.returncode == 0 else row
            if done.returncode:
                row["failure"] = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        print(json.dumps(row), flush=True)
        record.append("analyser_price", row)
    path = record.FOLDER / "results" / "analyser_price.json"
    latest: dict[tuple[str, int, str], dict[str, Any]] = {}
    for row in json.loads(path.read_text()):
        if row.get("ranking", "realised") == "realised":
            latest[row["network"], row["samples"], row.get("products", "auto")] = row
    record.summarise("analyser_price", summary(list(latest.values())))


if __name__ == "__main__":
    run_command(main)
