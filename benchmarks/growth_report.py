"""The table and the picture of `growth.py`."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from growpipe.environment import library_versions
from growpipe.run_store import write_text

_COLOURS = {"scratch": "#777777", "grow": "#b5651d", "found": "#1b6ca8", "free": "#2e8b57"}
_MEANING = {
    "scratch": "from scratch",
    "grow": "same widths, grown (dynamics)",
    "found": "widths found, from scratch (architecture)",
    "free": "widths found, grown on",
}


def gather(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All outcomes by entry."""
    outcomes: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-*.json")):
        outcome = json.loads(path.read_text(encoding="utf-8"))
        outcomes.setdefault(outcome["entry"], []).append(outcome)
    return outcomes


def rows(outcomes: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Mean and standard error per entry."""
    table = []
    for entry, results in outcomes.items():
        accuracies = [100 * r["accuracy"] for r in results]
        error = stdev(accuracies) / len(accuracies) ** 0.5 if len(accuracies) > 1 else None
        table.append(
            {
                "entry": entry,
                "seeds": len(results),
                "accuracy": mean(accuracies),
                "standard_error": error,
                "macs": mean(r["macs"] for r in results),
                "parameters": mean(r["parameters"] for r in results),
                "training_macs": mean(r["training_macs"] for r in results),
                "widths": ["-".join(map(str, r["widths"].values())) for r in results],
            }
        )
    order = list(_COLOURS)
    return sorted(table, key=lambda r: (order.index(r["entry"].partition(":")[0]), -r["accuracy"]))


def write_report(folder: Path, target: Path, command: str) -> None:
    """Write ``target``.json, ``target``.md and ``target``.png."""
    table = rows(gather(folder))
    protocol = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))
    environment = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **library_versions(),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    document = {"command": command, "protocol": protocol, "environment": environment, "rows": table}
    write_text(target.with_suffix(".json"), json.dumps(document, indent=1) + "\n")
    lines = [
        "| entry | seeds | accuracy, % | ± s.e. | MACs | parameters | training MACs | widths (seed 0) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table:
        error = "-" if row["standard_error"] is None else f"{row['standard_error']:.2f}"
        lines.append(
            f"| {row['entry']} | {row['seeds']} | {row['accuracy']:.2f} | {error} | {row['macs']:,.0f} "
            f"| {row['parameters']:,.0f} | {row['training_macs']:.2e} | {row['widths'][0]} |"
        )
    write_text(target.with_suffix(".md"), "\n".join(lines) + "\n")
    figure = Figure(figsize=(7.5, 0.34 * len(table) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    seen: set[str] = set()
    for position, row in enumerate(reversed(table)):
        kind = row["entry"].partition(":")[0]
        label = None if kind in seen else _MEANING[kind]
        seen.add(kind)
        axes.errorbar(
            row["accuracy"],
            position,
            xerr=row["standard_error"] or 0.0,
            fmt="o",
            color=_COLOURS[kind],
            label=label,
        )
    axes.set_yticks(range(len(table)), [row["entry"] for row in reversed(table)])
    axes.set(xlabel="accuracy on held-out images, %", title=f"{protocol['recipe']}: mean and standard error")
    axes.grid(axis="x", lw=0.3)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target.with_suffix(".png"), dpi=120)
