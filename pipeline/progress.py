"""What a person sees while a run goes on: bars on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from growpipe.environment import is_follower
from growpipe.printing import one_line

__all__ = ["Advance", "console", "log", "progress_bar"]


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


def log(message: str) -> None:
    """One line about what was done."""
    console().print(one_line(message), markup=False, soft_wrap=True)


@contextlib.contextmanager
def progress_bar(label: str, total: int) -> Iterator[Advance]:
    """A bar of ``total`` steps while the block runs; nothing where there is no terminal."""
    target = console()
    if not target.is_terminal or target.quiet:
        yield lambda status="": None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=target, transient=True) as progress:
        task = progress.add_task(label, total=total, status="")

        def advance(status: str = "") -> None:
            progress.update(task, advance=1, status=status)

        yield advance
