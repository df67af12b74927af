"""Growth against its rivals on one harness: accuracy against MACs, parameters and training compute.

    python -m benchmarks.growth.growth benchmarks/recipes/cifar10-cpu.toml --seeds 0 1 2 --out runs/growth

Three effects are kept apart:

- *dynamics*: every method grows to the same widths at the same epochs (``grow:METHOD``), beside the network
  of those widths trained from scratch for as many epochs (``scratch:uniform``);
- *architecture*: widths that a method chose freely, retrained from scratch (``found:METHOD``), beside the
  uniform width multiplier of as many MACs (``scratch:uniform``);
- *total compute*: no entry spends more training MACs, analysis included, than ``scratch:uniform`` does in
  ``--epochs`` epochs: what a small network saves while it grows, or a search for widths costs, comes out of
  the length of the last stage.

Each (entry, seed) is one JSON file under ``--out``; what is there is not run again, so that the command can
be stopped, and run by several processes with ``--shard i/n``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common.command import run_command
from benchmarks.growth.methods import CHOOSERS, METHODS, Moment
from benchmarks.growth.report import write_report
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.atomic import write_text
from growpipe.graph_ops.groups.channel_groups import ChannelGroups, find_channel_groups
from growpipe.run.recipe import load_recipe
from growpipe.run.store import Run
from growpipe.run.task import Task, load_task
from growpipe.seeding import seed_everything
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.grow_module import grow
from growpipe.torch_module.widen import uniform_widths, with_widths
from growpipe.training.evaluation import evaluate
from growpipe.training.optimizers import make_optimizer
from growpipe.training.train import TrainingStage, train

TRAIN_COST = 3  # forward and backward, in forward passes
LAST = "last stage"


@dataclass(frozen=True)
class Protocol:
    """What every entry has in common.

    Attributes:
        growths: epochs after which the network grows, e.g. (2, 4, 6).
        epochs: of training of the uniformly wider network; all others spend as many MACs.
        factor: MACs of the finished network over those of the seed network.
        samples: of the analysis set. Trials see as many again.
    """

    growths: tuple[int, ...]
    epochs: int
    factor: float
    samples: int


@dataclass(frozen=True)
class Outcome:
    """One trained network."""

    entry: str
    seed: int
    widths: dict[str, int]
    parameters: int
    macs: int
    accuracy: float
    loss: float
    training_macs: float
    epochs: int
    seconds: float


@dataclass
class Spending:
    """Training MACs: what may be spent in all, and what is spent so far."""

    budget: float
    spent: float = 0.0

    def epochs(self, epoch_macs: float) -> int:
        """The whole epochs that are left.

        Raises:
            UsageError: not even one is.
        """
        left = int((self.budget - self.spent) / epoch_macs + 1e-9)
        if left < 1:
            raise UsageError(
                f"growth and its analysis have spent {self.spent / self.budget:.0%} of the training MACs and "
                "leave no epoch for the last stage; give more --epochs, or fewer --samples"
            )
        return left


class Bench:
    """One recipe under one protocol."""

    def __init__(self, recipe: str, protocol: Protocol, device: str) -> None:
        loaded, folder = load_recipe(recipe)
        self.recipe, self.folder, self.protocol, self.device = loaded, folder, protocol, device
        self.samples = 0
        self._tasks: dict[int, Task] = {}

    def task(self, seed: int) -> Task:
        if seed not in self._tasks:
            task = load_task(Run(Path(), self.recipe, self.folder, seed, self.device))
            # No decision is taken by validation here: one batch of it shows progress.
            glance = list(itertools.islice(task.objective.loaders.validation, 1))
            loaders = replace(task.objective.loaders, validation=glance)
            task = replace(task, objective=replace(task.objective, loaders=loaders))
            self.samples = sum(len(target) for _, target in task.objective.loaders.train)
            self._tasks = {seed: task}
        return self._tasks[seed]

    def views(self, model: nn.Module, task: Task) -> tuple[Any, ChannelGroups]:
        training = model.training
        export = export_growth_form(model.cpu().eval(), task.example_inputs())
        model.to(self.device).train(training)
        return export, find_channel_groups(export.graph)

    def stage_widths(self, groups: ChannelGroups) -> list[dict[str, int]]:
        """The uniform widths after each growth: MACs rise geometrically to ``factor`` times the seed's."""
        count = len(self.protocol.growths)
        seed_macs = groups.cost.macs()
        return [
            uniform_widths(groups, macs=int(seed_macs * self.protocol.factor ** ((i + 1) / count)))
            for i in range(count)
        ]

    def epoch_macs(self, macs: int) -> float:
        """What one epoch of training costs."""
        return float(TRAIN_COST * macs * self.samples)

    def fit(
        self, task: Task, model: nn.Module, optimizer: Any, spending: Spending, epochs: int, name: str
    ) -> None:
        """Train for so many epochs at a constant rate; as the last stage, along a cosine."""
        train(
            model.to(self.device),
            optimizer,
            task.objective,
            self.recipe.train,
            TrainingStage(name, epochs, until="end" if name == LAST else "period", seed=task.run.seed),
            device=self.device,
        )
        spending.spent += epochs * self.epoch_macs(self.views(model, task)[1].cost.macs())

    def run(self, entry: str, seed: int) -> Outcome:
        kind, _, method = entry.partition(":")
        task = self.task(seed)
        started = time.monotonic()
        model = task.build_seed()
        uniform = self.stage_widths(self.views(model, task)[1])[-1]
        target = self.views(model, task)[1].cost.macs(uniform)
        spending = Spending(self.protocol.epochs * self.epoch_macs(target))
        if kind in ("grow", "free"):
            model, optimizer = self.grown(task, model, method, spending, free=kind == "free")
        else:
            widths = uniform if method == "uniform" else {}
            if kind == "widths":
                widths = dict(zip(uniform, map(int, method.split("-")), strict=True))
            elif kind == "found":
                widths = self.widths(self.grown(task, model, method, spending, free=True)[0], task)
            seed_everything(seed, "seed network")
            fresh = task.build_seed()
            model = with_widths(fresh, *self.views(fresh, task), widths)
            optimizer = make_optimizer(model, self.recipe.train)
        epochs = spending.epochs(self.epoch_macs(self.views(model, task)[1].cost.macs()))
        if entry == "scratch:seed":
            # As many epochs as the large network: it would take ten times as long to spend as much.
            epochs = self.protocol.epochs
        self.fit(task, model, optimizer, spending, epochs, LAST)
        held_out = evaluate(model, task.objective.loaders.test, task.objective, device=self.device)
        _, groups = self.views(model, task)
        return Outcome(
            entry,
            seed,
            _widths(groups),
            groups.cost.parameters(),
            groups.cost.macs(),
            held_out.score,
            held_out.loss,
            spending.spent,
            epochs,
            round(time.monotonic() - started, 1),
        )

    def widths(self, model: nn.Module, task: Task) -> dict[str, int]:
        return _widths(self.views(model, task)[1])

    def grown(
        self, task: Task, model: nn.Module, method: str, spending: Spending, *, free: bool
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Train and grow, up to and with the last growth."""
        optimizer = make_optimizer(model, self.recipe.train)
        seed_groups = self.views(model, task)[1]
        uniform = self.stage_widths(seed_groups)
        done = 0
        for number, epoch in enumerate(self.protocol.growths):
            if epoch > done:
                self.fit(task, model, optimizer, spending, epoch - done, f"stage {number}")
            done = epoch
            target: Any = uniform[number]
            if free:
                target = seed_groups.cost.macs(target)
            model, optimizer = self.widened(task, model, optimizer, spending, method, number, target)
        return model, optimizer

    def widened(
        self,
        task: Task,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        spending: Spending,
        method: str,
        number: int,
        target: Mapping[str, int] | int,
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """One growth, the ``number``-th: to these widths by group, or freely to so many MACs."""
        export, groups = self.views(model, task)
        samples, seed = self.protocol.samples, 1000 * task.run.seed + number
        batches = task.analysis_batches(2 * samples)
        moment = Moment(
            model, task.objective.loss_fn, batches, samples, task.example_inputs(), export, groups, seed
        )
        if not isinstance(target, int):
            own = _widths(groups)
            target = {name: width - own[name] for name, width in target.items() if width > own[name]}
        with FlopCounterMode(display=False) as counter:
            plan = METHODS[method](moment, target)
        spending.spent += int(counter.get_total_flops()) / 2  # a MAC counts as two
        return grow(model, plan, optimizer=optimizer), optimizer


def _widths(groups: ChannelGroups) -> dict[str, int]:
    return {group.name: group.width for group in groups.groups if group.splittable}


def entries(methods: list[str]) -> list[str]:
    """All entries, the cheapest questions first."""
    choosing = [m for m in methods if m in CHOOSERS]
    return [
        "scratch:uniform",
        *(f"grow:{m}" for m in methods),
        *(f"found:{m}" for m in choosing),
        *(f"free:{m}" for m in choosing),
        "scratch:seed",
    ]


def command_line(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark of growth has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--growths", nargs="+", type=int, default=[2, 4, 6])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--factor", type=float, default=9.0)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shard", default="0/1", help="i/n: run every n-th of what is left")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def run_all(kind: type[Bench], args: argparse.Namespace, names: Sequence[str]) -> None:
    """Run every entry with every seed whose outcome is not in ``args.out`` yet.

    Raises:
        UsageError: what is there was made by another recipe or protocol.
    """
    protocol = Protocol(tuple(args.growths), args.epochs, args.factor, args.samples)
    bench = kind(args.recipe, protocol, args.device)
    # How a run grows is the protocol's and the entry's business here.
    settings = bench.recipe.model_dump(mode="json", exclude={"growth", "budget"})
    text = json.dumps({"recipe": bench.recipe.name, **asdict(protocol), "settings": settings}) + "\n"
    args.out.mkdir(parents=True, exist_ok=True)
    place = args.out / "protocol.json"
    outcomes = set(args.out.glob("*.json")) - {place}
    if outcomes and place.exists() and place.read_text(encoding="utf-8") != text:
        raise UsageError(f"{args.out} holds outcomes of another recipe or protocol; give another --out")
    write_text(place, text)
    shard, _, shards = args.shard.partition("/")
    todo = [(entry, seed) for seed in args.seeds for entry in names]
    for number, (entry, seed) in enumerate(todo):
        path = args.out / f"{entry.replace(':', '_')}-{seed}.json"
        if path.exists() or number % int(shards) != int(shard):
            continue
        outcome = bench.run(entry, seed)
        write_text(path, json.dumps(asdict(outcome), indent=1) + "\n")
        print(
            f"{entry} seed {seed}: {outcome.accuracy:.2%}, {outcome.macs:,} MACs, "
            f"{outcome.training_macs:.2e} training MACs, {outcome.seconds:.0f} s",
            flush=True,
        )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=list(METHODS))
    parser.add_argument(
        "--only",
        nargs="+",
        help="run these entries alone, e.g. found:s3d-m4-c2, or widths:9-31-68-108 (from scratch)",
    )
    parser.add_argument("--report", help="add the table to RESULTS.md under this name, e.g. growth-cifar10")
    parser.add_argument("--findings", type=Path, help="Markdown that goes under the table")
    args = parser.parse_args()
    run_all(Bench, args, args.only or entries(args.methods))
    if args.report is not None:
        findings = "" if args.findings is None else args.findings.read_text(encoding="utf-8").strip()
        protocol = (
            f"--growths {' '.join(map(str, args.growths))} --epochs {args.epochs} --factor {args.factor:g} "
            f"--samples {args.samples}"
        )
        write_report(
            args.out,
            args.report,
            command=f"python -m benchmarks.growth.growth {args.recipe} {protocol}",
            findings=findings,
        )


if __name__ == "__main__":
    run_command(main)
