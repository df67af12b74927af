"""What a person sees while a run goes on: one live view on a terminal, else plain lines; on stderr.

The live view shows the round, the stage, a bar of epochs with losses and rate, the time left, and the memory
that the process has needed at most. Lines about what was done scroll above it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from growpipe.environment import is_follower
from growpipe.printing import one_line

__all__ = ["Advance", "activity", "console", "live_view", "log", "progress_bar", "show_round"]


class Advance(Protocol):
    """Moves a bar on by one step, with a word on how it stands."""

    def __call__(self, status: str = "") -> None: ...


def console() -> Console:
    """The console of stderr; plain when it is not a terminal, or ``NO_COLOR`` or ``CI`` is set.

    Of several processes under ``torchrun`` the first alone talks.
    """
    plain = bool(os.environ.get("CI") or os.environ.get("NO_COLOR"))
    return Console(
        stderr=True,
        no_color=plain or None,
        force_terminal=False if plain else None,
        highlight=False,
        quiet=is_follower(),
    )


class _View:
    """The live view: a headline, and a line per thing that goes on.

    Attributes:
        console: where it is drawn, and above which lines scroll.
        title: what goes on as a whole.
        round: which round of how many; empty before the first.
        bars: the lines.
    """

    def __init__(self, target: Console, title: str) -> None:
        self.console, self.title, self.round = target, title, ""
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=target,
        )

    def __rich__(self) -> RenderableType:
        parts = [self.title, self.round, f"memory {_peak_memory() / 2**20:,.0f} MiB at most"]
        return Group(Text(" · ".join(filter(None, parts)), style="bold"), self.bars)


_view: _View | None = None


def _peak_memory() -> int:
    """The most bytes that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def live_view(title: str) -> Iterator[None]:
    """Show what goes on in one place while the block runs; nothing where there is no terminal."""
    global _view
    target = console()
    if not target.is_terminal or target.quiet or _view is not None:
        yield
        return
    _view = _View(target, one_line(title))
    try:
        with Live(_view, console=target, refresh_per_second=4, transient=True):
            yield
    finally:
        _view = None


def show_round(number: int, most: int) -> None:
    """Say in the live view which round it is, of at most how many rounds of growth."""
    if _view is not None:
        _view.round = f"round {number} of at most {most}"


@contextlib.contextmanager
def activity(label: str) -> Iterator[None]:
    """A line in the live view while the block runs, for what has no known number of steps."""
    view = _view
    if view is None:
        yield
        return
    task = view.bars.add_task(one_line(label), total=None, status="")
    try:
        yield
    finally:
        view.bars.remove_task(task)


def log(message: str) -> None:
    """One line about what was done."""
    target = console() if _view is None else _view.console
    target.print(one_line(message), markup=False, soft_wrap=True)


@contextlib.contextmanager
def progress_bar(label: str, total: int) -> Iterator[Advance]:
    """A bar of ``total`` steps while the block runs; nothing where there is no terminal."""
    target = console()
    if not target.is_terminal or target.quiet:
        yield lambda status="": None
        return
    with live_view(label):
        view = _view
        assert view is not None  # this is a terminal
        own = next((task.id for task in view.bars.tasks if task.description == one_line(label)), None)
        task = view.bars.add_task(one_line(label), total=None, status="") if own is None else own
        view.bars.reset(task, total=total, status="")

        def advance(status: str = "") -> None:
            view.bars.update(task, advance=1, status=status)

        try:
            yield advance
        finally:
            if own is None:
                view.bars.remove_task(task)
            else:
                view.bars.update(task, total=None)
