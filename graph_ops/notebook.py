"""Tables for notebooks: what ``_repr_html_`` of plans and channel groups returns."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from growpipe.graph_ops.files.reading import one_line

__all__ = ["html_table"]

_MOST_ROWS = 60


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as HTML in which nothing but the table itself is obeyed; names within a model are anybody's.

    Args:
        caption: what the table shows.
        columns: the headings.
        rows: the cells; the first 60 rows are shown.
    """
    kept = list(rows)
    body = "".join(_row("td", row) for row in kept[:_MOST_ROWS])
    more = f" (the first {_MOST_ROWS} of {len(kept)})" if len(kept) > _MOST_ROWS else ""
    return f"<table><caption>{_cell(caption + more)}</caption>{_row('th', columns)}{body}</table>"


def _row(kind: str, cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{kind}>{_cell(cell)}</{kind}>" for cell in cells) + "</tr>"


def _cell(value: object) -> str:
    return html.escape(one_line(str(value)))
