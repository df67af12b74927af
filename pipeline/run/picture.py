"""The picture of a run: what each round cost and won, and how training went."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from growpipe.run.figure import GROWN_COLOR, RIVAL_COLOR, two_panels
from growpipe.run.stages.names import CONTROL, RIVAL
from growpipe.run.store import METRICS, read_metrics
from growpipe.run.summary import RoundRow

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
    with two_panels(path, "the picture of a run") as (figure, left, right):
        _draw_accuracy(figure, left, rows)
        _draw_losses(right, folder)


def _draw_accuracy(figure: Figure, axes: Axes, rows: Sequence[RoundRow]) -> None:
    """Test accuracy over parameters; nothing if a network has none."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    if any(row.test_accuracy is None for row in rows):
        return
    grown = [row for row in rows if row.name not in _CONTROLS]
    parameters = [row.parameters for row in grown]
    axes.plot(
        parameters, [100 * (row.test_accuracy or 0) for row in grown], "o-", color=GROWN_COLOR, label="grown"
    )
    for row in grown:
        axes.annotate(
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
            axes.plot([row.parameters], [accuracy], look.marker, color=look.color, label=look.label)
            axes.axhline(accuracy, color=look.color, lw=0.8, ls=":")
    axes.set(xlabel="parameters", ylabel="test accuracy in onnxruntime, %")
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


def _label(row: RoundRow) -> str:
    """The widths, or where these are too many to read how many channels they are."""
    if len(row.widths) <= _MOST_WIDTHS:
        return "-".join(map(str, row.widths))
    return f"{sum(row.widths):,} channels"


def _validation_losses(path: Path, run: Path) -> list[float]:
    lines = (json.loads(line) for line in read_metrics(path, run))
    return [line["validation_loss"] for line in lines if "validation_loss" in line]
