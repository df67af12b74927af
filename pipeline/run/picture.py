"""The picture of a run: what each round cost and won, and how training went."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from growpipe.environment import require
from growpipe.run.stages.names import CONTROL, RIVAL
from growpipe.run.store import METRICS, read_metrics
from growpipe.run.summary import RoundRow

__all__ = ["draw_run"]


class _Look(NamedTuple):
    """How a control looks in the picture."""

    stage: str
    label: str
    marker: str
    color: str


_GROWN = "#1b6ca8"
_CONTROLS = {
    "rival": _Look(RIVAL.name, "uniform from scratch, same training MACs", "D", "#2e7d32"),
    "control": _Look(CONTROL.name, "seed, same epochs, never grown", "s", "#b5651d"),
}
_MOST_WIDTHS = 6


def draw_run(rows: Sequence[RoundRow], folder: Path, path: Path) -> None:
    """Draw test accuracy over parameters and the validation loss over epochs.

    Args:
        rows: of `growpipe.run.summary.rows_of`.
        folder: the run directory.
        path: the PNG to write.

    Raises:
        MissingEnvironment: matplotlib is not installed.
    """
    require("matplotlib", "train", "the picture of a run")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    grown = [row for row in rows if row.name not in _CONTROLS]
    if all(row.test_accuracy is not None for row in rows):
        parameters = [row.parameters for row in grown]
        left.plot(
            parameters, [100 * (row.test_accuracy or 0) for row in grown], "o-", color=_GROWN, label="grown"
        )
        for row in grown:
            left.annotate(
                _label(row),
                (row.parameters, 100 * (row.test_accuracy or 0)),
                xytext=(4, -12),
                textcoords="offset points",
                fontsize=8,
            )
        for row in rows:
            if row.name in _CONTROLS:
                look = _CONTROLS[row.name]
                accuracy = 100 * (row.test_accuracy or 0)
                left.plot([row.parameters], [accuracy], look.marker, color=look.color, label=look.label)
                left.axhline(accuracy, color=look.color, lw=0.8, ls=":")
        left.set(xlabel="parameters", ylabel="test accuracy in onnxruntime, %")
        left.margins(x=0.18, y=0.15)
        left.xaxis.set_major_locator(MaxNLocator(5))
        left.xaxis.set_major_formatter(EngFormatter(sep=""))
        figure.legend(loc="outside lower left", ncols=2, fontsize=8)
    start = 0
    for part in sorted(folder.glob(f"round-*/train/{METRICS}")):
        losses = _validation_losses(part, folder)
        right.plot(range(start + 1, start + 1 + len(losses)), losses, color=_GROWN)
        if start:
            right.axvline(start + 0.5, color="0.7", lw=0.8)
        start += len(losses)
    for look in _CONTROLS.values():
        metrics = folder / look.stage / METRICS
        if metrics.exists():
            losses = _validation_losses(metrics, folder)
            right.plot(range(1, 1 + len(losses)), losses, color=look.color, lw=1)
    right.set(xlabel="epoch (grey lines: splits)", ylabel="validation loss", yscale="log")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _label(row: RoundRow) -> str:
    """The widths, or where these are too many to read how many channels they are."""
    if len(row.widths) <= _MOST_WIDTHS:
        return "-".join(map(str, row.widths))
    return f"{sum(row.widths):,} channels"


def _validation_losses(path: Path, run: Path) -> list[float]:
    lines = (json.loads(line) for line in read_metrics(path, run))
    return [line["validation_loss"] for line in lines if "validation_loss" in line]
