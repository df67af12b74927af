"""The page of a run: from its directory, finished or not, damaged or a stranger's."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.torture.formats import made_run
from growpipe.cli import cli
from growpipe.graph_ops.errors import UsageError
from growpipe.run.locate import shipped_recipes
from growpipe.run.recipe import Recipe, load_recipe, parse_recipe
from growpipe.run.repeat import recipe_toml
from growpipe.run.store import Run
from growpipe.run.story import story_of


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return made_run(tmp_path / "run")


PLAN = {
    "groups": [{"group": "a", "width": 3, "grown_width": 5, "predicted_change": -0.1}],
    "notes": {
        "analysis": {
            "groups": {
                "a": {"low": [-1.0, 0.5, 0.1], "high": [1.0, 2.0, 0.2], "splits": {"positive pair": 2}}
            },
            "calibration": {"a": {"step": 0.2, "decrease": 0.03, "standard_error": 0.01, "worth": 0.02}},
            "added": {"a": {"parameters": 40, "macs": 300}},
            "base_loss": 0.7,
            "selection": "the budget is spent",
        }
    },
}


def with_plan(run: Run, document: object = PLAN) -> Path:
    file = run.path / "round-00" / "analyse" / "plan" / "plan.json"
    file.parent.mkdir()
    file.write_text(json.dumps(document))
    return file


def test_an_unfinished_run_is_told_as_far_as_it_came(run: Run) -> None:
    with_plan(run)
    story = story_of(run, None)
    assert story.verdict == "The run is not finished."
    (network,) = story.networks
    assert (network.kind, network.widths, network.parameters) == ("seed", {"a": 3, "b": 4}, 100)
    assert (network.score.low, network.score.high) == (0.85, 0.95)
    (round_,) = story.rounds
    first, second = round_.groups
    assert (first.before, first.after, first.parameters, first.macs) == (3, 5, 40, 300)
    assert (first.decrease, first.worth) == (-0.03, 0.02)
    assert (first.low, first.high) == ((-1.0, 0.5, 0.1), (1.0, 2.0, 0.2))
    assert (second.name, second.before, second.after) == ("b", 4, 4)
    assert story.checks[0].found == "1.0e-07"


def test_report_writes_the_page_where_it_is_told(run: Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["report", str(run.path), "--html"], standalone_mode=False)
    assert done.exception is None
    assert done.output.strip() == str(run.path / "report.html")
    other = tmp_path / "page.html"
    done = CliRunner().invoke(cli, ["report", str(run.path), "--html", str(other)], standalone_mode=False)
    assert done.exception is None
    assert other.read_bytes() == (run.path / "report.html").read_bytes()
    with pytest.raises(UsageError, match="give one of them"):
        CliRunner().invoke(
            cli, ["report", str(run.path), "--html", "--json"], standalone_mode=False, catch_exceptions=False
        )


@pytest.mark.parametrize("kind", ["pipe", "link", "list", "text", "deep", "infinite", "long"])
@pytest.mark.timeout(20)
def test_a_damaged_plan_ends_with_one_line_that_names_it(run: Run, tmp_path: Path, kind: str) -> None:
    file = with_plan(run)
    text = file.read_text()
    file.unlink()
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "link":
            (tmp_path / "other").write_text(text)
            file.symlink_to(tmp_path / "other")
        case "list":
            file.write_text("[]")
        case "text":
            file.write_text(text.replace("40", '"many"'))
        case "deep":
            file.write_text("[" * 100_000)
        case "infinite":
            file.write_text(text.replace("0.5", "Infinity"))
        case "long":
            file.write_text(text.replace("40", "9" * 5000))
    with pytest.raises(UsageError) as caught:
        CliRunner().invoke(
            cli, ["report", str(run.path), "--html"], standalone_mode=False, catch_exceptions=False
        )
    assert str(file) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (run.path / "report.html").exists()


def test_metrics_of_any_kind_are_drawn_or_left_out(run: Run) -> None:
    lines = ['{"validation_loss": 1e999, "train_loss": 1}', '{"validation_loss": "x"}', "[]", "{", "NaN"]
    (run.path / "round-00" / "train" / "metrics.jsonl").write_text("\n".join(lines))
    done = CliRunner().invoke(cli, ["report", str(run.path), "--html"], standalone_mode=False)
    assert done.exception is None, done.exception


def test_a_recipe_that_names_a_file_is_not_read_from_it(run: Run, tmp_path: Path) -> None:
    """The name of a stranger's recipe may be a path."""
    other = tmp_path / "other.toml"
    os.mkfifo(other)
    document = json.loads((run.path / "run.json").read_text())
    document["recipe"]["name"] = str(other)
    (run.path / "run.json").write_text(json.dumps(document))
    assert "recipe.toml" in story_of(Run.open(run.path), None).command


def test_the_command_of_a_shipped_recipe_is_whole(tmp_path: Path) -> None:
    recipe, folder = load_recipe("digits")
    run = Run.create(tmp_path / "run", recipe, folder, seed=7, device="cpu")
    assert story_of(run, None).command == "growpipe run digits --out DIR --seed 7 --device cpu"
    changed, _ = load_recipe("digits", {"growth": {"rounds": 1}})
    run = Run.create(tmp_path / "other", changed, None, seed=7, device="cpu")
    assert "recipe.toml" in story_of(run, None).command


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_recipe_on_the_page_is_the_recipe(name: str) -> None:
    recipe, _ = load_recipe(name)
    assert parse_recipe(tomllib.loads(recipe_toml(recipe)), name) == recipe


def test_odd_text_and_tables_survive_in_the_recipe_on_the_page() -> None:
    recipe = Recipe.model_validate(
        {
            "name": 'quote " \\ \x7f \n 🌱',
            "model": "net.py:build",
            "data": "data.py:loaders",
            "data_options": {"a key": [1, 2.5, True], "deep": {"x": {"y": "z"}}},
            "train": {"weights": "/home/somebody/weights.pt"},
            "budget": {
                "table": {"limit": 4.0, "terms": [{"groups": ["a"], "widths": [1, 2], "costs": [1, 2]}]}
            },
        }
    )
    parsed = tomllib.loads(recipe_toml(recipe))
    assert parsed["train"]["weights"] == "weights.pt", "folders of a machine are nobody else's business"
    parsed["train"]["weights"] = recipe.train.weights
    assert Recipe.model_validate(parsed) == recipe
