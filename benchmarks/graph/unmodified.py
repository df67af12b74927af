"""Modules of ``transformers`` and ``torch.nn`` as they are, grown in lockstep with their ONNX graphs.

    python -m benchmarks.graph.unmodified [MODEL ...] [--folder CACHE] [--record]

For every module of `unmodified_models`: the channel groups that split in graph and module, one channel at a
time or by whole factors, those that only the graph can grow (rigid, with the reason), and those that do not
split (with the barrier). All groups that split in both grow at ε = 0 and at ε = 0.05, by a quarter or, if
they split by whole factors, to twice their width; the table says how far the output moves at ε = 0 in torch
and in onnxruntime, how far module and graph differ at ε = 0.05, which integers of modules had to follow, and
what the peer, Torch-Pruning (``pip install torch-pruning``), makes of the same module.

A run that was stopped goes on where it was, as long as the code of growpipe stays the same. ``--record``
writes results/unmodified.json and RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import torch
from torch import nn

from benchmarks.common import record
from benchmarks.common.command import run_command
from benchmarks.graph.architectures import load_torch_pruning, measure_pruning, short
from benchmarks.graph.corpus import cache_folder
from benchmarks.graph.unmodified_models import MODELS, build
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import GrowpipeError
from growpipe.graph_ops.plan.data_free import random_plan
from growpipe.graph_ops.plan.joined_groups import joined_added, joined_factors
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.torch_module.export import GrowthExport, export_growth_form
from growpipe.torch_module.grow_module import grow, plan_for_module
from growpipe.torch_module.module_fit import fit_module
from growpipe.torch_module.outputs import output_tensors

GROWTH, EPSILON = 0.25, 0.05
PARITY, LOCKSTEP = 1e-5, 5e-5
PRUNING_SECONDS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="*", help="only these")
    parser.add_argument("--folder", type=Path, help="where results are kept between runs")
    parser.add_argument("--record", action="store_true", help="write results and RESULTS.md")
    options = parser.parse_args()
    chosen = options.model or list(MODELS)
    pruning = load_torch_pruning()
    folder = cache_folder("unmodified", options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [measured(name, folder, pruning) for name in chosen]
    if options.record:
        record.append("unmodified", {"models": rows})
        record.summarise("unmodified", summary(rows))


def measured(name: str, folder: Path, pruning: Any) -> dict[str, Any]:
    """What growpipe and Torch-Pruning make of one module; of an earlier run if the code is the same."""
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower())
    row = {"model": name, **kept(folder / f"{stem}-{record.code_hash()}.json", lambda: growth_of(name))}
    outputs = set(row.pop("outputs", ()))
    if pruning is not None:
        row["torch_pruning"] = kept(
            folder / f"{stem}-pruning-{pruning.__version__}.json", lambda: pruning_of(name, pruning, outputs)
        )
    print(line(row), flush=True)
    return row


def kept(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an earlier run measured, or what this one does."""
    if not path.exists():
        path.write_text(json.dumps(measure(), indent=1) + "\n")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def growth_of(name: str) -> dict[str, Any]:
    started = time.perf_counter()
    model, inputs = build(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            export = export_growth_form(model, inputs)
        groups = export.groups()
    except GrowpipeError as error:
        return {"status": "not exported", "reason": str(error)}
    exported = time.perf_counter()
    whole = [g.name for g in groups.groups if g.whole_factor is not None]
    fit = fit_module(model, export.graph, groups, inputs, whole)
    factors = joined_factors({name: 2 for name in whole if name not in fit.rigid}, fit.joined)
    found: dict[str, Any] = {
        "export_seconds": exported - started,
        "fit_seconds": time.perf_counter() - exported,
        "split": [g.name for g in groups.groups if g.splittable and g.name not in fit.rigid | factors],
        "doubled": list(factors),
        "joined": [one.names for one in fit.joined],
        "rigid": dict(fit.rigid),
        "barriers": {g.name: str(g.barrier) for g in groups.groups if g.barrier is not None},
        "integers": {size.name: sorted(size.groups) for size in fit.sizes},
        "outputs": sorted(
            member.tensor
            for g in groups.groups
            if g.barrier is not None and g.barrier.operator == "Output"
            for member in g.members
            if member.role == "made"
        ),
    }
    if not found["split"] and not found["doubled"]:
        return found | {"status": "declined"}
    growth = {name: max(1, round(GROWTH * groups[name].width)) for name in found["split"]}
    growth = joined_added(groups, growth, fit.joined)
    try:
        plan = random_plan(
            groups, export.graph, growth=growth or 0.0, epsilon=EPSILON, seed=3, factors=factors or None
        )
        return found | lockstep(
            model, export, inputs, plan_for_module(plan, model, fit.sizes, fit.pairs, fit.joined)
        )
    except Exception as error:  # whatever a grown module raises is the result
        return found | {"status": "failed", "reason": short(error)}


def lockstep(
    model: nn.Module, export: GrowthExport, inputs: tuple[Any, ...], plan: SplitPlan
) -> dict[str, Any]:
    """Module and graph grown by one plan, at ε = 0 and at its ε."""
    still = plan.with_epsilon(0.0)
    before = in_torch(model, inputs)
    if not all(np.ptp(value, axis=0).max() > 1e-3 * np.abs(value).max() for value in before):
        return {"status": "failed", "reason": "the output hardly depends on the input, so it shows nothing"}
    module, graph = (in_torch(grow(model, at), inputs) for at in (still, plan))
    changed = distance(in_onnxruntime(export.graph, inputs), before)
    optimised = changed <= PARITY
    exported = in_onnxruntime(export.graph, inputs, optimised)
    if distance(exported, before) > LOCKSTEP:
        return {"status": "failed", "reason": "torch exports another function"}
    exact, moved = (in_onnxruntime(grow_graph(export.graph, at), inputs, optimised) for at in (still, plan))
    parity = {"torch": distance(module, before), "onnxruntime": distance(exact, exported)}
    apart = distance(graph, moved)
    good = max(parity.values()) <= PARITY and apart <= LOCKSTEP
    found = {"status": "grown" if good else "failed", "parity": parity, "module_against_graph": apart}
    if optimised:
        return found
    note = f"onnxruntime's optimisation changes the seed network by {changed:.0e}; measured without it"
    return found | {"reason": note}


def in_torch(model: nn.Module, inputs: tuple[Any, ...]) -> list[npt.NDArray]:
    with torch.no_grad():
        return [value.numpy() for value in output_tensors(model(*inputs)) if value.is_floating_point()]


def in_onnxruntime(graph: ir.Model, inputs: tuple[Any, ...], optimised: bool = True) -> list[npt.NDArray]:
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        ir.to_proto(graph).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {wanted.name: value.numpy() for wanted, value in zip(session.get_inputs(), inputs, strict=True)}
    return [value for value in session.run(None, feeds) if np.issubdtype(value.dtype, np.floating)]


def distance(found: list[npt.NDArray], expected: list[npt.NDArray]) -> float:
    """The largest difference, as a share of the output's scale."""
    return max(
        float(np.abs(value - reference).max() / max(np.abs(reference).max(), 1e-30))
        for value, reference in zip(found, expected, strict=True)
    )


class _FirstOutput(nn.Module):
    """A module of one tensor, for Torch-Pruning."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return output_tensors(self.inner(x))[0]


def pruning_of(name: str, pruning: Any, outputs: set[str]) -> dict[str, Any]:
    model, inputs = build(name)
    if len(inputs) > 1:
        return {"status": "not tried", "reason": "several inputs"}

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {PRUNING_SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(PRUNING_SECONDS)
    try:
        kept_layers = {f"inner.{output}" for output in outputs}
        return measure_pruning(pruning, _FirstOutput(model), inputs[0], kept_layers)
    except Exception as error:  # whatever a foreign library raises is the result
        return {"status": "failed", "reason": short(error)}
    finally:
        signal.alarm(0)


def line(row: dict[str, Any]) -> str:
    theirs = row.get("torch_pruning", {})
    parity = row.get("parity")
    kinds = ("split", "doubled", "joined", "rigid", "barriers")
    counts = [str(len(row[key])) if key in row else "" for key in kinds]
    cells = [
        row["model"],
        row["status"],
        *counts,
        f"{parity['torch']:.0e} / {parity['onnxruntime']:.0e}" if parity else "",
        f"{row['module_against_graph']:.0e}" if "module_against_graph" in row else "",
        ", ".join(sorted({name.rsplit(".", 1)[-1] for name in row.get("integers", {})})),
        row.get("reason", ""),
        f"{theirs['status']} {theirs.get('pruned_layers', '')}/{theirs.get('layers', '')}" if theirs else "",
    ]
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def summary(rows: list[dict[str, Any]]) -> str:
    counts = Counter(row["status"] for row in rows)
    split, doubled, rigid, barriers = (
        sum(len(row.get(key, ())) for row in rows) for key in ("split", "doubled", "rigid", "barriers")
    )
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items())
    worst = max((max(row["parity"].values()) for row in rows if "parity" in row), default=0.0)
    apart = max((row["module_against_graph"] for row in rows if "parity" in row), default=0.0)
    stiff = "\n".join(
        f"- {row['model']}: {shown}"
        for row in rows
        for shown in dict.fromkeys(_without_block(name, why) for name, why in row.get("rigid", {}).items())
    )
    return f"""
## Unmodified modules of transformers and torch.nn (`unmodified.py`)

{len(rows)} modules from small configurations: {statuses}. Of their channel groups {split} split in the module
and in its ONNX graph alike, {doubled} more by whole factors, {rigid} only in the graph (rigid), and
{barriers} in neither. When all that split grow at ε = 0, by a quarter or to twice the width, the output
moves by at most {worst:.0e} of its scale; at ε = 0.05 module and graph differ by at most {apart:.0e}.

"joined" counts the sets of groups that the module follows only together, in equal steps. "integers" are
the integers of modules, beyond the sizes of torch's own layers, that were found by trying and follow the
widths. "parity" is the movement at ε = 0 in torch / in onnxruntime, "apart" how far module and graph differ.
"peer" is what Torch-Pruning makes of the module: the layers it prunes, of all.

| module | growpipe | split | doubled | joined | rigid | barrier | parity | apart | integers | remark | peer |
|---|---|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(line(row) for row in rows)}

Rigid groups:

{stiff or "none"}
"""


def _without_block(name: str, why: str) -> str:
    """A reason that is the same for every block of a network."""
    name, why = (re.sub(r"\.\d+\.", ".*.", text) for text in (name, why))
    return f"`{name}`: {why[:420]}"


if __name__ == "__main__":
    run_command(main)
