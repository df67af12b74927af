"""``growpipe train|export|analyse|rewrite|check-round|report DIR``: one stage of a run."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from growpipe.commands.output import print_json, tell
from growpipe.environment import is_follower, require_installed, resolve_device
from growpipe.graph_ops.errors import UsageError
from growpipe.run.locate import RUN_FILE, read_recipe, require_run
from growpipe.run.lock import hold

if TYPE_CHECKING:
    from growpipe.run.facts import FinalFacts
    from growpipe.run.store import Run

__all__ = ["analyse", "check_round", "export", "report", "rewrite", "train"]

_directory = click.argument("directory", type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
_round = click.option(
    "--round",
    "number",
    type=click.IntRange(min=0),
    help="The round; by default the first that lacks the stage.",
)


def _do(
    directory: Path,
    stage: str,
    number: int | None,
    recipe: str | None = None,
    device: str = "auto",
    seed: int = 0,
) -> None:
    """Do a stage of the run in ``directory``, which ``recipe`` starts if there is none."""
    require_installed("torch", "train", f"growpipe {stage}")
    require_installed("onnxruntime", "cpu", f"growpipe {stage}")
    starts = recipe is not None and not (directory / RUN_FILE).exists()
    if recipe is not None:
        read_recipe(recipe)
    if not starts:
        require_run(directory)
    with contextlib.ExitStack() as held:
        if not starts and not is_follower():
            held.enter_context(hold(directory))  # before torch is imported, which takes seconds
        folder = _done(directory, stage, number, recipe if starts else None, device, seed)
    if not is_follower():
        tell(str(folder))


def _done(
    directory: Path, stage: str, number: int | None, recipe: str | None, device: str, seed: int
) -> Path:
    from growpipe.parallel.distributed import launched
    from growpipe.run.announce import announced
    from growpipe.run.loop import STAGES, next_round
    from growpipe.run.recipe import load_recipe
    from growpipe.run.store import Run
    from growpipe.run.task import load_task

    starts = recipe is not None
    resolved = resolve_device(device) if starts else Run.open(directory).device
    with launched(resolved) as peers:
        # Another process may have seen what the first has made since.
        if recipe is not None and peers.broadcast(starts):
            loaded, folder = load_recipe(recipe)
            opened = Run.create(directory, loaded, folder, seed=seed, device=resolved, peers=peers)
        else:
            opened = Run.open(directory, peers)
        with opened.locked():
            kind, do = STAGES[stage]
            chosen = next_round(opened, kind) if number is None else number
            return announced(do(load_task(opened), chosen)).folder


@click.command()
@_directory
@_round
@click.option("--recipe", help="Start the run with this recipe if DIR holds none yet.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def train(directory: Path, number: int | None, recipe: str | None, device: str, seed: int) -> None:
    """Train the network of a round. Prints the folder of the stage."""
    _do(directory, "train", number, recipe, device, seed)


@click.command()
@_directory
@_round
def export(directory: Path, number: int | None) -> None:
    """Export the trained network of a round to ONNX. Prints the folder of the stage."""
    _do(directory, "export", number)


@click.command()
@_directory
@_round
def analyse(directory: Path, number: int | None) -> None:
    """Find the split plan of a round. Prints the folder of the stage."""
    _do(directory, "analyse", number)


@click.command()
@_directory
@_round
def rewrite(directory: Path, number: int | None) -> None:
    """Grow the network of a round by its plan. Prints the folder of the stage."""
    _do(directory, "rewrite", number)


@click.command("check-round")
@_directory
@_round
def check_round(directory: Path, number: int | None) -> None:
    """Check the network of a round in onnxruntime. Prints the folder of the stage."""
    _do(directory, "check", number)


@click.command()
@_directory
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@click.option(
    "--html",
    "page",
    is_flag=False,
    flag_value="",
    metavar="FILE",
    help="Write the page of the run instead; DIR/report.html if no FILE is given.",
)
def report(directory: Path, as_json: bool, page: str | None) -> None:
    """Print the summary of a run, or write its page.

    The run may be unfinished. The page is one HTML file that needs no network. No code that the run names is
    imported.
    """
    if as_json and page is not None:
        raise UsageError("--json prints and --html writes; give one of them")
    require_installed("torch", "train", "growpipe report")
    require_run(directory)
    from growpipe.graph_ops.files.reading import reading
    from growpipe.run.stages.names import FINAL, PAGE
    from growpipe.run.store import Run
    from growpipe.run.summary import print_summary, rows_of, summary_document, title_of

    opened = Run.open(directory)
    with reading("the run", directory):  # its stages may report anything
        final = opened.published(FINAL)
        facts = None if final is None else final.facts
        if page is None:
            rows = rows_of(opened)
            document = summary_document(opened, rows, facts)
        else:
            _write_page(opened, facts, Path(page or directory / PAGE))
            return
    if as_json:
        print_json(document)
        return
    print_summary(rows, title_of(opened), opened.recipe.quality)
    if facts is not None:
        tell(facts.verdict)


def _write_page(run: Run, final: FinalFacts | None, path: Path) -> None:
    from growpipe.graph_ops.files.atomic import check_not_read, write_text
    from growpipe.pages.page import run_page
    from growpipe.run.stages.names import PAGE
    from growpipe.run.story import story_of

    if path.absolute() != (run.path / PAGE).absolute():
        check_not_read(path, [run.path])
    write_text(path, run_page(story_of(run, final)))
    tell(str(path))
