"""What each choice of the analyser is worth: one factor at a time, on the digits recipe.

    python -m benchmarks.growth.ablation --out runs/ablation

The seed network of the digits recipe grows twice (after epochs 2 and 5 of 20), freely within the same MACs
(threefold, then ninefold), and is trained on with the rate falling along a cosine. All train for as many
epochs; unlike in `growth.py` what an analysis costs is not taken off, and training from scratch spends more.
Everything but one factor stays at the default; the same seed means the same
initialisation and the same order of data, so that differences to the default are taken seed by seed.
Accuracy is on the 797 images that are not trained on; no decision is taken by them.

The digits network has smooth activations. For the surrogate curvature its copy with ReLU is grown, and
compared with itself.

Each (variant, seed) is one JSON file under ``--out``; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from benchmarks.common import record
from benchmarks.common.command import run_command
from growpipe import analyse, grow
from growpipe.analyser import GrowthBudget
from growpipe.data import Loaders
from growpipe.data.digits import loaders
from growpipe.graph_ops.errors import NothingToSplit, UsageError
from growpipe.graph_ops.files.atomic import write_text
from growpipe.graph_ops.groups.channel_groups import ChannelGroups, find_channel_groups
from growpipe.models.digits import DigitsNet
from growpipe.seeding import seed_everything
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.widen import uniform_widths, with_widths
from growpipe.training.evaluation import Objective, evaluate
from growpipe.training.optimizers import make_optimizer
from growpipe.training.options import TrainingOptions
from growpipe.training.train import TrainingStage, train

GROWTHS = (2, 5)
EPOCHS = 20
FACTOR = 9.0
SEED_WIDTHS = (2, 2, 3, 4)
TRAINING = TrainingOptions(optimizer="adamw", learning_rate=0.01, batch_size=64)
DEFAULT: dict[str, Any] = {
    "scheme": "m4",
    "c": 1.25,
    "epsilon": None,
    "metric": "input",
    "max_samples": 1000,
    "align": 1,
    "surrogate_beta": 3.0,
}

# Factor: the variants that leave the default in it, and the name of the default.
FACTORS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "copies m": ("default", {"m = 2": {"scheme": "m2"}, "m = 3": {"scheme": "m3"}}),
    "bound c": ("default", {f"c = {c:g}": {"c": c} for c in (1.0, 1.5, 2.0, 3.0, 5.0)}),
    "step ε": ("default", {f"ε = {e} fixed": {"epsilon": e} for e in (0.1, 0.25, 0.5, 1.0)}),
    "metric": ("default", {"euclidean": {"metric": "euclidean"}}),
    "analysis set": ("default", {f"{n} samples": {"max_samples": n} for n in (128, 512)}),
    "align": ("default", {f"align {n}": {"align": n} for n in (4, 8)}),
    "surrogate β (ReLU)": ("ReLU, β = 3", {f"ReLU, β = {b}": {"surrogate_beta": float(b)} for b in (1, 10)}),
    "ranking of groups": ("default", {"by prediction": {"ranking": "predicted"}}),
    "balance": ("default", {f"balance {share:g}": {"balance": share} for share in (0.0, 1.0)}),
    "trials": ("default", {"on fitted samples": {"hold_out": False}}),
    "reference": ("default", {"from scratch": {"method": "scratch"}}),
}


class ReluDigits(DigitsNet):
    """The digits network with ReLU for SiLU."""

    def __init__(self) -> None:
        super().__init__(SEED_WIDTHS)
        for block in self.features:
            block[2] = nn.ReLU()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(nn.functional.relu(self.hidden(self.features(image).flatten(1))))


def variants() -> dict[str, dict[str, Any]]:
    """All variants by name, the defaults first."""
    found: dict[str, dict[str, Any]] = {"default": {}, "ReLU, β = 3": {}}
    for _, others in FACTORS.values():
        found |= others
    return found


def channel_groups(model: nn.Module, image: torch.Tensor) -> tuple[Any, ChannelGroups]:
    training = model.training
    export = export_growth_form(model.eval(), (image,))
    model.train(training)
    return export, find_channel_groups(export.graph)


def sharpness(model: nn.Module, data: Loaders) -> float:
    """The largest eigenvalue of the Hessian of the training loss in all parameters, in eval mode."""
    batches = list(data.train)
    inputs, target = (torch.cat([batch[side] for batch in batches]) for side in (0, 1))
    training = model.training
    parameters = [p for p in model.eval().parameters() if p.requires_grad]
    loss = nn.functional.cross_entropy(model(inputs), target)
    gradient = nn.utils.parameters_to_vector(torch.autograd.grad(loss, parameters, create_graph=True))

    def product(vector: np.ndarray) -> np.ndarray:
        along = torch.from_numpy(vector.ravel()).to(gradient)
        columns = torch.autograd.grad(gradient @ along, parameters, retain_graph=True)
        return torch.cat([column.reshape(-1) for column in columns]).numpy()

    count = len(gradient)
    hessian = LinearOperator((count, count), matvec=product, dtype=np.float32)
    start = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    (largest,) = eigsh(hessian, k=1, which="LA", tol=1e-2, v0=start, return_eigenvectors=False)
    model.train(training)
    return float(largest)


def run(name: str, options: Mapping[str, Any], seed: int, data: Loaders) -> dict[str, Any]:
    """One network: grown by a variant, or trained from scratch at uniform widths of as many MACs."""
    started = time.process_time()
    image = next(iter(data.validation))[0][:2]
    seed_everything(seed, "seed network")
    model: nn.Module = ReluDigits() if name.startswith("ReLU") else DigitsNet(SEED_WIDTHS)
    export, groups = channel_groups(model, image)
    targets = [int(groups.cost.macs() * FACTOR ** ((i + 1) / len(GROWTHS))) for i in range(len(GROWTHS))]
    widths = {group.name: group.width for group in groups.groups if group.splittable}
    splits: list[dict[str, Any]] = []
    objective = Objective(data, nn.functional.cross_entropy)

    def fit(start: int, end: int) -> None:
        train(
            model,
            optimizer,
            objective,
            TRAINING,
            TrainingStage(
                f"epochs {start + 1}-{end}", end - start, "end" if end == EPOCHS else "period", seed=seed
            ),
        )

    done = 0
    if options.get("method") == "scratch":
        seed_everything(seed, "seed network")
        widths = dict(uniform_widths(groups, macs=targets[-1]))
        model = with_widths(model, export, groups, widths)
        optimizer = make_optimizer(model, TRAINING)
    else:
        optimizer = make_optimizer(model, TRAINING)
        for growth_epoch, target in zip(GROWTHS, targets, strict=True):
            fit(done, growth_epoch)
            done = growth_epoch
            seed_everything(seed, "analysis set", growth_epoch)
            try:
                plan = analyse(
                    model, nn.functional.cross_entropy, list(data.train), (image,),
                    budget=GrowthBudget(macs=target), max_factor=4.0, seed=seed, device="cpu",
                    **{**DEFAULT, **options},
                )  # fmt: skip
            except NothingToSplit as nothing:
                splits.append({"stopped": str(nothing)})
                continue
            before = sharpness(model, data)
            model = grow(model, plan, optimizer=optimizer)
            splits.append(
                {
                    "epsilon": plan.epsilon,
                    "predicted": plan.predicted_change,
                    "realised": plan.realised_change,
                    "added": plan.added_channels,
                    "sharper": sharpness(model, data) / before,
                }
            )
            widths |= {split.group: split.grown_width for split in plan.groups}
    fit(done, EPOCHS)
    held_out = [*data.validation, *data.test]
    result = evaluate(model, held_out, objective)
    return {
        "variant": name,
        "seed": seed,
        "accuracy": result.score,
        "loss": result.loss,
        "macs": groups.cost.macs(widths),
        "parameters": groups.cost.parameters(widths),
        "widths": list(widths.values()),
        "splits": splits,
        "seconds": round(time.process_time() - started, 2),
    }


def rows(folder: Path) -> list[dict[str, Any]]:
    """A row per factor and variant, the default's own first; of the seeds that every variant has."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        outcome = json.loads(path.read_text(encoding="utf-8"))
        runs.setdefault(outcome["variant"], {})[outcome["seed"]] = outcome
    common = set.intersection(*(set(seeds) for seeds in runs.values()))
    if len(common) < 2:
        raise UsageError(f"{folder} has {len(common)} complete seeds, and a standard error needs two; run on")
    runs = {name: {seed: seeds[seed] for seed in sorted(common)} for name, seeds in runs.items()}
    table = [_row("default", "default", runs["default"], None)]
    for factor, (base, others) in FACTORS.items():
        if base != "default":
            table.append(_row(factor, base, runs[base], None))
        table += [_row(factor, name, runs[name], runs[base]) for name in others if name in runs]
    return table


