"""Which channels of which families can be grown, and what Torch-Pruning makes of the same networks.

    python -m benchmarks.graph.architectures [FAMILY ...]

For every family of ``tests/helpers/networks.py``: the share of hidden channels that split, why the others
do not, how far the output moves when a quarter is added at ε = 0, and the time to find the groups on the
exported graph. Torch-Pruning (``pip install torch-pruning``) solves the mirror problem, taking channels away,
on torch's autograd graph: for it the table says how many of the layers it could prune by a quarter, and
whether the pruned network still runs. Both are told which layers make the output, and nothing else.
Results: results/coverage.json, RESULTS.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from benchmarks.common import record
from benchmarks.common.command import run_command
from growpipe.checks.measure.compare import compare, run_model
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import GrowpipeError
from growpipe.graph_ops.groups.channel_groups import ChannelGroups, find_channel_groups
from growpipe.graph_ops.onnx_tools.width_check import check_widths
from growpipe.graph_ops.plan.data_free import random_plan
from growpipe.torch_module.export import export_growth_form

GROWTH = 0.25
REPEATS = 5
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def main() -> None:
    from tests.helpers.networks import FAMILIES, seeded

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("family", nargs="*", help="only these")
    chosen = parser.parse_args().family or list(FAMILIES)
    pruning = load_torch_pruning()
    rows = []
    for name in chosen:
        build, shape = FAMILIES[name]
        sample = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        ours, outputs = measure_growth(seeded(build), sample)
        row = {"family": name, "growpipe": ours}
        if pruning is not None:
            row["torch_pruning"] = measure_pruning(pruning, seeded(build), sample, outputs)
        rows.append(row)
        print(line(row), flush=True)
    if len(chosen) == len(FAMILIES):
        record.append("coverage", {"families": rows})
        record.summarise("coverage", summary(rows))


def load_torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError:
        print("torch-pruning is not installed: its columns stay empty", file=sys.stderr)
        return None
    return torch_pruning


def measure_growth(model: nn.Module, sample: torch.Tensor) -> tuple[dict[str, Any], set[str]]:
    """What growpipe makes of a network, and the names of the weights that make its output."""
    try:
        graph = export_growth_form(model, (sample,)).graph
        seconds, groups = timed(lambda: find_channel_groups(graph))
    except GrowpipeError as error:
        return {"status": "failed", "reason": str(error)}, set()
    hidden = [g for g in groups.groups if g.barrier is None or g.barrier.operator not in ("Input", "Output")]
    width = sum(group.width for group in hidden)
    found: dict[str, Any] = {
        "seconds": seconds,
        "hidden_channels": width,
        "splittable_channels": sum(group.width for group in hidden if group.splittable),
        "declined": {group.name: str(group.barrier) for group in hidden if group.barrier is not None},
    }
    outputs = {
        member.tensor
        for group in groups.groups
        if group.barrier is not None and group.barrier.operator == "Output"
        for member in group.members
        if member.role == "made"
    }
    return found | grow(graph, groups, sample), outputs


def grow(graph: ir.Model, groups: ChannelGroups, sample: torch.Tensor) -> dict[str, Any]:
    if not any(group.splittable for group in groups.groups):
        return {"status": "declined"}
    try:
        grown = grow_graph(graph, random_plan(groups, graph, growth=GROWTH))
        problems = check_widths(grown)
        if problems:
            return {"status": "failed", "reason": problems[0]}
        inputs = {graph.graph.inputs[0].name or "": sample.numpy()}
        before, after = (ir.to_proto(model).SerializeToString() for model in (graph, grown))
        moved = max(
            compare(run_model(before, inputs), run_model(after, inputs, optimised=optimised)).relative
            for optimised in (False, True)
        )
    except GrowpipeError as error:
        return {"status": "failed", "reason": str(error)}
    return {"status": "grown" if moved <= 1e-5 else "failed", "parity": moved}


def measure_pruning(
    pruning: Any, model: nn.Module, sample: torch.Tensor, outputs: set[str]
) -> dict[str, Any]:
    """Prune a quarter of every layer but those that make the output; count the layers that became thinner."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _LAYERS)}
    kept = [module for name, module in layers.items() if f"{name}.weight" in outputs]
    widths = {name: made(module) for name, module in layers.items()}
    with torch.no_grad():
        expected = model(sample)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            seconds, _ = timed(
                lambda: list(
                    pruning.DependencyGraph().build_dependency(model, example_inputs=sample).get_all_groups()
                )
            )
        except Exception as error:  # whatever a foreign library raises is the result
            return {"status": "failed", "reason": f"finding groups: {short(error)}"}
        try:
            pruner = pruning.pruner.BasePruner(
                model,
                sample,
                # Which channels go does not matter here, and random ones ask nothing of the layers.
                importance=pruning.importance.RandomImportance(),
                pruning_ratio=GROWTH,
                ignored_layers=kept,
            )
            pruner.step()
        except Exception as error:
            return {"status": "failed", "reason": f"pruning: {short(error)}", "seconds": seconds}
        thinner = [name for name, module in layers.items() if made(module) < widths[name]]
        facts = {
            "seconds": seconds,
            "layers": len(layers) - len(kept),
            "pruned_layers": len(thinner),
            "untouched": sorted(
                name for name, module in layers.items() if name not in thinner and module not in kept
            ),
        }
        try:
            with torch.no_grad():
                shape = model(sample).shape
        except Exception as error:
            return facts | {"status": "failed", "reason": f"the pruned network: {short(error)}"}
    if shape != expected.shape:
        return facts | {"status": "failed", "reason": f"the output became {tuple(shape)}"}
    return facts | {"status": "pruned" if thinner else "declined"}


