"""Speed and memory of the analyser on a MobileNetV1 (width 0.25, 32 x 32 input).

    OMP_NUM_THREADS=1 python benchmarks/analyser_speed.py [--device cuda] [--batch 128] [--samples 2048]

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

On a CPU times are those of the process (``time.process_time``) with one thread, so that other work on the
machine disturbs little; on CUDA they are event times. Results go to results/analyser_speed.json, RESULTS.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import record
import torch
from analyser_speed_report import summary
from command import run_command
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from growpipe.analyser.api import analyse, growing
from growpipe.analyser.closed_form import find_chain
from growpipe.analyser.curvature import Surrogate
from growpipe.analyser.data import collect
from growpipe.analyser.dense import Columns
from growpipe.analyser.lanczos import Apply, Recurrence, Run, lanczos, random_start, run_all
from growpipe.analyser.metric import GrowingMetric
from growpipe.analyser.operator import SplittingOperator
from growpipe.analyser.preparation import default_memory, prepare
from growpipe.analyser.processes import processes
from growpipe.analyser.schemes import ROWS, scheme_of
from growpipe.analyser.selection import Candidates, Limits, select
from growpipe.analyser.solvers import PRODUCTS_TO_NOISE, counted_work
from growpipe.analyser.spectra import BLOCK, Spectra, measure_spectra

EPOCH = 50_000
MICRO_BATCH = 128
"""That of `analyse` by default."""


def mobilenet(activation: type[nn.Module], width: float = 0.25, classes: int = 10) -> nn.Sequential:
    """MobileNetV1: a strided convolution, thirteen depthwise-separable blocks, a pooled classifier."""

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
        layers += block(last, channels(out), stride)
        last = channels(out)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes))


class Bench:
    """The network after a few training steps on images with structure, and its training step."""

    def __init__(self, activation: type[nn.Module], batch: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device, self.batch = device, batch
        self.model = mobilenet(activation).to(device)
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
        self.prepared = prepare(
            copy.deepcopy(self.model).eval(), (self.x[:2],), (), ("weights",), Surrogate(), self.device
        )

    def operator(self, samples: int | None = None, **options: Any) -> SplittingOperator:
        """The splitting operator over the first ``samples`` samples, one batch by default."""
        operator = SplittingOperator(self.prepared.program, **options)
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


def products(operator: SplittingOperator) -> Apply:
    """S·v over all data, as Lanczos asks for it."""
    return lambda vectors: operator.apply_halves(vectors)[0]


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
    with processes(bench.device) as peers:
        data, _ = collect(
            [(bench.x[:samples], bench.y[:samples])],
            max_samples=samples, micro_batch=MICRO_BATCH, device=bench.device, dtype=torch.float32,
        )  # fmt: skip
        return measure_spectra(
            growing(bench.operator(0, **keep), data, cross_entropy, peers, bench.device),
            metric,
            scheme_of("m4", 3.0),
            **options,
        )


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
        "stages": found[0].facts["stages"],
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
        runs: dict[str, Callable[[], Run]] = {
            "dense": lambda v=v: Columns(v[0]),
            "lanczos": lambda v=v: Recurrence(v, PRODUCTS_TO_NOISE),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, run in runs.items():
                # As from a random start on real data: a preview at every product from the fourth on.
                one = {0: run()}
                seconds[name].append(clock(bench.device, lambda one=one: run_all(apply, one)))
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
    scheme, limits = scheme_of("m4", 3.0), Limits()
    operator = SplittingOperator(bench.prepared.program)
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
        for side in (found.minus, found.plus):
            white = metric.from_raw([torch.from_numpy(side[name]).to(bench.device) for name in names])
            sides.append([v / torch.linalg.vector_norm(v, dim=1, keepdim=True) for v in white])
        results[rule] = {
            "samples": found.facts["stages"][-1]["samples"],
            "stages": found.facts["stages"],
            "choice": 1 - decrease(rows, exact.minus, exact.plus) / full,
            "choice_and_directions": 1 - decrease(rows, *sides) / full,
        }
    return {"exact_products": exact.steps, "rules": results}


def measure_ends(bench: Bench, steps: int) -> dict[str, Any]:
    """Until both ends of every channel are within 1 % of the spectral radius."""
    operator = bench.operator()
    zeros = operator.zeros()
    exact = lanczos(products(operator), random_start(zeros, 1), tolerance=1e-7, max_steps=200)
    low, high = torch.cat(exact.low), torch.cat(exact.high)
    radius = torch.maximum(low.abs(), high.abs())
    live = radius > 1e-6 * radius.max()

    def worst(found: Tensor, true: Tensor) -> float:
        return float(((found - true).abs() / radius)[live].max())

    ours, count = None, 0
    for count in range(4, 60, 2):
        fresh, results = bench.operator(), []

        def work(fresh: SplittingOperator = fresh, n: int = count, results: list[Any] = results) -> None:
            results.append(lanczos(products(fresh), random_start(zeros, 2), tolerance=0.0, max_steps=n))

        seconds = clock(bench.device, work)
        (found,) = results
        if max(worst(torch.cat(found.low), low), worst(torch.cat(found.high), high)) <= 0.01:
            ours = seconds
            break
    published = [
        _descend(bench, sign, true, radius, live, steps) for sign, true in ((1.0, low), (-1.0, high))
    ]
    theirs = sum(run["seconds"] for run in published)
    return {
        "our_seconds": ours,
        "our_products": count,
        "published_seconds": theirs,
        "published": published,
        "published_reached": all(run["reached"] for run in published),
        "times_less": theirs / ours if ours else None,
    }


class _Descent:
    """RMSprop on ``sign`` times the Rayleigh quotients vᵀSv / vᵀv of all channels at once.

    Every step runs the network forward and backward and differentiates twice along the paths, as the
    published implementations do; nothing is kept from step to step.
    """

    def __init__(self, bench: Bench, sign: float, rate: float) -> None:
        self.operator, self.sign = bench.operator(closed_forms=False, memory_limit=0), sign
        self.vectors = random_start(self.operator.zeros(), 3)
        self.optimizer = torch.optim.RMSprop(self.vectors, lr=rate)
        self.quotients = torch.empty(0)
        self.steps = 0

    def step(self) -> None:
        """The gradient of the quotient is 2 (S v − R v) / vᵀv."""
        products = self.operator.apply(self.vectors)
        quotients = []
        for v, product in zip(self.vectors, products, strict=True):
            square = (v * v).sum(1)
            quotients.append((v * product).sum(1) / square)
            v.grad = self.sign * 2 * (product - quotients[-1][:, None] * v) / square[:, None]
        self.optimizer.step()
        self.quotients = torch.cat(quotients)
        self.steps += 1


def _descend(
    bench: Bench, sign: float, true: Tensor, radius: Tensor, live: Tensor, steps: int
) -> dict[str, Any]:
    """The published method with the better of two learning rates, until 1 % or ``steps``."""
    best: dict[str, Any] = {}
    for rate in (1e-3, 1e-2):
        descent = _Descent(bench, sign, rate)
        seconds, error = 0.0, float("inf")
        while descent.steps < steps and error > 0.01:
            seconds += clock(bench.device, descent.step)
            error = float(((descent.quotients.double().cpu() - true).abs() / radius)[live].max())
        run = {
            "rate": rate,
            "steps": descent.steps,
            "seconds": seconds,
            "worst_error": error,
            "reached": error <= 0.01,
        }
        if not best or (run["reached"], -run["seconds"] if run["reached"] else -error) > (
            best["reached"], -best["seconds"] if best["reached"] else -best["worst_error"],
        ):  # fmt: skip
            best = run
    return best


def measure_curvlinops(bench: Bench, neurons: int) -> dict[str, Any]:
    """Both ends of single neurons of the last group: eigsh on curvlinops' Hessian, and our Lanczos on all."""
    try:
        from curvlinops import HessianLinearOperator
        from scipy.sparse.linalg import eigsh
    except ImportError:
        return {"skipped": "curvlinops is not installed"}
    operator = bench.operator()
    group, position = operator.groups[-1], len(operator.groups) - 1
    chain = find_chain(group)
    assert chain is not None, "the last group is a plain chain: convolution, normalisation, activation"
    norm, _ = chain.steps
    program = operator.program
    captured = program.capture(
        bench.x[: bench.batch], bench.y[: bench.batch], cross_entropy, program.recording([group])
    )
    values = program.run_path([group], captured, {b.tensor: program.tensor(b.tensor) for b in group.blocks})
    read = program.reader([group], captured, values)
    inputs = read(chain.inputs, chain.producer)
    (edge,) = group.edges
    gradient = captured.gradients[edge]
    weight = program.tensor(group.blocks[0].tensor)

    class Neuron(nn.Module):
        """σ of one channel, from the producer's filter to the consumer's input."""

        def __init__(self, channel: int) -> None:
            super().__init__()
            self.filter = nn.Parameter(weight[channel : channel + 1].clone())
            self.scale, self.shift, self.mean, self.var = (
                read(norm.args[k], norm)[channel] for k in range(1, 5)
            )

        def forward(self, x: Tensor) -> Tensor:
            u = nn.functional.conv2d(x, self.filter)
            y = (u - self.mean) * torch.rsqrt(self.var + 1e-5) * self.scale + self.shift
            return (y * torch.sigmoid(y)).mean((2, 3))  # curvlinops differentiates forward, silu does not

    class Inner(nn.Module):
        """⟨g, e⟩, whose Hessian is the splitting matrix."""

        reduction = "sum"

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return (output * target).sum()

    loss = Inner()

    errors = []
    exact = lanczos(products(operator), random_start(operator.zeros(), 1), tolerance=1e-7, max_steps=200)

    def work() -> None:
        for channel in range(neurons):
            neuron = Neuron(channel)
            data = [(inputs, gradient[:, channel : channel + 1])]
            hessian = HessianLinearOperator(
                neuron, loss, list(neuron.parameters()), data, check_deterministic=False
            ).to_scipy()
            ends = [
                float(eigsh(hessian, k=1, which=w, tol=1e-2, return_eigenvectors=False)[0])
                for w in ("SA", "LA")
            ]
            true = (float(exact.low[position][channel]), float(exact.high[position][channel]))
            errors.append(max(abs(a - b) for a, b in zip(ends, true, strict=True)) / max(map(abs, true)))

    per_neuron = clock(bench.device, work) / neurons
    fresh = bench.operator()
    all_at_once = clock(
        bench.device,
        lambda: lanczos(products(fresh), random_start(fresh.zeros(), 2), tolerance=1e-2),
    )
    channels = sum(g.width for g in operator.groups)
    return {
        "group": group.name,
        "dimension": group.dimension,
        "neurons": neurons,
        "worst_error": max(errors),
        "seconds_per_neuron": per_neuron,
        "our_seconds_all_channels": all_at_once,
        "channels": channels,
        "our_seconds_per_channel": all_at_once / channels,
    }


