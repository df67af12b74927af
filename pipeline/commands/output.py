"""What the commands print: tables for people on stdout, or JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from growpipe.printing import for_log, json_text, one_line

__all__ = ["count", "print_json", "print_table", "say", "tell"]

_PIPED_WIDTH = 160


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json_text(document, indent=2), nl=False)


def print_table(title: str, columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[object]]) -> None:
    """A title and a table on stdout; ``columns`` are (heading, whether it holds numbers)."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    tell(title)
    table = Table(header_style="bold")
    for heading, numeric in columns:
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))  # names may hold brackets, which is markup
    # Piped output has no width of its own: wide enough that tensor names stay whole.
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    Console(file=sys.stdout, width=width, highlight=False).print(table)


def tell(text: str) -> None:
    """Lines for people, on stdout."""
    click.echo(for_log(text))


def say(message: str) -> None:
    """A note for people, on stderr."""
    click.echo(one_line(message), err=True)


def count(number: float) -> str:
    """A number with its thousands apart."""
    return f"{number:,}"
