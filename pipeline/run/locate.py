"""Where a recipe and a run are found. Imports nothing heavy: a misspelt name or path is told at once."""

from __future__ import annotations

from pathlib import Path

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.documents import MAX_TOML
from growpipe.graph_ops.files.reading import read_text
from growpipe.suggestions import did_you_mean

__all__ = ["RUN_FILE", "read_recipe", "require_run", "shipped_recipes"]

RUN_FILE = "run.json"


def shipped_recipes() -> tuple[str, ...]:
    """The names of the recipes that ship with growpipe."""
    return tuple(sorted(path.stem for path in _shipped().glob("*.toml")))


def read_recipe(name_or_path: str) -> tuple[str, Path | None]:
    """The text of a recipe: a shipped one by name, or a TOML file by path.

    Returns:
        The text, and the folder that the recipe's ``file.py:name`` references start from (None for a shipped
        recipe).

    Raises:
        UsageError: there is no such recipe, or the file cannot be read.
    """
    shipped = shipped_recipes()
    if name_or_path in shipped:
        return (_shipped() / f"{name_or_path}.toml").read_text(encoding="utf-8"), None
    path = Path(name_or_path)
    if path.suffix != ".toml" and not path.exists():
        hint = did_you_mean(name_or_path, shipped) or f"; shipped recipes: {', '.join(shipped)}"
        raise UsageError(f"there is no recipe {name_or_path!r}{hint}")
    return read_text(path, "the recipe", most=MAX_TOML), path.parent


def require_run(path: Path) -> None:
    """Refuse a directory that holds no run.

    Raises:
        UsageError: ``path`` has no ``run.json``.
    """
    if not (path / RUN_FILE).exists():
        raise UsageError(f"{path} holds no run; start one with: growpipe run --out {path}")


def _shipped() -> Path:
    import growpipe.models

    return Path(growpipe.models.__path__[0])
