"""What a plan is worth on unseen samples, by how many samples its analysis took.

    OMP_NUM_THREADS=1 python -m benchmarks.analyser.quality RECIPE --seeds 0 1 2 ... --out runs/quality

The seed network of a recipe trains for ``--epochs`` epochs; then, from the same network and the same batches,
`analyse` makes a plan for ``--factor`` times its MACs by every setting. A plan is judged by what it does to
the mean loss on the recipe's test samples, on which nothing was trained and nothing chosen. The network then
grows by the default plan, trains for as many epochs again, and all settings are tried once more.

The networks and batches are kept in ``--out``, one file per seed and moment, and so is the outcome of every
setting; what is there is not made again. ``--revision NAME`` measures the default of the code that runs under
another name: run from another checkout, it compares two revisions on the same networks. ``--report`` writes
the table to RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from benchmarks.common import record
from benchmarks.common.command import run_command
from benchmarks.common.mean import with_error
from growpipe import analyse, grow
from growpipe.analyser import GrowthBudget
from growpipe.graph_ops.errors import NothingToSplit
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.run.recipe import load_recipe
from growpipe.run.store import Run
from growpipe.run.task import load_task
from growpipe.seeding import seed_everything
from growpipe.torch_module.export import export_growth_form
from growpipe.training.optimizers import make_optimizer
from growpipe.training.train import TrainingStage, train

MOST = 2048
"""The samples of the largest analysis set; as many follow for trials."""

DEFAULT = "default"
SETTINGS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    **{f"{n} samples": {"max_samples": n} for n in (1024, 512)},
    "by prediction": {"ranking": "predicted"},
    "rounded products": {"rounded_products": True},
}

HEAD = (
    "## What a plan is worth on unseen samples",
    "",
    "`python -m benchmarks.analyser.quality RECIPE ...`: the change of the mean loss on the recipe's",
    "test samples by the plan, right after the split, of a network trained for two epochs that grows to",
    "2.08 times its MACs, and again after two more epochs. Mean ± standard error over seeds; differences",
    "are on the same networks and batches, and above zero the setting is worse than the default.",
)


@dataclass(frozen=True, eq=False)
class Moment:
    """A network that is to grow.

    Attributes:
        model: the network, in evaluation mode.
        batches: for the analysis.
        unseen: batches that judge a plan.
        macs: what the grown network may cost.
        seed: of the analysis.
    """

    model: nn.Module
    batches: list[tuple[Any, Any]]
    unseen: list[tuple[Any, Any]]
    macs: int
    seed: int


def prepare(recipe_name: str, seed: int, epochs: int, factor: float, folder: Path) -> None:
    """Train, grow and train again; keep both moments."""
    recipe, source = load_recipe(recipe_name)
    task = load_task(Run(Path(), recipe, source, seed, "cpu"))
    model = task.build_seed()
    optimizer = make_optimizer(model, recipe.train)
    example = task.example_inputs()
    unseen = [*task.objective.loaders.test]
    for number in range(2):
        stage = TrainingStage(f"stage {number}", epochs, until="period", seed=seed + 100 * number)
        train(model, optimizer, task.objective, recipe.train, stage, device="cpu")
        model.eval()
        macs = find_channel_groups(export_growth_form(model, example).graph).cost.macs()
        batches = task.analysis_batches(2 * MOST)
        seed_everything(seed, "analysis", number)
        moment = Moment(model, batches, unseen, int(factor * macs), 10 * seed + number)
        torch.save(vars(moment), folder / f"{seed}-{number}.pt")
        if number == 0:
            model = grow(model, plan_of(moment, SETTINGS[DEFAULT]), optimizer=optimizer)


def plan_of(moment: Moment, options: dict[str, Any]) -> Any:
    """The plan by these options."""
    loss = nn.functional.cross_entropy
    inputs = (moment.batches[0][0][:2],)
    budget = GrowthBudget(macs=moment.macs)
    return analyse(moment.model, loss, moment.batches, inputs, budget=budget, seed=moment.seed, **options)


def loss_of(model: nn.Module, batches: list[tuple[Any, Any]]) -> float:
    """The mean loss of a network in evaluation mode."""
    total = count = 0.0
    with torch.no_grad():
        for inputs, target in batches:
            total += float(nn.functional.cross_entropy(model(inputs), target, reduction="sum"))
            count += len(target)
    return total / count


def judge(moment: Moment, options: dict[str, Any]) -> dict[str, Any]:
    """What a setting's plan does to the loss of unseen samples."""
    started = time.process_time()
    try:
        plan = plan_of(moment, options)
    except NothingToSplit as nothing:
        return {"stopped": str(nothing), "change": 0.0, "seconds": time.process_time() - started}
    seconds = time.process_time() - started
    grown = grow(moment.model, plan).eval()
    return {
        "change": loss_of(grown, moment.unseen) - loss_of(moment.model, moment.unseen),
        "realised": plan.realised_change,
        "predicted": plan.predicted_change,
        "epsilon": plan.epsilon,
        "widths": {split.group: split.grown_width for split in plan.groups},
        "seconds": round(seconds, 2),
    }


