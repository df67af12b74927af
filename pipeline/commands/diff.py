"""``growpipe diff``: what changed between two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from growpipe.commands.output import count, print_json, print_table, tell

if TYPE_CHECKING:
    from growpipe.graph_ops.edit.difference import ModelDifference

__all__ = ["diff"]

_MOST_ROWS = 40  # of a table; the JSON form and the page have more


@click.command()
@click.argument("parent", metavar="PARENT.onnx")
@click.argument("child", metavar="CHILD.onnx")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--html", "page", metavar="FILE", help="Write a page instead: one HTML file, no network.")
def diff(parent: str, child: str, as_json: bool, page: str | None) -> None:
    """Show what changed from one ONNX file to another.

    Channel groups and parameters are compared by name: widths, costs, operators, inputs, outputs, parameters
    and the growth history. Nothing is run; growpipe check compares what the models compute.
    """
    from growpipe.graph_ops.edit.difference import difference_of
    from growpipe.graph_ops.errors import UsageError
    from growpipe.graph_ops.files.load_save import external_files, load_model

    if as_json and page is not None:
        raise UsageError("--json prints and --html writes; give one of them")
    models = load_model(parent), load_model(child)
    if page is not None:
        from growpipe.graph_ops.files.atomic import check_file_target, check_not_read

        check_not_read(page, [parent, child, *external_files(models[0]), *external_files(models[1])])
        check_file_target(page)
    found = difference_of(*models)
    if page is not None:
        from growpipe.graph_ops.files.atomic import write_text
        from growpipe.pages.page import difference_page

        write_text(Path(page), difference_page(found, parent, child))
        tell(page)
        return
    if as_json:
        print_json({"parent": parent, "child": child, "summary": found.summary, **asdict(found)})
        return
    _print(found, parent, child)


def _print(found: ModelDifference, parent: str, child: str) -> None:
    tell(f"{parent} → {child}")
    tell(found.summary)
    grown = [w for w in found.widths if w.before != w.after]
    _table(
        "widths", ("group", "before", "after"), [(w.group, _shown(w.before), _shown(w.after)) for w in grown]
    )
    changed = [(c.name, c.before or "-", c.after or "-") for c in (*found.values, *found.operators)]
    _table("graph", ("what", "before", "after"), changed)
    tensors = [(t.name, t.kind, t.before or "-", t.after or "-") for t in found.tensors]
    _table("parameters", ("parameter", "change", "before", "after"), tensors)
    steps = [(s.scheme, f"{s.epsilon:.3g}", _change(s.predicted_change), _change(s.realised_change))
             for s in found.growth]  # fmt: skip
    _table("growth", ("scheme", "ε", "Δloss predicted", "Δloss realised"), steps)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    more = f" (the first {_MOST_ROWS} of {count(len(rows))})" if len(rows) > _MOST_ROWS else ""
    print_table(f"{title}{more}", [(column, False) for column in columns], rows[:_MOST_ROWS])


def _shown(width: int | None) -> str:
    return "-" if width is None else str(width)


def _change(change: float | None) -> str:
    return "-" if change is None else f"{change:+.4f}"
