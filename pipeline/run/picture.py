"""The picture of a run: what each round cost and won, and how training went."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from growpipe.quality import Quality
from growpipe.run.figure import GROWN_COLOR, RIVAL_COLOR, two_panels
from growpipe.run.stages.names import CONTROL, RIVAL
from growpipe.run.store import METRICS, read_metrics
from growpipe.run.summary import RoundRow, widths_in_short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_run"]


class _Look(NamedTuple):
    """How a control looks in the picture."""

    stage: str
    label: str
    marker: str
    color: str


_CONTROLS = {
    "rival": _Look(RIVAL.name, "uniform from scratch, same training MACs", "D", RIVAL_COLOR),
    "control": _Look(CONTROL.name, "seed, same epochs, never grown", "s", "#b5651d"),
}


def draw_run(rows: Sequence[RoundRow], folder: Path, path: Path, quality: Quality) -> None:
    """Draw what networks are judged by over parameters, and the validation loss over epochs.

    Args:
        rows: of `growpipe.run.summary.rows_of`.
        folder: the run directory.
        path: the PNG to write.
        quality: what networks are judged by.

    Raises:
        MissingEnvironment: matplotlib is not installed.
    """
    with two_panels(path, "the picture of a run") as (figure, left, right):
        _draw_scores(figure, left, rows, quality)
        _draw_losses(right, folder)


def _draw_scores(figure: Figure, axes: Axes, rows: Sequence[RoundRow], quality: Quality) -> None:
    """The scores on the test set over parameters."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    grown = [row for row in rows if row.name not in _CONTROLS]
    parameters = [row.parameters for row in grown]
    heights = [quality.scaled(row.test_score) for row in grown]
    axes.plot(parameters, heights, "o-", color=GROWN_COLOR, label="grown")
    for row, height in zip(grown, heights, strict=True):
        axes.annotate(
            widths_in_short(row.widths),
            (row.parameters, height),
            xytext=(4, -12),
            textcoords="offset points",
            fontsize=8,
        )
    for row in rows:
        if row.name in _CONTROLS:
            look = _CONTROLS[row.name]
            height = quality.scaled(row.test_score)
            axes.plot([row.parameters], [height], look.marker, color=look.color, label=look.label)
            axes.axhline(height, color=look.color, lw=0.8, ls=":")
    axes.set(xlabel="parameters", ylabel=quality.axis("test"))
    axes.margins(x=0.18, y=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.legend(loc="outside lower left", ncols=2, fontsize=8)


def _draw_losses(axes: Axes, folder: Path) -> None:
    """The validation loss over epochs."""
    start = 0
    for part in sorted(folder.glob(f"round-*/train/{METRICS}")):
        losses = _validation_losses(part, folder)
        axes.plot(range(start + 1, start + 1 + len(losses)), losses, color=GROWN_COLOR)
        if start:
            axes.axvline(start + 0.5, color="0.7", lw=0.8)
        start += len(losses)
    for look in _CONTROLS.values():
        metrics = folder / look.stage / METRICS
        if metrics.exists():
            losses = _validation_losses(metrics, folder)
            axes.plot(range(1, 1 + len(losses)), losses, color=look.color, lw=1)
    axes.set(xlabel="epoch (grey lines: splits)", ylabel="validation loss", yscale="log")


def _validation_losses(path: Path, run: Path) -> list[float]:
    lines = (json.loads(line) for line in read_metrics(path, run))
    return [line["validation_loss"] for line in lines if "validation_loss" in line]
