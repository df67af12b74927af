"""Growth of a trained network by one factor in MACs, against its final widths from scratch, all annealed.

    python -m benchmarks.growth.warm_start benchmarks/recipes/fashion-cpu.toml --out runs/warm \\
        --entries scratch stay s3d-m4-c1.25 s3d-m4-c1.25@trunk --report warm_start-fashion

An entry is one of

    scratch         the uniformly wider network from scratch
    stay            the parent, trained on without growth
    METHOD          the annealed parent, grown to the widths of scratch by a method of `methods.py`; a new
                    optimizer
    METHOD@trunk    the same from a parent that was trained as long and not annealed, with its optimizer
    prune           pruned from the uniform network of twice the MACs, which was trained as long as the parent
                    (Torch-Pruning, by magnitude; pip install --no-deps torch-pruning)
    slim            the same by the scales of its batch norms, on which the training lays an L1 penalty
                    (network slimming, arXiv 1708.06519)

and may go on with remedies of `new_copies.py` (``+reset``) and a multiple of the learning rate (``*0.5``).
Every entry is trained on for each of ``--lengths`` epochs, each time along a whole cosine. What counts is the
training MACs to the accuracy that ``scratch`` has at the longest length, without and with the parent's; an
analysis is charged to the method that needs it. Outcomes are JSON files under ``--out``; what is there is not
run again.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common.command import run_command
from benchmarks.growth.methods import METHODS, Moment
from benchmarks.growth.new_copies import REMEDIES
from benchmarks.growth.warm_start_report import Outcome, Page, Protocol, gathered, table, write_report
from growpipe.graph_ops.errors import MissingEnvironment
from growpipe.graph_ops.files.atomic import write_text
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.run.recipe import load_recipe
from growpipe.run.stages.training_cost import TRAIN_COST
from growpipe.run.store import Run
from growpipe.run.task import Task, load_task
from growpipe.seeding import seed_everything
from growpipe.torch_module.added_copies import gradient_ratio
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.grow_module import grow, load_grown, save_grown
from growpipe.torch_module.optimizer_state import load_optimizer, save_optimizer
from growpipe.torch_module.widen import uniform_widths, with_widths
from growpipe.training.evaluation import evaluate
from growpipe.training.optimizers import make_optimizer
from growpipe.training.train import TrainingStage, train

_ENTRY = re.compile(r"(?P<kind>[a-z0-9.-]+)(?P<trunk>@trunk)?(?P<remedies>(\+[a-z]+)*)(\*(?P<rate>[0-9.]+))?")
SLIMMING = 1e-4  # the weight of the penalty in the paper
_GLANCE = 100  # validation samples: no decision is taken by them


class Bench:
    """One recipe, one seed."""

    def __init__(self, recipe: str, protocol: Protocol, seed: int, folder: Path) -> None:
        self.recipe, place = load_recipe(recipe)
        self.protocol, self.seed, self.folder = protocol, seed, folder
        task = load_task(Run(Path(), self.recipe, place, seed, "cpu"))
        inputs, target = next(iter(task.objective.loaders.validation))
        loaders = replace(task.objective.loaders, validation=[(inputs[:_GLANCE], target[:_GLANCE])])
        self.task: Task = replace(task, objective=replace(task.objective, loaders=loaders))
        self.samples = sum(len(target) for _, target in loaders.train)
        seed_network = self.task.build_seed()
        self.export = export_growth_form(seed_network.eval(), self.task.example_inputs())
        self.groups = self.export.groups()
        self.seed_macs = self.groups.cost.macs()

    def widths(self, factor: float) -> dict[str, int]:
        return uniform_widths(self.groups, macs=int(factor * self.seed_macs))

    def macs(self, factor: float) -> int:
        return self.groups.cost.macs(self.widths(factor))

    def fit(self, model: nn.Module, optimizer: Any, epochs: int, name: str, until: Any, rate: float) -> None:
        options = self.recipe.train.model_copy(
            update={"learning_rate": rate * self.recipe.train.learning_rate}
        )
        stage = TrainingStage(name, epochs, until=until, seed=self.seed)
        train(model, optimizer, self.task.objective, options, stage)

    def accuracy(self, model: nn.Module) -> float:
        found = evaluate(model, self.task.objective.loaders.test, self.task.objective)
        return found.score

    def fresh(self, factor: float) -> nn.Module:
        """The uniformly wider network, drawn anew."""
        model = self.task.build_seed()
        seed_everything(self.seed, "scratch")
        return with_widths(model, self.export, self.groups, self.widths(factor))

    def parent(self, trunk: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The trained parent, annealed or not, with its optimizer."""
        name = "trunk" if trunk else "annealed"
        weights, state = (self.folder / f"{name}-{self.seed}.{what}.safetensors" for what in ("w", "o"))
        model = self.task.build_seed()
        if weights.exists() and state.exists():
            load_grown(model, weights)
            optimizer = make_optimizer(model, self.recipe.train)
            load_optimizer(optimizer, model, state)
            return model, optimizer
        optimizer = make_optimizer(model, self.recipe.train)
        until = "period" if trunk else "end"
        self.fit(model, optimizer, self.protocol.parent_epochs, "parent", until, 1.0)
        save_grown(model, weights)
        save_optimizer(optimizer, model, state)
        return model, optimizer

    def plan(self, method: str, trunk: bool, model: nn.Module) -> tuple[SplitPlan, float]:
        """How ``model``, the parent, grows, and the MACs of finding that out."""
        name = f"{method}-{'trunk' if trunk else 'annealed'}-{self.seed}"
        folder, cost = self.folder / name, self.folder / f"{name}.macs.json"
        if cost.exists():
            return SplitPlan.load(folder), json.loads(cost.read_text(encoding="utf-8"))
        samples = self.protocol.samples
        example = self.task.example_inputs()
        export = export_growth_form(model.eval(), example)
        batches = self.task.analysis_batches(2 * samples)
        moment = Moment(
            model, self.task.objective.loss_fn, batches, samples, example, export, export.groups(), self.seed
        )
        own = {group.name: group.width for group in self.groups.groups}
        wanted = self.widths(self.protocol.factor)
        added = {name: width - own[name] for name, width in wanted.items() if width > own[name]}
        with FlopCounterMode(display=False) as counter:
            plan = METHODS[method](moment, added)
        plan.save(folder)
        macs = int(counter.get_total_flops()) / 2  # a MAC counts as two
        write_text(cost, json.dumps(macs))
        return plan, macs

    def run(self, entry: str, epochs: int) -> Outcome:
        started = time.monotonic()
        match = _ENTRY.fullmatch(entry)
        assert match is not None, f"{entry} is no entry"
        kind, trunk, rate = match["kind"], match["trunk"] is not None, float(match["rate"] or 1.0)
        factor = 1.0 if kind == "stay" else self.protocol.factor
        before, growth, ratio = self.protocol.parent_epochs * self.epoch_macs(1.0), 0.0, None
        if kind == "scratch":
            model, before = self.fresh(factor), 0.0
            optimizer = make_optimizer(model, self.recipe.train)
        elif kind in ("prune", "slim"):
            model, before = self.pruned(slimmed=kind == "slim")
            optimizer = make_optimizer(model, self.recipe.train)
        else:
            model, optimizer = self.parent(trunk)
            if kind != "stay":
                plan, growth = self.plan(kind, trunk, model)
                model = grow(model, plan, optimizer=optimizer)
                ratio = gradient_ratio(model, plan, self.batch_loss())
            if not trunk:
                optimizer = make_optimizer(model, self.recipe.train)
            for remedy in match["remedies"].split("+")[1:]:
                seed_everything(self.seed, remedy)
                REMEDIES[remedy](model, optimizer, plan)
        self.fit(model, optimizer, epochs, "after growth", "end", rate)
        return Outcome(
            entry,
            self.seed,
            epochs,
            self.accuracy(model),
            self.macs(factor),
            epochs * self.epoch_macs(factor) + growth,
            before,
            round(time.monotonic() - started, 1),
            ratio,
        )

    def epoch_macs(self, factor: float) -> float:
        return float(TRAIN_COST * self.macs(factor) * self.samples)

    def batch_loss(self) -> Callable[[nn.Module], torch.Tensor]:
        """The loss on one training batch."""
        inputs, target = self.task.analysis_batches(1)[0]
        return lambda model: self.task.objective.loss_fn(model(inputs), target)

    def pruned(self, *, slimmed: bool) -> tuple[nn.Module, float]:
        """The uniform network of twice the MACs, trained as long as the parent, pruned; and what it took.

        Args:
            slimmed: prune by the scales of batch norms, not by the magnitude of filters.
        """
        try:
            import torch_pruning  # not needed for anything else
        except ModuleNotFoundError:
            how = "pip install --no-deps torch-pruning"
            raise MissingEnvironment(
                f"the entries 'prune' and 'slim' need torch_pruning, which is not installed: {how}"
            ) from None
        factor = 2 * self.protocol.factor
        weights = self.folder / f"{'slim' if slimmed else 'wide'}-{self.seed}.safetensors"
        model = self.fresh(factor)
        if weights.exists():
            load_grown(model, weights)
        else:
            hooks = _penalise_scales(model) if slimmed else []
            optimizer = make_optimizer(model, self.recipe.train)
            self.fit(model, optimizer, self.protocol.parent_epochs, "wide", "end", 1.0)
            for hook in hooks:
                hook.remove()
            save_grown(model, weights)
        wanted = self.widths(self.protocol.factor)
        kept = {
            module: 1.0 - wanted[f"{name}.weight"] / module.weight.shape[0]
            for name, module in model.named_modules()
            if f"{name}.weight" in wanted
        }
        importances = torch_pruning.importance
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            self.task.example_inputs(),
            importance=importances.BNScaleImportance()
            if slimmed
            else importances.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.0,
            pruning_ratio_dict=kept,
            ignored_layers=[module for module in model.modules() if isinstance(module, nn.Linear)],
        )
        pruner.step()
        return model, self.protocol.parent_epochs * self.epoch_macs(factor)


