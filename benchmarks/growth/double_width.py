"""A decoder on text, doubled in width while it trains, against the double width from scratch.

    python -m benchmarks.growth.double_width [SEED ...] [--steps 400 1600] [--rate 3e-3] [--record]

The decoder of `growpipe.models.decoder` is trained with AdamW at a constant rate. Then its residual stream,
its heads and the hidden layers of its blocks get two copies of every channel: the function stays as it is.
The grown network is trained on for as many steps, its rate falling to zero along a cosine, as are its rivals
of the same widths from scratch: one with the training MACs after growth alone, one with all of them. The
network before growth is trained on without growth, too. The optimizer's state is carried. All networks see
batches drawn in the same way, and are judged by the cross entropy per byte on text that none was trained on.

A seed that was measured is not measured again, as long as the code of growpipe stays the same.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.common.command import run_command
from benchmarks.common.mean import with_error
from benchmarks.common.record import append, code_hash, summarise
from benchmarks.graph.corpus import cache_folder
from growpipe.data.text import loaders
from growpipe.graph_ops.plan.data_free import net2net_plan, random_plan
from growpipe.models.decoder import Decoder
from growpipe.run.stages.training_cost import TRAIN_COST
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.grow_module import grow, plan_for_module
from growpipe.torch_module.module_fit import fit_module

WIDTH, HEADS, HIDDEN, LENGTH, SYMBOLS, BATCH = 32, 4, (64, 64), 64, 256, 16
DECAY = 1e-2
PLANS = {"uneven shares, 1 : 2": random_plan, "equal shares": net2net_plan}
STAY, ALONE, ALL = "not grown, trained on", "from scratch, MACs after growth", "from scratch, all MACs"


@dataclass(frozen=True)
class Protocol:
    """What all trainings have in common.

    Attributes:
        steps: of the training before growth, and of the one after it.
        rate: the learning rate of AdamW, of every network.
    """

    steps: int
    rate: float


@dataclass(frozen=True)
class Outcome:
    """One network.

    Attributes:
        loss: the cross entropy per byte on unseen text.
        training_macs: all that it took, the training before growth included.
    """

    loss: float
    training_macs: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("seed", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[400, 1600], help="before growth, and after it"
    )
    parser.add_argument("--rate", type=float, default=3e-3, help="of AdamW, for every network")
    parser.add_argument("--folder", type=Path, help="where results are kept between runs")
    parser.add_argument("--record", action="store_true", help="write results and RESULTS.md")
    parser.add_argument("--findings", type=Path, help="Markdown that goes under the heading")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = cache_folder("double_width", options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        steps: [kept(seed, Protocol(steps, options.rate), folder) for seed in options.seed]
        for steps in options.steps
    }
    seeds, lengths = (" ".join(map(str, each)) for each in (options.seed, options.steps))
    command = f"python -m benchmarks.growth.double_width {seeds} --steps {lengths} --rate {options.rate:g}"
    findings = (
        "" if options.findings is None else options.findings.read_text(encoding="utf-8").strip() + "\n\n"
    )
    text = summary(found, f"{findings}`{command}`.")
    print(text)
    if options.record:
        outcomes = [
            {"steps": steps, "seed": seed, "networks": {name: asdict(o) for name, o in row.items()}}
            for steps, rows in found.items()
            for seed, row in zip(options.seed, rows, strict=True)
        ]
        append("double_width", {"command": command, "outcomes": outcomes})
        summarise("double_width", text)


def kept(seed: int, protocol: Protocol, folder: Path) -> dict[str, Outcome]:
    """What one seed showed, now or in an earlier run of the same code."""
    path = folder / f"{seed}-{protocol.steps}-{protocol.rate:g}-{code_hash()}.json"
    if not path.exists():
        row = {name: asdict(outcome) for name, outcome in measured(seed, protocol).items()}
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    return {name: Outcome(**values) for name, values in found.items()}


def decoder(factor: int) -> Decoder:
    hidden = tuple(factor * each for each in HIDDEN)
    return Decoder(factor * WIDTH, factor * HEADS, hidden, LENGTH, SYMBOLS)


def measured(seed: int, protocol: Protocol) -> dict[str, Outcome]:
    """Every network of one seed."""
    steps, rate = protocol.steps, protocol.rate
    torch.manual_seed(seed)
    data = loaders(BATCH, seed, length=LENGTH)
    parent = decoder(1)
    optimizer = torch.optim.AdamW(parent.parameters(), lr=rate, weight_decay=DECAY)
    train(parent, optimizer, data, seed, [rate] * steps)
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
    small = float(TRAIN_COST * BATCH * groups.cost.macs())  # of a step
    row = {"before growth": Outcome(judged(parent, data), steps * small)}
    stay = decoder(1)
    stay.load_state_dict(parent.state_dict())
    carried = carry(optimizer, stay, rate)
    train(stay, carried, data, seed + 1000, cosine(rate, steps))
    row[STAY] = Outcome(judged(stay, data), 2 * steps * small)
    large = math.nan
    for name, make in PLANS.items():
        plan = make(groups, export.graph, growth=0.0, factors=factors, seed=seed)
        large = float(TRAIN_COST * BATCH * groups.cost.macs(plan.widths))
        carried = carry(optimizer, parent, rate)
        grown = grow(parent, plan_for_module(plan, parent, fit.sizes, fit.pairs), optimizer=carried)
        row[f"just grown, {name}"] = Outcome(judged(grown, data), steps * small)
        train(grown, carried, data, seed + 1000, cosine(rate, steps))
        row[f"grown, {name}"] = Outcome(judged(grown, data), steps * (small + large))
    for name, count in ((ALONE, steps), (ALL, round(steps * (1 + small / large)))):
        torch.manual_seed(seed)
        rival = decoder(2)
        fresh = torch.optim.AdamW(rival.parameters(), lr=rate, weight_decay=DECAY)
        train(rival, fresh, data, seed, cosine(rate, count))
        row[name] = Outcome(judged(rival, data), count * large)
    return row


def carry(optimizer: torch.optim.Optimizer, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """An optimizer of ``model`` with the state of another."""
    carried = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=DECAY)
    carried.load_state_dict(optimizer.state_dict())
    return carried


def cosine(rate: float, steps: int) -> list[float]:
    """The rates of so many steps, falling to zero."""
    return [0.5 * rate * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Any, seed: int, rates: Sequence[float]
) -> None:
    """A step for each of ``rates``, in epochs of batches in an order that ``seed`` decides."""
    torch.manual_seed(seed)
    model.train()
    step = 0
    while step < len(rates):
        for text, following in data.train:
            if step == len(rates):
                return
            for group in optimizer.param_groups:
                group["lr"] = rates[step]
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


def summary(found: Mapping[int, Sequence[Mapping[str, Outcome]]], head: str) -> str:
    lengths = list(found)
    heads = [f"loss, {steps} steps | training MACs" for steps in lengths]
    lines = [f"| network | {' | '.join(heads)} |", "|---|" + "---|---|" * len(lengths)]
    for name in found[lengths[0]][0]:
        cells = []
        for rows in found.values():
            cells.append(with_error([row[name].loss for row in rows], digits=3))
            cells.append(f"{mean(row[name].training_macs for row in rows):.3g}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    table = "\n".join(lines)
    return f"""
## A decoder doubled in width (`double_width.py`)

{head}

A decoder on text ({WIDTH} wide, {HEADS} heads) is trained at a constant rate, doubled exactly in stream,
heads and hidden layers, and trained on for as many steps of {BATCH} windows along a cosine. *All MACs*: the
rival takes as many training MACs as the training before growth and the one after it together. Cross entropy
per byte on unseen text, in nats; ± is the standard error over seeds.

{table}
"""


if __name__ == "__main__":
    run_command(main)
