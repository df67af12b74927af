"""A family from one run, against as many networks that are trained from scratch.

    python -m benchmarks.growth.family benchmarks/recipes/fashion-family-cpu.toml --out runs/family

Every seed is one `growpipe run` in a folder of its own: what is done there is not done again. The rival of a
size has the seed's widths, all multiplied by one factor, and as many training MACs as the grown network of
that size took by itself, the trunk before it included. The family pays for the trunk once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common.command import run_command
from benchmarks.common.mean import with_error
from benchmarks.common.record import append, summarise
from growpipe.parallel.processes import ALONE
from growpipe.run.loop import run_all
from growpipe.run.recipe import load_recipe
from growpipe.run.stages.training_cost import TRAIN_COST
from growpipe.run.store import Run


def family(recipe: str, seed: int, out: Path) -> dict[str, Any]:
    """The family of one run, which goes on where it stopped."""
    loaded, folder = load_recipe(recipe)
    run = Run.create(out / f"seed-{seed}", loaded, folder, seed=seed, device="cpu", peers=ALONE)
    with run.locked():
        final = run_all(run)
    document: dict[str, Any] = json.loads((final.folder / "summary.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = document["family"]
    return found


def rival_macs(member: dict[str, Any]) -> float:
    """What the rival of a member took."""
    rival = member["rival"]
    return float(TRAIN_COST * rival["size"]["macs"] * rival["training"]["samples"])


def table(families: Sequence[dict[str, Any]]) -> list[str]:
    """A row per size, and what the family took over what its rivals took."""
    lines = ["| size, MACs | grown, % | uniform from scratch, % | grown less rival, paired | deployed, % |"]
    lines.append("|---|---|---|---|---|")
    for position in range(min(len(found["members"]) for found in families)):
        members = [found["members"][position] for found in families]
        grown = [100 * m["grown"]["test_score"]["value"] for m in members]
        rival = [100 * m["rival"]["test_score"]["value"] for m in members]
        deployed = [
            r if m["deployed"] == "rival" else g for m, g, r in zip(members, grown, rival, strict=True)
        ]
        macs = mean(m["grown"]["size"]["macs"] for m in members)
        differences = [g - r for g, r in zip(grown, rival, strict=True)]
        cells = [with_error(grown), with_error(rival), with_error(differences, sign=True)]
        lines.append(f"| {macs:,.0f} | {' | '.join(cells)} | {with_error(deployed)} |")
    shares = [100 * found["training_macs"] / sum(map(rival_macs, found["members"])) for found in families]
    lines += ["", f"Training MACs of the family over those of its rivals: {with_error(shares)} %."]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--report", help="add the table to RESULTS.md under this name")
    parser.add_argument("--findings", type=Path, help="Markdown that goes under the heading")
    args = parser.parse_args()
    families = [family(args.recipe, seed, args.out) for seed in args.seeds]
    text = "\n".join(table(families))
    print(text)
    if args.report is None:
        return
    command = f"python -m benchmarks.growth.family {args.recipe} --seeds {' '.join(map(str, args.seeds))}"
    findings = "" if args.findings is None else args.findings.read_text(encoding="utf-8").strip() + "\n\n"
    append(args.report, {"command": command, "families": families})
    summarise(
        args.report,
        f"## A family from one run, against networks from scratch: {Path(args.recipe).stem}\n\n{findings}"
        f"`{command}`. Test accuracy, mean and standard error over seeds. Every rival has as many training\n"
        "MACs as the grown network of its size took by itself, the trunk before it included; the family\n"
        f"pays for the trunk once. Analyses are charged to growth.\n\n{text}",
    )


if __name__ == "__main__":
    run_command(main)
