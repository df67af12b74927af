"""A decoder on text, doubled in width while it trains, against the double width from scratch.

    python -m benchmarks.growth.double_width [SEED ...] [--steps 400] [--folder CACHE] [--record]

The decoder of `growpipe.models.decoder` is trained with AdamW at a constant rate. Then its residual stream,
its heads and the hidden layers of its blocks get two copies of every channel: the function stays as it is.
The grown network is trained on for as many steps, its rate falling to zero along a cosine, as are its rivals
of the same widths from scratch: one with the training MACs after growth alone, one with all of them. The
optimizer's state is carried. All networks see batches drawn in the same way, and are judged by the cross
entropy per byte on text that none was trained on.

A seed that was measured is not measured again, as long as the code of growpipe stays the same.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.common.command import run_command
from benchmarks.common.record import append, code_hash, summarise
from benchmarks.graph.corpus import cache_folder
from growpipe.data.text import loaders
from growpipe.graph_ops.plan.data_free import net2net_plan, random_plan
from growpipe.models.decoder import Decoder
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.grow_module import grow, plan_for_module
from growpipe.torch_module.module_fit import fit_module

WIDTH, HEADS, HIDDEN, LENGTH, SYMBOLS, BATCH = 32, 4, (64, 64), 64, 256, 16
RATE, DECAY = 3e-3, 1e-2
PLANS = {"uneven shares, 1 : 2": random_plan, "equal shares": net2net_plan}
GROWN, ALONE, ALL = "grown", "from scratch, MACs after growth", "from scratch, all MACs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("seed", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400, help="before growth, and after it")
    parser.add_argument("--folder", type=Path, help="where results are kept between runs")
    parser.add_argument("--record", action="store_true", help="write results and RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = cache_folder("double_width", options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [kept(seed, options.steps, folder) for seed in options.seed]
    text = summary(rows, options.steps)
    print(text)
    if options.record:
        append("double_width", {"steps": options.steps, "seeds": rows})
        summarise("double_width", text)


def kept(seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """What one seed showed, now or in an earlier run of the same code."""
    path = folder / f"{seed}-{steps}-{code_hash()}.json"
    if not path.exists():
        path.write_text(json.dumps(measured(seed, steps)) + "\n")
    row: dict[str, Any] = json.loads(path.read_text())
    return row


def decoder(factor: int) -> Decoder:
    hidden = tuple(factor * each for each in HIDDEN)
    return Decoder(factor * WIDTH, factor * HEADS, hidden, LENGTH, SYMBOLS)


def measured(seed: int, steps: int) -> dict[str, Any]:
    """The losses of one seed on unseen text, and the MACs of a sample before and after growth."""
    torch.manual_seed(seed)
    data = loaders(BATCH, seed, length=LENGTH)
    parent = decoder(1)
    optimizer = torch.optim.AdamW(parent.parameters(), lr=RATE, weight_decay=DECAY)
    train(parent, optimizer, data, seed, steps, lambda _: 1.0)
    parent.eval()
    example = (torch.zeros(2, LENGTH, dtype=torch.int64),)
    export = export_growth_form(parent, example)
    groups = export.groups()
    factors = {
        group.name: 2
        for group in groups.groups
        if group.whole_factor is not None or (group.splittable and group.width in (HEADS, HIDDEN[0]))
    }
    fit = fit_module(parent, export.graph, groups, example, factors)
    row: dict[str, Any] = {"before growth": judged(parent, data)}
    macs = groups.cost.macs(), 0
    for name, make in PLANS.items():
        plan = make(groups, export.graph, growth=0.0, factors=factors, seed=seed)
        macs = groups.cost.macs(), groups.cost.macs(plan.widths)
        carried = torch.optim.AdamW(parent.parameters(), lr=RATE, weight_decay=DECAY)
        carried.load_state_dict(optimizer.state_dict())
        grown = grow(parent, plan_for_module(plan, parent, fit.sizes, fit.pairs), optimizer=carried)
        row[f"just grown, {name}"] = judged(grown, data)
        train(grown, carried, data, seed + 1000, steps, cosine(steps))
        row[f"{GROWN}, {name}"] = judged(grown, data)
    row["macs"] = [int(each) for each in macs]
    for name, count in ((ALONE, steps), (ALL, round(steps * (1 + macs[0] / macs[1])))):
        torch.manual_seed(seed)
        rival = decoder(2)
        optimizer_of_rival = torch.optim.AdamW(rival.parameters(), lr=RATE, weight_decay=DECAY)
        train(rival, optimizer_of_rival, data, seed, count, cosine(count))
        row[name] = judged(rival, data)
    return row


def cosine(steps: int) -> Callable[[int], float]:
    return lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Any,
    seed: int,
    steps: int,
    schedule: Callable[[int], float],
) -> None:
    """So many steps, in epochs of batches in an order that ``seed`` decides."""
    torch.manual_seed(seed)
    model.train()
    step = 0
    while step < steps:
        for text, following in data.train:
            if step == steps:
                return
            for group in optimizer.param_groups:
                group["lr"] = RATE * schedule(step)
            optimizer.zero_grad()
            cross_entropy(model(text), following).backward()
            optimizer.step()
            step += 1


def judged(model: nn.Module, data: Any) -> float:
    """The cross entropy per byte on the validation text."""
    model.eval()
    with torch.no_grad():
        found = [
            (float(cross_entropy(model(text), following)), len(text)) for text, following in data.validation
        ]
    return sum(loss * count for loss, count in found) / sum(count for _, count in found)


def summary(rows: list[dict[str, Any]], steps: int) -> str:
    names = [name for name in rows[0] if name != "macs"]
    before, after = rows[0]["macs"]
    lines = []
    for name in names:
        losses = [row[name] for row in rows]
        spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
        lines.append(f"| {name} | {statistics.mean(losses):.4f} | {spread:.4f} |")
    return f"""
## A decoder doubled in width (`double_width.py`)

A decoder on text ({WIDTH} wide, {HEADS} heads, {before:,} MACs per sample) is trained for {steps} steps of
{BATCH} windows, doubled exactly in stream, heads and hidden layers ({after:,} MACs), and trained on for
{steps} steps. Cross entropy per byte on unseen text, mean and standard deviation of {len(rows)} seeds.

| network | loss | deviation |
|---|---|---|
{chr(10).join(lines)}
"""


if __name__ == "__main__":
    run_command(main)
