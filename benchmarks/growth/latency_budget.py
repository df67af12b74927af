"""A budget of milliseconds: how good the estimate is, how well the limit is kept, what aligning buys.

    OMP_NUM_THREADS=1 python -m benchmarks.growth.latency_budget

For each seed network, in onnxruntime, one thread, one sample:

1. The estimate of `MeasuredLatency` at random widths up to twice the seed's, against what such networks take;
   beside it the time in proportion to MACs.
2. Selections under limits of 1.25 and 1.5 times the seed's milliseconds: what the network takes that was
   chosen, and how many were measured on the way. Directions and gains are random: what is measured here is
   how a limit is kept.
3. The same with widths in multiples of 8 and 16: how many MACs as many milliseconds buy.

Results go to results/latency_budget.json and RESULTS.md.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common import record
from benchmarks.common.command import run_command
from growpipe.analyser.candidates import Candidates
from growpipe.analyser.choice.growth_limits import GrowthLimits
from growpipe.analyser.choice.spending import spend
from growpipe.analyser.options import GrowthOptions
from growpipe.analyser.schemes import scheme_of
from growpipe.budgets.budget import GrowthBudget
from growpipe.budgets.measured_latency import MeasuredLatency
from growpipe.graph_ops.errors import NothingToSplit
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.models import convnet, mobilenet, pointcloud
from growpipe.torch_module.export import export_growth_form

NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convnet 8-16-24-32": (lambda: convnet.build((8, 16, 24, 32)), (3, 32, 32)),
    "convnet 22-29-44-59": (lambda: convnet.build((22, 29, 44, 59)), (3, 32, 32)),
    "MobileNetV1, seed of arXiv 2003.10392": (mobilenet.build_v1, (3, 32, 32)),
    "DGCNN": (
        lambda: pointcloud.build_dgcnn(widths=[8, 8, 16], embedding=32, hidden=[16], k=8, graph="space"),
        (256, 3),
    ),
    "PointNet": (pointcloud.build_pointnet, (256, 3)),
}
LIMITS = (1.25, 1.5)
ALIGNED = (1, 8, 16)


class Counted:
    """A latency that counts the networks it measures."""

    def __init__(self, latency: MeasuredLatency) -> None:
        self.latency, self.networks = latency, 0
        self.unit, self.resolution = latency.unit, latency.resolution

    def of(self, widths: Mapping[str, int]) -> float:
        return self.latency.of(widths)

    def tried(self, widths: Mapping[str, int]) -> float:
        self.networks += 1
        return self.latency.tried(widths)


def measure(build: Callable[[], nn.Module], shape: tuple[int, ...], random: int) -> dict[str, Any]:
    torch.manual_seed(0)
    graph = export_growth_form(build().eval(), (torch.rand(2, *shape),)).graph
    sample = {str(graph.graph.inputs[0].name): np.random.default_rng(0).random((1, *shape), dtype=np.float32)}
    started = time.perf_counter()
    latency = MeasuredLatency(graph, sample)
    seconds = time.perf_counter() - started
    groups = find_channel_groups(graph)
    own = {group.name: group.width for group in groups.groups}
    free = {group.name: group.width for group in groups.groups if group.splittable}
    macs = groups.cost.macs()
    rng = np.random.default_rng(1)
    errors: list[dict[str, float]] = []
    for _ in range(random):
        widths = {**own, **{name: int(rng.integers(width, 2 * width + 1)) for name, width in free.items()}}
        truth = latency.tried(widths)
        errors.append(
            {
                "milliseconds": truth,
                "estimate": latency.of(widths) / truth - 1,
                "by_macs": latency.own * groups.cost.macs(widths) / macs / truth - 1,
            }
        )
    candidates = [
        Candidates.of(name, -rng.uniform(0, 1, width), rng.uniform(0, 1, width), scheme_of("m4", 1.25))
        for name, width in free.items()
    ]
    kept = []
    for share, align in itertools.product(LIMITS, ALIGNED):
        counted = Counted(latency)
        limits = GrowthLimits(
            GrowthOptions(align=align, max_factor=8.0),
            GrowthBudget(cost=counted, limit=share * latency.own),
        )
        row: dict[str, Any] = {"share": share, "align": align}
        try:
            found = spend(candidates, groups.cost, limits, sum(free.values()), own)
            assert found.cost is not None
            row |= {
                "of_limit": found.cost / (share * latency.own),
                "macs": groups.cost.macs(found.selection.widths) / macs,
                "again": latency.tried({**own, **found.selection.widths}) / (share * latency.own),
            }
        except NothingToSplit as nothing:
            row["nothing"] = str(nothing)
        kept.append({**row, "networks": counted.networks})
    return {
        "groups": len(free),
        "milliseconds": latency.own,
        "seconds": seconds,
        "random": errors,
        "kept": kept,
    }


def summary(results: Mapping[str, dict[str, Any]]) -> str:
    def rms(rows: list[dict[str, float]], key: str) -> str:
        return f"{100 * np.sqrt(np.mean([row[key] ** 2 for row in rows])):.0f} %"

    lines = [
        "## Growth to a budget of milliseconds (`latency_budget.py`)",
        "",
        "onnxruntime, CPU, one thread, one sample, deploy form. *fit*: the seconds it takes to measure the "
        "networks of the fit. *error*: root mean square at random widths of up to twice the seed's.",
        "",
        "| seed network | ms | groups | fit, s | error of the estimate | in proportion to MACs |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        rows = result["random"]
        lines.append(
            f"| {name} | {result['milliseconds']:.3f} | {result['groups']} | {result['seconds']:.0f} | "
            f"{rms(rows, 'estimate')} | {rms(rows, 'by_macs')} |"
        )
    lines += [
        "",
        "Limits of 1.25 and 1.5 times those milliseconds. In each cell: what the chosen network took over "
        "the limit when it was chosen / when it was measured again; networks tried, the seed included; "
        "**its MACs over the seed's**.",
        "",
        "| seed network | limit | " + " | ".join(f"align {align}" for align in ALIGNED) + " |",
        "|---|---|" + "---|" * len(ALIGNED),
    ]
    for name, result in results.items():
        for share in LIMITS:
            cells = [
                "nothing fits"
                if "nothing" in row
                else f"{row['of_limit']:.2f} / {row['again']:.2f}; {row['networks']}; **{row['macs']:.2f}**"
                for row in result["kept"]
                if row["share"] == share
            ]
            lines.append(f"| {name} | {share} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--random", type=int, default=12, help="networks of random widths")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name, (build, shape) in NETWORKS.items():
        results[name] = measure(build, shape, args.random)
        print(f"{name}: done", flush=True)
    record.append("latency_budget", {"networks": results})
    text = summary(results)
    record.summarise("latency_budget", text)
    print(text)


if __name__ == "__main__":
    run_command(main)