def measure(folder: Path, seeds: list[int], settings: list[str], revision: str | None) -> None:
    """Every setting at every moment that is kept; what has an outcome is left."""
    for seed in seeds:
        for number in range(2):
            moment = Moment(**torch.load(folder / f"{seed}-{number}.pt", weights_only=False))
            for name in settings:
                shown = revision if revision and name == DEFAULT else name
                path = folder / f"{seed}-{number}-{shown.replace(' ', '_').replace(',', '')}.json"
                if path.exists():
                    continue
                found = {"setting": shown, "seed": seed, "moment": number, **judge(moment, SETTINGS[name])}
                path.write_text(json.dumps(found) + "\n", encoding="utf-8")
                print(json.dumps(found), flush=True)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """A row per setting, of the moments that all settings have."""
    outcomes: dict[str, dict[tuple[int, int], dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        outcomes.setdefault(found["setting"], {})[found["seed"], found["moment"]] = found
    base = outcomes[DEFAULT]
    rows = []
    for name, own in sorted(outcomes.items(), key=lambda item: item[0] != DEFAULT):
        row: dict[str, Any] = {"setting": name, "seeds": len({seed for seed, _ in own})}
        for number in range(2):
            seeds = [seed for seed, moment in own if moment == number and (seed, moment) in base]
            row[f"change {number}"] = [own[seed, number]["change"] for seed in seeds]
            row[f"difference {number}"] = [
                own[seed, number]["change"] - base[seed, number]["change"] for seed in seeds
            ]
        row["seconds"] = mean(found["seconds"] for found in own.values())
        row["epsilon"] = mean(found.get("epsilon", 0.0) for found in own.values())
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows for people."""
    against = f"against {DEFAULT}"
    columns = ("setting", "seeds", "first growth", against, "second growth", against, "ε", "seconds")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [row["setting"], str(row["seeds"])]
        for number in range(2):
            cells.append(with_error(row[f"change {number}"], sign=True, digits=4))
            cells.append(with_error(row[f"difference {number}"], sign=True, digits=4))
        lines.append("| " + " | ".join([*cells, f"{row['epsilon']:.2f}", f"{row['seconds']:.1f}"]) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--factor", type=float, default=9 ** (1 / 3), help="of the MACs, at each growth")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--revision", help="the name of the default of this code")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--report", action="store_true", help="write the table of what is in --out")
    parser.add_argument("--findings", type=Path, help="a text that stands under the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tables = []
    for recipe in args.recipes:
        folder = args.out / Path(recipe).stem
        folder.mkdir(parents=True, exist_ok=True)
        if not args.report:
            for seed in args.seeds:
                if not (folder / f"{seed}-1.pt").exists():
                    prepare(recipe, seed, args.epochs, args.factor, folder)
                measure(folder, [seed], args.settings, args.revision)
            continue
        rows = rows_of(folder)
        record.append("analyser_quality", {"recipe": Path(recipe).stem, "rows": rows})
        tables += ["", f"*{Path(recipe).stem}*", "", *table(rows)]
    if args.report:
        findings = args.findings.read_text(encoding="utf-8").strip() if args.findings else ""
        record.summarise("analyser_quality", "\n".join([*HEAD, *tables, "", findings]))


if __name__ == "__main__":
    run_command(main)
