"""How to repeat a run: its environment, its command and its recipe as TOML."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from growpipe.graph_ops.files.documents import read_json, validated
from growpipe.graph_ops.files.reading import MissingFile, reading
from growpipe.run.locate import shipped_recipes
from growpipe.run.recipe import Recipe, load_recipe
from growpipe.run.stages.names import CHECK, TRAIN, round_stage
from growpipe.run.store import Run

__all__ = ["command_of", "environment_of", "recipe_toml"]


class _Made(BaseModel):
    """What a manifest says of how its stage was made."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: str = ""
    libraries: dict[str, str] = Field(default_factory=dict)


def environment_of(run: Run) -> Iterator[tuple[str, str]]:
    """Name and value of what the run depends on: seed, device, versions.

    Raises:
        UsageError: a manifest is damaged.
    """
    yield "seed", str(run.seed)
    yield "device", run.device
    made = _made(run)
    yield "growpipe", made.code or "not known"
    yield from made.libraries.items()
    number = 0
    while (checked := run.published(round_stage(number, CHECK))) is not None:
        if checked.facts.split is not None:
            latency = checked.facts.split.latency
            yield (
                "latency",
                f"{latency.threads} thread{'s' * (latency.threads != 1)}, {latency.clock} clock, batch 1",
            )
            return
        number += 1


def _made(run: Run) -> _Made:
    file = run.path / round_stage(0, TRAIN).name / "manifest.json"
    with reading("the manifest", file):
        try:
            return validated(_Made, read_json(file, "the manifest", inside=run.path))
        except MissingFile:
            return _Made()


def command_of(run: Run) -> str:
    """The command that repeats the run."""
    tail = f"--out DIR --seed {run.seed} --device {run.device}"
    name = run.recipe.name  # it may be anybody's, and is read as a file only if growpipe ships it
    if run.folder is None and name in shipped_recipes() and load_recipe(name)[0] == run.recipe:
        return f"growpipe run {name} {tail}"
    note = "# save the recipe below as recipe.toml, beside the files that it names"
    return f"{note}\ngrowpipe run recipe.toml {tail}"


def recipe_toml(recipe: Recipe) -> str:
    """A recipe as TOML. Keys without a value are left out, and of a file of weights its folder."""
    document = recipe.model_dump(mode="json", exclude_none=True)
    if recipe.train.weights is not None:
        document["train"]["weights"] = Path(recipe.train.weights).name
    lines = [f"{_key(key)} = {_toml(value)}" for key, value in document.items() if not _is_table(recipe, key)]
    for key, value in document.items():
        if _is_table(recipe, key) and value:
            lines += ["", f"[{key}]", *(f"{_key(name)} = {_toml(each)}" for name, each in value.items())]
    return "\n".join(lines) + "\n"


def _is_table(recipe: Recipe, key: str) -> bool:
    return isinstance(getattr(recipe, key), BaseModel)


def _key(key: str) -> str:
    plain = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if plain else json.dumps(key)


def _toml(value: Any) -> str:
    """A JSON value in TOML; JSON's strings, numbers, true and false are TOML's."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
