"""What a default run deploys, against its uniform rival, over several seeds.

    python -m benchmarks.growth.rival digits --seeds 0 1 2 3 4 --out runs/rival

Every seed is one `growpipe run` in a folder of its own: what is done there is not done again. The rival has
as many parameters or MACs as the grown network, whichever the recipe bounds, and no more training MACs than
growth and its analyses took together.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.command import run_command
from benchmarks.common.mean import with_error
from benchmarks.common.record import append, summarise
from growpipe.parallel.processes import ALONE
from growpipe.run.loop import run_all
from growpipe.run.recipe import load_recipe
from growpipe.run.store import Run


def outcome(recipe: str, seed: int, out: Path) -> dict[str, Any]:
    """The summary of one run, which goes on where it stopped."""
    loaded, folder = load_recipe(recipe)
    run = Run.create(out / f"seed-{seed}", loaded, folder, seed=seed, device="cpu", peers=ALONE)
    with run.locked():
        final = run_all(run)
    summary: dict[str, Any] = json.loads((final.folder / "summary.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in summary["rows"]}
    grown = [row for row in summary["rows"] if row["name"].startswith("round")][-1]
    rival = rows["rival"]
    return {"seed": seed, "grown": grown, "rival": rival, "deployed": summary["deployed"]}


def table(outcomes: Sequence[dict[str, Any]]) -> list[str]:
    """A row per seed, and the means with their standard errors."""
    lines = ["| seed | network | widths | parameters | MACs | training MACs | test accuracy |"]
    lines.append("|---|---|---|---|---|---|---|")
    for result in outcomes:
        for name in ("grown", "rival"):
            row = result[name]
            mark = ", deployed" if result["deployed"] == name else ""
            lines.append(
                f"| {result['seed']} | {name}{mark} | {'-'.join(map(str, row['widths']))} | "
                f"{row['parameters']:,} | {row['macs']:,} | {row['training_macs']:.3g} | "
                f"{100 * row['test_score']:.1f} % |"
            )
    deployed = [100 * result[result["deployed"]]["test_score"] for result in outcomes]
    by_name = {name: [100 * result[name]["test_score"] for result in outcomes] for name in ("grown", "rival")}
    lines.append("")
    for name, values in {**by_name, "deployed": deployed}.items():
        lines.append(f"- {name}: {with_error(values)} %")
    for name in ("deployed", "grown"):
        values = deployed if name == "deployed" else by_name[name]
        differences = [a - b for a, b in zip(values, by_name["rival"], strict=True)]
        lines.append(f"- {name} less rival, paired: {with_error(differences, sign=True)} points")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    outcomes = [outcome(args.recipe, seed, args.out) for seed in args.seeds]
    command = f"python -m benchmarks.growth.rival {args.recipe} --seeds {' '.join(map(str, args.seeds))}"
    name = f"rival_{Path(args.recipe).stem}"
    text = "\n".join(table(outcomes))
    append(name, {"command": command, "outcomes": outcomes})
    summarise(
        name,
        f"## What a run of `{args.recipe}` deploys, against its uniform rival\n\n"
        f"`{command}`,\n"
        "the recipe's own settings. The rival has the seed's widths, all multiplied by one factor to the\n"
        "size that the recipe bounds, and is trained from scratch with no more training MACs than growth\n"
        "and its analyses took. A run deploys whichever is better on the validation set.\n"
        "Accuracy is that on the test set, ± is the standard error over seeds.\n\n"
        f"{text}",
    )
    print(text)


if __name__ == "__main__":
    run_command(main)
