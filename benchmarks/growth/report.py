"""The table and the picture of `growth.py`."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.common import record

_COLOURS = {
    "scratch": "#777777",
    "widths": "#b0a030",
    "grow": "#b5651d",
    "found": "#1b6ca8",
    "free": "#2e8b57",
}
RIVAL = "scratch:uniform"
_MEANING = {
    "scratch": "from scratch",
    "widths": "widths given by hand, from scratch",
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
                "epochs": mean(r["epochs"] for r in results),
                "widths": ["-".join(map(str, r["widths"].values())) for r in results],
            }
        )
    order = list(_COLOURS)
    return sorted(table, key=lambda r: (order.index(r["entry"].partition(":")[0]), -r["accuracy"]))


def effects(outcomes: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Per method the three effects: points of accuracy above the uniform widths from scratch, by seed."""
    rivals = {r["seed"]: r for r in outcomes.get(RIVAL, [])}
    methods = dict.fromkeys(e.partition(":")[2] for e in outcomes if e.startswith(("grow", "found", "free")))
    table = []
    for method in methods:
        row: dict[str, Any] = {"method": method}
        for kind in ("grow", "found", "free"):
            results = [r for r in outcomes.get(f"{kind}:{method}", []) if r["seed"] in rivals]
            gains = [100 * (r["accuracy"] - rivals[r["seed"]]["accuracy"]) for r in results]
            error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None
            row[kind] = {"gain": mean(gains), "standard_error": error} if gains else None
        spent = [
            r["training_macs"] / rivals[r["seed"]]["training_macs"]
            for kind in ("grow", "found", "free")
            for r in outcomes.get(f"{kind}:{method}", [])
            if r["seed"] in rivals
        ]
        row["compute"] = max(spent, default=None)
        table.append(row)
    return table


def _points(effect: dict[str, Any] | None) -> str:
    if effect is None:
        return "-"
    error = effect["standard_error"]
    return f"{effect['gain']:+.2f}" + ("" if error is None else f" ± {error:.2f}")


def write_report(folder: Path, name: str, command: str, findings: str = "") -> None:
    """Add the run to ``results/NAME.json``, its table to ``RESULTS.md``, and draw ``results/NAME.png``."""
    outcomes = gather(folder)
    table, compared = rows(outcomes), effects(outcomes)
    protocol = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))
    record.append(name, {"command": command, "protocol": protocol, "rows": table, "effects": compared})
    lines = [
        f"## Growth on {protocol['recipe']} (`growth.py`)",
        "",
        f"`{command}`; growth after epochs {', '.join(map(str, protocol['growths']))} of",
        f"{protocol['epochs']}, to {protocol['factor']:g} times the MACs of the seed network;",
        "mean and standard error over seeds.",
        "",
        f"Points of accuracy above `{RIVAL}`, by seed; *compute* is the most training MACs of any row of the",
        f"method over those of `{RIVAL}`.",
        "",
        "| method | dynamics (`grow`) | architecture (`found`) | both (`free`) | compute |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(compared, key=lambda r: -(r["grow"] or {"gain": -99.0})["gain"]):
        cells = " | ".join(_points(row[kind]) for kind in ("grow", "found", "free"))
        compute = "-" if row["compute"] is None else f"{row['compute']:.3f}"
        lines.append(f"| {row['method']} | {cells} | {compute} |")
    lines += [
        "",
        "| entry | seeds | accuracy, % | ± s.e. | MACs | parameters | training MACs | last stage, epochs "
        "| widths (first seed) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table:
        error = "-" if row["standard_error"] is None else f"{row['standard_error']:.2f}"
        lines.append(
            f"| {row['entry']} | {row['seeds']} | {row['accuracy']:.2f} | {error} | {row['macs']:,.0f} "
            f"| {row['parameters']:,.0f} | {row['training_macs']:.2e} | {row['epochs']:.0f} "
            f"| {row['widths'][0]} |"
        )
    kinds = {row["entry"].partition(":")[0] for row in table}
    lines += ["", *(f"- `{kind}`: {meaning}" for kind, meaning in _MEANING.items() if kind in kinds)]
    if findings:
        lines += ["", findings]
    record.summarise(name, "\n".join(lines))
    _draw(table, protocol["recipe"], record.FOLDER / "results" / f"{name}.png")


def _draw(table: list[dict[str, Any]], recipe: str, path: Path) -> None:
    figure = Figure(figsize=(7.5, 0.34 * len(table) + 1.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    seen: set[str] = set()
    for position, row in enumerate(reversed(table)):
        kind = row["entry"].partition(":")[0]
        label = None if kind in seen else _MEANING[kind]
        seen.add(kind)
        error = row["standard_error"] or 0.0
        axes.errorbar(row["accuracy"], position, xerr=error, fmt="o", color=_COLOURS[kind], label=label)
    axes.set_yticks(range(len(table)), [row["entry"] for row in reversed(table)])
    axes.set(xlabel="accuracy on held-out samples, %", title=f"{recipe}: mean and standard error")
    axes.grid(axis="x", lw=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