def _row(
    factor: str,
    name: str,
    runs: Mapping[int, Mapping[str, Any]],
    base: Mapping[int, Mapping[str, Any]] | None,
) -> dict[str, Any]:
    first = [split for run in runs.values() for split in run["splits"][:1] if "epsilon" in split]
    return {
        "factor": factor,
        "variant": name,
        "seeds": len(runs),
        "accuracy": _spread([100 * run["accuracy"] for run in runs.values()]),
        "loss": _spread([run["loss"] for run in runs.values()]),
        "difference": _differences(runs, base, "accuracy", 100.0),
        "loss_difference": _differences(runs, base, "loss", 1.0),
        "macs": mean(run["macs"] for run in runs.values()),
        "epsilon": mean(split["epsilon"] for split in first) if first else None,
        "realised": mean(split["realised"] for split in first) if first else None,
        "sharper": mean(split["sharper"] for split in first) if first else None,
        "seconds": mean(run["seconds"] for run in runs.values()),
    }


def _spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard error."""
    return mean(values), stdev(values) / len(values) ** 0.5


def _differences(
    runs: Mapping[int, Mapping[str, Any]], base: Mapping[int, Mapping[str, Any]] | None, key: str, unit: float
) -> tuple[float, float] | None:
    """Mean and standard error of the differences to the default, seed by seed."""
    if base is None:
        return None
    return _spread([unit * (runs[seed][key] - base[seed][key]) for seed in runs if seed in base])


def markdown(table: list[dict[str, Any]], findings: str) -> str:
    growths, widths = ", ".join(map(str, GROWTHS)), "-".join(map(str, SEED_WIDTHS))
    lines = [
        "## Ablation on digits (`growth_ablation.py`)",
        "",
        f"Seed network {widths}, growth after epochs {growths} of {EPOCHS}, freely within {FACTOR:g} times",
        f"its MACs; {table[0]['seeds']} seeds. Default: m = 4, c = 1.25, ε by line search, input metric,",
        "1000 analysis samples, no alignment, balance 0.5. Accuracy and loss are on 797 held-out images:",
        "mean ± standard error, differences to the default (or to ReLU, β = 3) seed by seed. ε, Δloss: of",
        "the first split; *sharper*: by how many times the largest eigenvalue of the loss's Hessian grows.",
        "",
        "| factor | variant | accuracy, % | difference | loss | difference | MACs | ε | Δloss | sharper |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table:
        cells = [
            row["factor"],
            row["variant"],
            _shown(row["accuracy"], 2),
            _shown(row["difference"], 2, "+"),
            _shown(row["loss"], 3),
            _shown(row["loss_difference"], 3, "+"),
            f"{row['macs']:,.0f}",
            "-" if row["epsilon"] is None else f"{row['epsilon']:.3g}",
            "-" if row["realised"] is None else f"{row['realised']:.3f}",
            "-" if row["sharper"] is None else f"{row['sharper']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", findings.strip(), "", "![differences to the default](results/growth_ablation.png)"]
    return "\n".join(lines)


def _shown(value: tuple[float, float] | None, digits: int, sign: str = "") -> str:
    return "-" if value is None else f"{value[0]:{sign}.{digits}f} ± {value[1]:.{digits}f}"


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Differences of accuracy to the default."""
    compared = [row for row in reversed(table) if row["difference"] is not None]
    figure = Figure(figsize=(7.0, 0.3 * len(compared) + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for position, row in enumerate(compared):
        value, error = row["difference"]
        axes.errorbar(value, position, xerr=error, fmt="o", color="#1b6ca8")
    axes.axvline(0.0, color="#777777", lw=0.8)
    axes.set_yticks(range(len(compared)), [row["variant"] for row in compared])
    axes.set(xlabel="accuracy against the default, points (mean and standard error)", title="digits")
    axes.grid(axis="x", lw=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--only", nargs="+", choices=list(variants()), help="run these variants alone")
    parser.add_argument("--shard", default="0/1", help="i/n: run every n-th of all")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--report", action="store_true", help="write the table, the figures and the plot")
    parser.add_argument("--findings", type=Path, help="a text that stands under the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    data = loaders(TRAINING.batch_size, 0)
    shard, _, shards = args.shard.partition("/")
    todo = [(name, seed) for seed in range(args.seeds) for name in (args.only or variants())]
    for number, (name, seed) in enumerate(todo):
        path = args.out / f"{list(variants()).index(name):02d}-{seed}.json"
        if path.exists() or number % int(shards) != int(shard):
            continue
        outcome = run(name, variants()[name], seed, data)
        write_text(path, json.dumps(outcome, indent=1) + "\n")
        print(f"{name}, seed {seed}: {outcome['accuracy']:.2%}, {outcome['seconds']:.1f} s", flush=True)
    if args.report:
        table = rows(args.out)
        seconds = sum(row["seconds"] * row["seeds"] for row in table)
        command = "python -m benchmarks.growth.ablation --out runs/ablation --report"
        record.append("growth_ablation", {"command": command, "cpu_seconds": round(seconds), "rows": table})
        findings = args.findings.read_text(encoding="utf-8") if args.findings else ""
        record.summarise("growth_ablation", markdown(table, findings))
        draw(table, record.FOLDER / "results" / "growth_ablation.png")


if __name__ == "__main__":
    run_command(main)