def _penalise_scales(model: nn.Module) -> list[Any]:
    """Lay an L1 penalty on the scales of batch norms, as a part of their gradients; its hooks."""
    return [
        module.weight.register_hook(lambda g, scale=module.weight: g + SLIMMING * scale.detach().sign())
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--entries", nargs="+", default=["scratch", "stay", "s3d-m4-c1.25"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[5, 10, 20, 40])
    parser.add_argument("--factor", type=float, default=2.0)
    parser.add_argument("--parent-epochs", type=int, default=20)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--report", help="add the tables to RESULTS.md under this name")
    parser.add_argument("--chosen", default="s3d-m4-c1.25", help="what all are compared with at the end")
    parser.add_argument("--findings", type=Path, help="Markdown that goes under the heading")
    args = parser.parse_args()
    protocol = Protocol(args.factor, args.parent_epochs, args.samples)
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        bench: Bench | None = None
        for entry in args.entries:
            for epochs in args.lengths:
                path = args.out / f"outcome-{entry}-{epochs}-{seed}.json"
                if not path.exists():
                    bench = bench or Bench(args.recipe, protocol, seed, args.out)
                    outcome = bench.run(entry, epochs)
                    write_text(path, json.dumps(asdict(outcome)) + "\n")
                    print(
                        f"{entry}, {epochs} epochs, seed {seed}: {outcome.accuracy:.2%}, {outcome.seconds} s",
                        flush=True,
                    )
    found = gathered(args.out)
    print("\n".join(table(found)))
    if args.report is not None:
        command = (
            f"python -m benchmarks.growth.warm_start {args.recipe} --lengths "
            f"{' '.join(map(str, args.lengths))} --factor {args.factor:g} "
            f"--parent-epochs {args.parent_epochs} --samples {args.samples}"
        )
        findings = "" if args.findings is None else args.findings.read_text(encoding="utf-8").strip()
        name = load_recipe(args.recipe)[0].name
        write_report(Page(name, args.report, command, findings, args.chosen), protocol, found)


if __name__ == "__main__":
    run_command(main)
