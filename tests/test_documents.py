"""The documents of the repository: what they point to is there, and they use the public names alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import growpipe
from growpipe.cli import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
)
FOLDERS = r"(?:graph_ops|pipeline|models|tests|benchmarks|docs|\.ci|\.github)/"


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_and_link_leads_somewhere(document: str) -> None:
    text = text_of(document)
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / document).parent.joinpath(link).exists(), link
    for path in re.findall(rf"`({FOLDERS}[\w./*-]*)`", text):
        assert list(ROOT.glob(path.rstrip("/"))), path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_examples_import_public_names(document: str) -> None:
    for names in re.findall(r"^from growpipe import (.+)$", text_of(document), re.M):
        assert set(re.split(r",\s*", names.split("#")[0].strip())) <= set(growpipe.__all__)


def test_every_entry_of_the_glossary_is_one_sentence_and_in_order() -> None:
    sections = text_of("docs/glossary.md").split("\n## ")[1:]
    for section in sections:
        entries = re.findall(r"^\| (?!word |---)(.+?) \| (.+) \|$", section, re.M)
        words = [word.lower().replace("ε (", "") for word, _ in entries]
        assert words == sorted(words)
        for word, meaning in entries:
            assert meaning.endswith("."), word
            assert ". " not in meaning, word


def test_every_folder_with_modules_has_its_line_in_the_architecture() -> None:
    text = text_of("ARCHITECTURE.md")
    folders = {
        path.parent.relative_to(ROOT).as_posix()
        for source in ("graph_ops", "pipeline", "models")
        for path in (ROOT / source).rglob("*.py")
    }
    for folder in folders - {"graph_ops", "pipeline"}:
        assert re.search(rf"^\| .*`{folder}/`", text, re.M), folder


def test_every_folder_of_code_has_its_tests_in_the_contributors_table() -> None:
    text = text_of("CONTRIBUTING.md")
    for source in ("graph_ops", "pipeline"):
        for folder in (ROOT / source).iterdir():
            if any(folder.glob("*.py")):
                assert f"`{source}/{folder.name}/" in text, folder.name


def test_the_reference_of_recipes_is_that_of_the_types() -> None:
    """To bring it up to date: growpipe run --keys > docs/recipe-keys.md"""
    from growpipe.run.recipe_keys import reference

    done = CliRunner().invoke(cli, ["run", "--keys"], standalone_mode=False)
    assert done.output == text_of("docs/recipe-keys.md") == reference() + "\n"
    for words in (
        '| `finish` | `"best"`, `"continue"`',
        "| `align` | integer ≥ 1 | - |",
        "## `[budget.table]`",
    ):
        assert words in done.output, words


def test_every_key_of_a_recipe_is_documented() -> None:
    from growpipe.run.recipe import (
        BudgetSection,
        ControlSection,
        FamilySection,
        Growth,
        Recipe,
        TrackingSection,
    )
    from growpipe.training.options import TrainingOptions

    text = text_of("docs/recipes.md")
    tables = {"train", "growth", "budget", "control", "family", "tracking"}
    sections = (
        Recipe,
        TrainingOptions,
        Growth,
        BudgetSection,
        ControlSection,
        FamilySection,
        TrackingSection,
    )
    keys = {key for section in sections for key in section.model_fields}
    for key in keys:
        assert f"[{key}]" in text if key in tables else f"`{key}`" in text, key
