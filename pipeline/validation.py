"""Documents that people write, as frozen types; what is wrong with one, in one line."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from growpipe.suggestions import did_you_mean

__all__ = ["Section", "explained"]


class Section(BaseModel):
    """A table of a document: frozen, without conversions between types, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def explained(error: ValidationError, document: type[BaseModel]) -> str:
    """The faults of a document in one line, the key first, with a suggestion for a misspelt key.

    Args:
        error: what validation raised.
        document: the type that the document was validated against.
    """
    return "; ".join(_fault(problem, document) for problem in error.errors())


def _fault(problem: Any, document: type[BaseModel]) -> str:
    location: tuple[int | str, ...] = problem["loc"]
    key = ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        hint = did_you_mean(str(location[-1]), _keys(document, location[:-1])) or "; remove it"
        return f"unknown key {key!r}{hint}"
    given = problem["input"]
    shown = f", got {reprlib.repr(given)}" if isinstance(given, (str, int, float)) else ""
    message = problem["msg"].removeprefix("Value error, ")
    message = f"{message[:1].lower()}{message[1:]}{shown}"
    return f"wrong at {key!r}: {message}" if key else message


def _keys(document: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys that the table at ``location`` may have."""
    table: Any = document
    for part in location:
        if isinstance(part, str) and _is_table(table) and part in table.model_fields:
            table = table.model_fields[part].annotation
        # The table itself, or that of which there is a list, or none.
        table = next((kind for kind in (table, *get_args(table)) if _is_table(kind)), None)
    return list(table.model_fields) if _is_table(table) else []


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
