"""What the pictures of runs and of families have in common: two panels, colours, the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from growpipe.environment import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GROWN_COLOR", "RIVAL_COLOR", "two_panels"]

GROWN_COLOR = "#1b6ca8"
RIVAL_COLOR = "#2e7d32"


@contextmanager
def two_panels(path: Path, what: str, *, sharey: bool = False) -> Iterator[tuple[Figure, Axes, Axes]]:
    """A figure with two panels side by side, which is written at the end.

    Args:
        path: the PNG to write.
        what: the picture in words, for the error.
        sharey: whether both panels have one vertical axis.

    Raises:
        MissingEnvironment: matplotlib is not installed.
    """
    require("matplotlib", "train", what)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=sharey)
    yield figure, left, right
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
