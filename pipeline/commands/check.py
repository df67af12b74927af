"""``growpipe check``: a thin skin over `growpipe.checks.run_checks`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from growpipe.checks.formats import DOCUMENTS, FORMATS
from growpipe.checks.formats.text import MARK_AT, MARKS, lines_of
from growpipe.checks.report import CheckReport, Status, overall_exit_code
from growpipe.commands.output import print_json, say, tell
from growpipe.environment import PROVIDERS
from growpipe.graph_ops.errors import UnsafeModel, UsageError
from growpipe.graph_ops.files.atomic import check_not_read, write_text
from growpipe.printing import one_line
from growpipe.suggestions import did_you_mean

if TYPE_CHECKING:
    from growpipe.checks.registry import Check

__all__ = ["check"]

_STYLES: Mapping[Status, str] = {
    "passed": "green",
    **dict.fromkeys(("failed", "unsafe", "missing"), "bold red"),
    **dict.fromkeys(("inconclusive", "warned", "waived"), "yellow"),
}


@click.command()
@click.argument("models", nargs=-1, type=click.Path(), metavar="MODEL.onnx...")
@click.option("--reference", type=click.Path(), help="An ONNX model that must compute the same.")
@click.option("--torch", metavar="FILE.py:BUILD", help="A torch module that must compute the same.")
@click.option("--weights", type=click.Path(), help="Of the torch module: safetensors, or a saved state dict.")
@click.option(
    "--data",
    type=click.Path(),
    multiple=True,
    help="Inputs by name, and `targets`: an .npz file. Repeatable.",
)
@click.option("--baseline", type=click.Path(), help="What an earlier model measured.")
@click.option(
    "--write-baseline",
    "baseline_to",
    type=click.Path(),
    metavar="FILE",
    help="Write what this model measures.",
)
@click.option(
    "--profile",
    type=click.Choice(["default", "release"]),
    help="release: also fail what another runtime or a server may stumble over.",
)
@click.option("--policy", type=click.Path(), help="What is allowed: a TOML file.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A key of the policy. Repeatable."
)
@click.option("--only", multiple=True, metavar="ID", help="Only this check or area. Repeatable.")
@click.option("--skip", multiple=True, metavar="ID", help="Without this check or area. Repeatable.")
@click.option("--device", type=click.Choice(list(PROVIDERS)), default="cpu", show_default=True)
@click.option(
    "--format",
    "formats",
    multiple=True,
    metavar="NAME[=FILE]",
    help=f"One of {', '.join(FORMATS)}; to stdout, or to a file. Repeatable. Default: text.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--list-checks", is_flag=True, help="List all checks and leave.")
@click.option("--explain", "explained", metavar="ID", help="Say what a check looks at, and leave.")
def check(
    models: tuple[str, ...],
    reference: str | None,
    torch: str | None,
    weights: str | None,
    data: tuple[str, ...],
    baseline: str | None,
    baseline_to: str | None,
    profile: str | None,
    policy: str | None,
    settings: tuple[str, ...],
    only: tuple[str, ...],
    skip: tuple[str, ...],
    device: str,
    formats: tuple[str, ...],
    as_json: bool,
    list_checks: bool,
    explained: str | None,
) -> int:
    """Check ONNX files before they ship.

    The areas are safety, structure, numerics, accuracy, cost, latency and provider.

    Exit codes: 0 passed, 1 a check failed, 2 usage, 3 a device or package is missing, 4 unsafe or unreadable
    model, 5 a measurement was inconclusive.
    """
    if list_checks:
        _list(as_json)
        return 0
    if explained is not None:
        from growpipe.checks.registry import explain

        tell(explain(explained))
        return 0
    if not models:
        raise UsageError("no model is given; growpipe check MODEL.onnx")
    wanted = _formats((*formats, *(("json",) if as_json else ())))
    module = None if torch is None else torch.rpartition(":")[0]
    networks = models if reference is None else (*models, reference)
    _check_places(
        [*(file for _, file in wanted), baseline_to], networks, (module, weights, *data, policy), baseline
    )
    if baseline_to is not None and len(models) > 1:
        raise UsageError("a baseline is of one model; check the models one by one to write it")
    from growpipe.checks.policy import load_policy

    rules = load_policy(policy, (*(() if profile is None else (f"profile={profile}",)), *settings))
    from growpipe.checks.runner import run_checks

    reports = [
        run_checks(
            model,
            reference=reference,
            torch=torch,
            weights=weights,
            data=data,
            baseline=baseline,
            policy=rules,
            only=only,
            skip=skip,
            device=device,  # type: ignore[arg-type]
            progress=_progress(model),
        )
        for model in models
    ]
    _write(reports, wanted)
    code = overall_exit_code(reports)
    if baseline_to is not None:
        _baseline(reports[0], baseline_to, code)
    return code


def _baseline(report: CheckReport, path: str, code: int) -> None:
    from growpipe.checks.baseline import write_baseline

    if code:
        say(f"growpipe: no baseline was written: the checks {report.verdict}")
    else:
        write_baseline(report, path)
        say(f"growpipe: wrote the baseline {path}")


def _formats(words: Sequence[str]) -> list[tuple[str, str | None]]:
    wanted = []
    for word in words or ("text",):
        name, separator, file = word.partition("=")
        if name not in FORMATS:
            known = ", ".join(FORMATS)
            raise UsageError(f"there is no format {name!r}{did_you_mean(name, FORMATS)}; known are {known}")
        if separator and not file:
            raise UsageError(f"--format {word}: give a file after the =")
        wanted.append((name, file or None))
    shown = [name for name, file in wanted if file is None]
    if len(shown) > 1 and DOCUMENTS & set(shown):
        raise UsageError(f"{' and '.join(shown)} cannot share stdout; give files, as in {shown[0]}=FILE")
    return wanted


def _check_places(
    places: Sequence[str | None],
    models: Sequence[str],
    others: Sequence[str | None],
    baseline: str | None,
) -> None:
    """Refuse to write over what is read, or twice into one file.

    Args:
        places: the files of the formats, and last that of the new baseline, which may replace the old one.
        models: the models that are read; their external tensors are read, too.
        others: all other files that are read, but for the old baseline.
        baseline: the old baseline.
    """
    written = [file for file in places if file is not None]
    inputs = [*models, *others]
    if any(map(os.path.exists, written)):
        inputs += _data_of(models)
    for file in written:
        check_not_read(file, inputs if file == places[-1] else (*inputs, baseline))
    if len({os.path.realpath(file) for file in written}) < len(written):
        raise UsageError("two outputs go to one file; give each a file of its own")


def _data_of(models: Sequence[str]) -> Iterator[str]:
    """The files of external tensors; none of a model that cannot be read, which the checks will say."""
    from growpipe.graph_ops.files.load_save import external_files, load_model

    for model in models:
        with contextlib.suppress(UnsafeModel):
            yield from external_files(load_model(model))


def _write(reports: Sequence[CheckReport], wanted: Sequence[tuple[str, str | None]]) -> None:
    for name, file in wanted:
        if file is not None:
            Path(file).absolute().parent.mkdir(parents=True, exist_ok=True)
            write_text(Path(file), FORMATS[name](reports))
        elif name == "text":
            _print(reports)
        else:
            click.echo(FORMATS[name](reports), nl=False)
    place = os.environ.get("GITHUB_STEP_SUMMARY")
    if place and any(name == "github" for name, _ in wanted):
        with open(place, "a", encoding="utf-8") as summary:
            summary.write(FORMATS["markdown"](reports))


def _print(reports: Sequence[CheckReport]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    for status, line in lines_of(reports):
        shown = Text(line)
        if status is not None and status in _STYLES:
            shown.stylize(_STYLES[status], MARK_AT, MARK_AT + len(MARKS[status]))
        console.print(shown)


def _progress(model: str) -> Callable[[Check], None] | None:
    if not sys.stderr.isatty() or os.environ.get("CI") or os.environ.get("NO_COLOR"):
        return None
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)

    def show(check: Check) -> None:
        console.print(
            Text(one_line(f"{model}: {check.id}"), style="dim"), end="\r", overflow="crop", no_wrap=True
        )
        console.print(" " * (console.width - 1), end="\r")

    return show


def _list(as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from growpipe.checks.registry import all_checks

    checks = all_checks()
    if as_json:
        entries = [{"check": c.id, "title": c.title, "explanation": c.explanation} for c in checks]
        print_json(entries)
        return
    table = Table("check", "holds when it passes", box=None, pad_edge=False)
    for c in checks:
        table.add_row(Text(c.id), Text(c.title))
    Console(soft_wrap=True, highlight=False).print(table)
