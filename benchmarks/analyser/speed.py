"""Speed and memory of the analyser on a MobileNetV1 (width 0.25, 32 x 32 input).

    OMP_NUM_THREADS=1 python -m benchmarks.analyser.speed [--device cuda] [--batch 128] [--samples 2048]

1. One product S·v over all groups against one training step on the same batch, alternating, ratio pair by
   pair; the whole analysis of ``--samples`` samples against an epoch of 50,000, as `analyse` does it (it
   stops when the ranking is stable) and made to use all of them.
2. Time until both ends of every channel are within 1 % of the spectral radius, against the published method:
   descent (and ascent) on the Rayleigh quotient with RMSprop, products by automatic differentiation, one end
   at a time. Its learning rate is the better of two, and it sees the same fixed batch, so no noise is held
   against it.
3. The block of a single neuron with curvlinops' Hessian operator and SciPy's eigsh, if it is installed.
4. Peak memory of capture and products against a training step, each in a process of its own, and of a whole
   analysis by what it keeps between products.
5. What `auto` counts for dense and Lanczos against the time they take, group by group.
6. What stopping early costs: the decrease of the plan it chooses by the exact spectrum.
7. What the ends of an earlier round would be worth as a start of Lanczos, by the training since.
8. The share of the multiply-adds per second of a large convolution that one product reaches, and the widest
   MobileNetV1 that is analysed within the memory and ``--largest-seconds``.

On a CPU times are those of the process (``time.process_time``) with one thread, so that other work on the
machine disturbs little; on CUDA they are event times. Results go to results/analyser_speed.json, or
analyser_speed_cuda.json, and RESULTS.md.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.analyser.memory import WORK, child, measure_memory
from benchmarks.analyser.problem import KEEPS, MICRO_BATCH, Bench, clock, spectra_of
from benchmarks.analyser.reach import measure_largest, measure_share
from benchmarks.analyser.rivals import measure_curvlinops, measure_ends
from benchmarks.analyser.speed_report import summary
from benchmarks.analyser.starts import measure_starts
from benchmarks.common import record
from benchmarks.common.command import run_command
from growpipe.analyser.api import analyse
from growpipe.analyser.candidates import Candidates
from growpipe.analyser.choice.growth_limits import GrowthLimits
from growpipe.analyser.choice.selection import select
from growpipe.analyser.curvature.closed_form import find_chain
from growpipe.analyser.curvature.metric import GrowingMetric
from growpipe.analyser.curvature.operator import SplittingProducts
from growpipe.analyser.options import GrowthOptions
from growpipe.analyser.schemes import ROWS, scheme_of
from growpipe.analyser.spectra.dense import Columns
from growpipe.analyser.spectra.drive import Iteration, StoppingRule, drive, lanczos, random_start
from growpipe.analyser.spectra.recurrence import Recurrence
from growpipe.analyser.spectra.solvers import PRODUCTS_TO_NOISE, counted_work
from growpipe.analyser.spectra.spectra import BLOCK, Spectra

EPOCH = 50_000


def measure_product(bench: Bench, repeats: int) -> dict[str, Any]:
    """S·v against a training step, alternating."""
    operator = bench.operator()
    vectors = random_start(operator.zeros(), 0)
    operator.apply(vectors)
    pairs = [
        (clock(bench.device, bench.step), clock(bench.device, lambda: operator.apply(vectors)))
        for _ in range(repeats)
    ]
    ratios = sorted(product / step for step, product in pairs)
    return {
        "step_seconds": statistics.median(step for step, _ in pairs),
        "product_seconds": statistics.median(product for _, product in pairs),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        "groups": len(operator.groups),
        "channels": sum(group.width for group in operator.groups),
        "closed_forms": sum(find_chain(group) is not None for group in operator.groups),
    }


def measure_analysis(
    bench: Bench, samples: int, step_seconds: float, stability: float = 0.95
) -> dict[str, Any]:
    """The analysis against an epoch of training; the median of three."""
    found: list[Spectra] = []

    def work() -> None:
        found.append(spectra_of(bench, samples, GrowingMetric("input"), stability=stability))

    def generous() -> None:
        spectra_of(bench, samples, GrowingMetric("input"), KEEPS["everything"], stability=stability)

    prepared = clock(bench.device, bench.prepare)
    pairs = [(clock(bench.device, work), clock(bench.device, generous)) for _ in range(3)]
    runs = sorted(default for default, _ in pairs)
    epoch = step_seconds * EPOCH / bench.batch
    return {
        "samples": samples,
        "stability": stability,
        "seconds": runs[1],
        "seconds_of_all": runs,
        "export_seconds": prepared,
        "share_of_an_epoch": runs[1] / epoch,
        "share_keeping_everything": sorted(everything for _, everything in pairs)[1] / epoch,
        "stages": [asdict(stage) for stage in found[0].stages],
    }


def measure_whole(bench: Bench, samples: int, step_seconds: float) -> dict[str, Any]:
    """`analyse` from module to plan, export and trials included, against an epoch of training."""
    epoch = step_seconds * EPOCH / bench.batch
    model = copy.deepcopy(bench.model)
    shares: dict[str, Any] = {"samples": samples}
    for ranking in ("predicted", "realised"):
        batches = [
            (bench.x[i : i + bench.batch], bench.y[i : i + bench.batch])
            for i in range(0, samples, bench.batch)
        ]

        def work(ranking: str = ranking, batches: list[tuple[Tensor, Tensor]] = batches) -> None:
            analyse(model, cross_entropy, batches, (bench.x[:2],), ranking=ranking, max_samples=samples)

        shares[ranking] = clock(bench.device, work) / epoch
    return shares


EXHAUSTED = StoppingRule(tolerance=0.0)
"""Goes on until all products are spent."""

STOPS: dict[str, dict[str, float]] = {
    "as analyse does it": {},
    "all samples": {"stability": 1.0},
    "all samples, and products until every end is within 1 %": {"stability": 1.0, "noise_share": 0.0},
    "until the ranking is stable, every end within 1 %": {"noise_share": 0.0},
}


def measure_solvers(bench: Bench, largest: int = 64, repeats: int = 5) -> list[dict[str, Any]]:
    """Dense against Lanczos, group by group on one batch: what ``auto`` counts, and the time they take."""
    operator = bench.operator()
    metric = GrowingMetric("input")(operator)
    start = random_start(operator.zeros(), 0, BLOCK)
    rows = []
    for position, (group, work) in enumerate(zip(operator.groups, operator.work(), strict=True)):
        if group.dimension > largest:
            continue

        def apply(vectors: dict[int, Tensor], position: int = position) -> dict[int, Tensor]:
            whole, _ = operator.apply_halves({position: metric.raw(position, vectors[0])})
            return {0: metric.white(position, whole[position])}

        v = start[position]
        runs: dict[str, Callable[[], Iteration]] = {
            "dense": lambda v=v: Columns(v[0]),
            "lanczos": lambda v=v: Recurrence(v, PRODUCTS_TO_NOISE),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, run in runs.items():
                # As from a random start on real data: a preview at every product from the fourth on.
                one = {0: run()}
                seconds[name].append(clock(bench.device, lambda one=one: drive(apply, one, EXHAUSTED)))
        counted = counted_work(group.dimension, work, PRODUCTS_TO_NOISE)
        pairs = zip(seconds["dense"], seconds["lanczos"], strict=True)
        rows.append(
            {
                "group": group.name,
                "width": group.width,
                "dimension": group.dimension,
                "counted": counted["dense"] / counted["lanczos"],
                "measured": statistics.median(dense / lanczos for dense, lanczos in pairs),
            }
        )
    return rows


def measure_choice(bench: Bench, samples: int) -> dict[str, Any]:
    """What stopping early costs: the decrease of a plan by the exact spectrum on all samples.

    The plan is chosen with each rule of `STOPS` at a growth of 30 %. ``choice``: by how much the decrease of
    its rows falls short of the best plan's, with exact eigenvectors. ``choice_and_directions``: the same with
    the eigenvectors that the rule has found.
    """
    scheme, limits = scheme_of("m4", 3.0), GrowthLimits(GrowthOptions(balance=0.0), None)
    operator = SplittingProducts(bench.prepared.program)
    for start in range(0, samples, MICRO_BATCH):
        stop = start + MICRO_BATCH
        operator.add((bench.x[start:stop],), bench.y[start:stop], cross_entropy)
    metric = GrowingMetric("input")(operator)
    names = [group.name for group in operator.groups]

    def apply(vectors: dict[int, Tensor]) -> dict[int, Tensor]:
        whole, _ = operator.apply_halves({i: metric.raw(i, v) for i, v in vectors.items()})
        return {i: metric.white(i, v) for i, v in whole.items()}

    exact = lanczos(apply, random_start(operator.zeros(), 1), tolerance=1e-5, max_steps=200)

    def decrease(rows: dict[str, Any], minus: list[Tensor], plus: list[Tensor]) -> float:
        """−Σ w δᵀSδ of the chosen rows, δ made of the given unit vectors."""
        products = apply({i: torch.stack(pair) for i, pair in enumerate(zip(minus, plus, strict=True))})
        total = 0.0
        for i, name in enumerate(names):
            ends, images = (minus[i].double(), plus[i].double()), products[i].double()
            q = [[(a * b).sum(1) for b in images] for a in ends]
            for channel, row in enumerate(rows[name]):
                for one in ROWS[row].offspring(scheme.c) if row >= 0 else ():
                    total -= one.weight * float(
                        one.minus**2 * q[0][0][channel]
                        + 2 * one.minus * one.plus * q[0][1][channel]
                        + one.plus**2 * q[1][1][channel]
                    )
        return total

    def chosen(candidates: Sequence[Candidates]) -> dict[str, Any]:
        return dict(select(candidates, bench.prepared.groups.cost, limits).rows)

    ends = zip(names, exact.low, exact.high, strict=True)
    best = chosen([Candidates.of(n, low.numpy(), high.numpy(), scheme) for n, low, high in ends])
    full = decrease(best, exact.minus, exact.plus)
    results = {}
    for rule, options in STOPS.items():
        found = spectra_of(bench, samples, GrowingMetric("input"), **options)
        rows = chosen(found.candidates)
        sides = []
        for side in (found.directions.minus, found.directions.plus):
            white = metric.from_raw([torch.from_numpy(side[name]).to(bench.device) for name in names])
            sides.append([v / torch.linalg.vector_norm(v, dim=1, keepdim=True) for v in white])
        results[rule] = {
            "samples": found.stages[-1].samples,
            "stages": [asdict(stage) for stage in found.stages],
            "choice": 1 - decrease(rows, exact.minus, exact.plus) / full,
            "choice_and_directions": 1 - decrease(rows, *sides) / full,
        }
    return {"exact_products": exact.steps, "rules": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--activation", default="SiLU")
    parser.add_argument("--published-steps", type=int, default=300, help="per end and learning rate")
    parser.add_argument(
        "--largest-seconds", type=float, default=30, help="for an analysis of the largest network"
    )
    parser.add_argument("--child", choices=WORK, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.batch, arguments.activation)
        return
    device = torch.device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    bench = Bench(getattr(nn, arguments.activation), arguments.batch, device)
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "activation": arguments.activation,
        "batch": arguments.batch,
    }

    def take(name: str, work: Callable[[], dict[str, Any]]) -> None:
        results[name] = work()
        print(f"{name}: {results[name]}", file=sys.stderr, flush=True)

    take("product", lambda: measure_product(bench, arguments.repeats))
    step = results["product"]["step_seconds"]
    take("analysis", lambda: measure_analysis(bench, arguments.samples, step))
    take("analysis_of_all", lambda: measure_analysis(bench, arguments.samples, step, stability=1.0))
    take("share", lambda: measure_share(bench, results["product"]["product_seconds"]))
    take("memory", lambda: measure_memory(bench, arguments.activation))
    take("whole", lambda: measure_whole(bench, arguments.samples, step))
    take("solvers", lambda: {"groups": measure_solvers(bench)})
    take("choice", lambda: measure_choice(bench, arguments.samples))
    take("curvlinops", lambda: measure_curvlinops(bench, 8))
    take("ends", lambda: measure_ends(bench, arguments.published_steps))
    activation = getattr(nn, arguments.activation)
    take("starts", lambda: measure_starts(activation, arguments.batch, device))
    take("largest", lambda: measure_largest(activation, arguments.batch, device, arguments.largest_seconds))
    name = "analyser_speed" if device.type == "cpu" else f"analyser_speed_{device.type}"
    record.append(name, results)
    record.summarise(name, summary(results))
    print(summary(results))


if __name__ == "__main__":
    run_command(main)
