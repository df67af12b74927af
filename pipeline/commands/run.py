"""``growpipe run``: the whole loop."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from growpipe.commands.output import print_json, tell
from growpipe.environment import is_follower, require_installed
from growpipe.run.locate import RUN_FILE, read_recipe
from growpipe.run.lock import hold
from growpipe.tracking.trackers import TRACKERS

__all__ = ["run"]


def _print_keys(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from growpipe.run.recipe_keys import reference

    tell(reference())
    context.exit()


@click.command()
@click.argument("recipe", default="digits")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run directory.")
@click.option("--rounds", type=click.IntRange(min=0), help="Rounds of growth, instead of the recipe's.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Trained weights to begin with; nothing is trained before the first growth.",
)
@click.option(
    "--rival/--no-rival", default=None, help="Train the uniformly wider network from scratch, to compare."
)
@click.option(
    "--family", is_flag=True, help="Deploy one network of every size that growth comes to; see [family]."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--track",
    multiple=True,
    type=click.Choice([*TRACKERS, "none"]),
    help="Show curves and picture in this tracker, instead of the recipe's; may be given several times.",
)
@click.option(
    "--keys",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_keys,
    help="Print every key of a recipe with type, default and meaning, and exit.",
)
@click.option("--json", "as_json", is_flag=True, help="Print summary.json instead of the table.")
def run(
    recipe: str,
    out: Path,
    rounds: int | None,
    weights: Path | None,
    rival: bool | None,
    family: bool,
    device: str,
    seed: int,
    track: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train and grow a network until its budget is spent.

    RECIPE is the name of a shipped recipe or a TOML file. Each round trains, exports, analyses, rewrites and
    checks. A second call with the same directory goes on where the first one stopped. Under torchrun all
    processes train and analyse together: torchrun --nproc-per-node 2 -m growpipe run RECIPE --out DIR
    """
    read_recipe(recipe)  # a misspelt name is told before anything heavy is imported
    require_installed("torch", "train", "growpipe run")
    require_installed("onnxruntime", "cpu", "growpipe run")
    with contextlib.ExitStack() as held:
        if not is_follower() and (out / RUN_FILE).exists():
            held.enter_context(hold(out))  # before torch is imported, which takes seconds
        _run(recipe, _changes(rounds, weights, rival, family, track), out, device, seed, as_json)


def _changes(
    rounds: int | None, weights: Path | None, rival: bool | None, family: bool, track: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """What the command line says in the place of the recipe, by table."""
    changes: dict[str, dict[str, Any]] = {}
    if rounds is not None:
        changes["growth"] = {"rounds": rounds}
    if weights is not None:
        changes["train"] = {"weights": str(weights.resolve())}
    if rival is not None:
        changes["control"] = {"rival": "uniform" if rival else "none"}
    if family:
        changes["family"] = {}
    if track:
        changes["tracking"] = {"trackers": [kind for kind in track if kind != "none"]}
    return changes


def _run(
    recipe: str, changes: dict[str, dict[str, Any]], out: Path, device: str, seed: int, as_json: bool
) -> None:
    from growpipe.run.recipe import load_recipe

    loaded, folder = load_recipe(recipe, changes)
    for tracker in loaded.tracking.trackers:
        require_installed(tracker, tracker, f"tracking with {tracker}")
    from growpipe.environment import resolve_device
    from growpipe.graph_ops.files.documents import read_json
    from growpipe.parallel.distributed import launched
    from growpipe.run.loop import run_all
    from growpipe.run.stages.names import DEPLOYED, SUMMARY
    from growpipe.run.store import Run
    from growpipe.run.summary import print_summary, rows_of, title_of
    from growpipe.run.tracked import tracked

    resolved = resolve_device(device)
    with launched(resolved) as peers:
        opened = Run.create(out, loaded, folder, seed=seed, device=resolved, peers=peers)
        with opened.locked(), tracked(opened) as run:
            final = run_all(run)
    if is_follower():
        return
    if as_json:
        summary = read_json(final.folder / SUMMARY, "the summary", inside=out)
        print_json(summary)
        return
    print_summary(rows_of(opened), title_of(opened), opened.recipe.quality)
    if final.facts.members:
        models = ", ".join(str(final.folder / member.folder / DEPLOYED) for member in final.facts.members)
        tell(f"{final.facts.stopped}; the deployable models are {models}")
    else:
        tell(f"{final.facts.stopped}; the deployable model is {final.folder / DEPLOYED}")
    tell(final.facts.verdict)