def child(what: str, batch: int, activation: str) -> None:
    """Peak resident memory of one kind of work above what was there before it, as JSON on stdout."""
    bench = Bench(getattr(nn, activation), 8, torch.device("cpu"))
    bench.batch = batch
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")  # forget the peak so far
    before = _resident("VmRSS")
    started = time.process_time()
    if what == "step":
        for _ in range(3):
            bench.step()
    elif what in KEEPS:
        spectra_of(bench, 2048, GrowingMetric("input"), KEEPS[what], stability=1.0)
    else:
        operator = bench.operator(memory_limit=0 if what == "limited" else None)
        extremes = lanczos(products(operator), random_start(operator.zeros(), 0), max_steps=8, tolerance=0.0)
        assert extremes.steps == 8
    seconds = time.process_time() - started
    print(json.dumps({"mebibytes": _resident("VmHWM") - before, "seconds": seconds}))


KEEPS: dict[str, dict[str, Any] | None] = {
    "what it does by default": None,
    "everything": {"memory_limit": None},
    "everything in bfloat16": {"memory_limit": None, "storage": torch.bfloat16},
    "nothing": {"memory_limit": 0},
}
"""What a whole analysis of 2,048 samples keeps between products."""


def _resident(which: str) -> float:
    """The resident memory (``VmRSS``) or its peak (``VmHWM``) in MiB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(which)) / 1024


def measure_memory(batch: int, activation: str) -> dict[str, Any]:
    peaks, seconds = {}, {}
    for what in ("step", "analysis", "limited", *KEEPS):
        output = subprocess.run(
            [sys.executable, __file__, "--child", what, "--batch", str(batch), "--activation", activation],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        answer = json.loads(output.splitlines()[-1])
        peaks[what], seconds[what] = answer["mebibytes"], answer["seconds"]
    whole = {
        keep: {
            "steps": peaks[keep] / peaks["step"],
            "times": seconds[keep] / seconds["everything"],
            "default": limit is None,
        }
        for keep, limit in KEEPS.items()
    }
    return {
        "batch": batch,
        **{what: peaks[what] for what in ("step", "analysis", "limited")},
        "ratio": peaks["analysis"] / peaks["step"],
        "whole": whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--activation", default="SiLU")
    parser.add_argument("--published-steps", type=int, default=300, help="per end and learning rate")
    parser.add_argument("--child", choices=["step", "analysis", "limited", *KEEPS], help=argparse.SUPPRESS)
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
    if device.type == "cpu":
        take("memory", lambda: measure_memory(arguments.batch, arguments.activation))
    take("whole", lambda: measure_whole(bench, arguments.samples, step))
    take("solvers", lambda: {"groups": measure_solvers(bench)})
    take("choice", lambda: measure_choice(bench, arguments.samples))
    take("curvlinops", lambda: measure_curvlinops(bench, 8))
    take("ends", lambda: measure_ends(bench, arguments.published_steps))
    record.append("analyser_speed", results)
    record.summarise("analyser_speed", summary(results))
    print(summary(results))


if __name__ == "__main__":
    run_command(main)