def made(module: nn.Module) -> int:
    """The output channels a layer has now."""
    weight = module.weight
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return weight.shape[1] * module.groups
    return weight.shape[0]


def short(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__} {lines[0] if lines else ''}"[:120]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), result


def line(row: dict[str, Any]) -> str:
    ours, theirs = row["growpipe"], row.get("torch_pruning", {})
    declined = "; ".join(dict.fromkeys(reason for reason in ours.get("declined", {}).values()))
    share = f"{ours['splittable_channels']}/{ours['hidden_channels']}" if "hidden_channels" in ours else ""
    parity = f"{ours['parity']:.0e}" if "parity" in ours else ""
    cells = [
        row["family"],
        ours["status"],
        share,
        ours.get("reason", declined),
        parity,
        milliseconds(ours),
        theirs.get("status", ""),
        f"{theirs['pruned_layers']}/{theirs['layers']}" if "layers" in theirs else "",
        theirs.get("reason", ""),
        milliseconds(theirs),
    ]
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def milliseconds(facts: dict[str, Any]) -> str:
    return f"{facts['seconds'] * 1000:.1f}" if "seconds" in facts else ""


def summary(rows: list[dict[str, Any]]) -> str:
    ours = [row["growpipe"]["status"] for row in rows]
    theirs = [row["torch_pruning"]["status"] for row in rows if "torch_pruning" in row]
    channels = sum(row["growpipe"].get("hidden_channels", 0) for row in rows)
    split = sum(row["growpipe"].get("splittable_channels", 0) for row in rows)
    worst = max((row["growpipe"].get("parity", 0.0) for row in rows), default=0.0)
    others = (
        f"Torch-Pruning: {theirs.count('pruned')} pruned, {theirs.count('declined')} declined, "
        f"{theirs.count('failed')} failed."
        if theirs
        else "Torch-Pruning was not installed."
    )
    head = (
        "| family | growpipe | channels | why the others do not split | parity | ms "
        "| torch-pruning | layers | why not | ms |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    return f"""
## Coverage of architectures (`coverage.py`)

Tiny networks of {len(rows)} families. growpipe: {ours.count("grown")} grown,
{ours.count("declined")} declined with reason, {ours.count("failed")} failed; {split} of {channels} hidden
channels split, and the output moves by at most {worst:.0e} of its scale when a quarter of them is added at
ε = 0. {others}

"channels" are hidden channels that split, "layers" those that Torch-Pruning made thinner when asked for a
quarter; where a pruned network still runs nobody compares its function, since pruning changes it.
Torch-Pruning is called as its manual begins, without the settings it has for attention heads and other
special modules. "ms" is the time to find the groups, on the exported graph and on torch's autograd graph;
exporting is not in it.

{head}
{chr(10).join(line(row) for row in rows)}
"""


if __name__ == "__main__":
    run_command(main)
