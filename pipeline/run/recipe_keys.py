"""The reference of a recipe's keys, as Markdown, from the types that recipes are validated with."""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from growpipe.run.recipe import Recipe

__all__ = ["reference"]

_SIMPLE = {str: "text", int: "integer", float: "number", bool: "true or false", Any: "anything"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def reference() -> str:
    """A section per table, a row per key: its type with its bounds, its default, its meaning."""
    lines = [
        "# The keys of a recipe",
        "",
        "`growpipe run --keys` prints this page. None stands for a key that is left out.",
        "",
    ]
    for name, kind in _tables("", Recipe):
        if name:
            lines += [f"## `{name}`", ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        meanings = _meanings(kind)
        lines += [
            f"| `{key}` | {_type_of(field)} | {_default(field)} | {meanings[key]} |"
            for key, field in kind.model_fields.items()
        ]
        lines.append("")
    return "\n".join(lines)


def _tables(name: str, kind: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """A table and those inside it, by what they are called in TOML."""
    yield (f"[{name}]" if name and not name.endswith("[]") else name and f"[[{name[:-2]}]]"), kind
    for key, field in kind.model_fields.items():
        table, several = _table(field.annotation)
        if table is not None:
            yield from _tables(".".join(filter(None, [name.rstrip("[]"), key])) + "[]" * several, table)


def _table(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The table that a key holds, and whether it holds a list of them."""
    for part in (annotation, *get_args(annotation)):
        if inspect.isclass(part) and issubclass(part, BaseModel):
            return part, get_origin(annotation) is tuple
    return None, False


def _meanings(kind: type[BaseModel]) -> Mapping[str, str]:
    """The entries of the sections ``Attributes`` of a type and of those that it is made from."""
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        text = inspect.cleandoc(vars(part).get("__doc__") or "")
        _, _, attributes = text.partition("\nAttributes:\n")
        entries = re.split(r"^ {4}(?=\S)", attributes.partition("\n\n")[0], flags=re.M)[1:]
        for entry in entries:
            names, _, meaning = entry.partition(":")
            words = " ".join(meaning.split()).replace("``", "`").replace("|", "\\|").rstrip(".")
            found |= dict.fromkeys(re.split(r",\s*", names), words)
    return found


def _type_of(field: FieldInfo) -> str:
    name = _named(field.annotation)
    bounds = [
        f"{sign} {getattr(bound, attribute):g}"
        for bound in field.metadata
        for attribute, sign in _BOUNDS.items()
        if hasattr(bound, attribute)
    ]
    return f"{name} {', '.join(bounds)}".strip()


def _named(kind: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _named(parts[0])
    if origin is Literal:
        return ", ".join(f"`{json.dumps(part)}`" for part in parts)
    if origin in (types.UnionType, Union):
        return " or ".join(_named(part) for part in parts if part is not type(None))
    if origin is tuple:
        return f"list of {_plural(parts[0])}"
    if origin in (dict, Mapping):
        return "table" if parts[1] is Any else f"table of {_plural(parts[1])}"
    if inspect.isclass(kind) and issubclass(kind, BaseModel):
        return "table"
    return _SIMPLE.get(kind) or str(kind)


def _plural(kind: Any) -> str:
    name = _named(kind)
    return name if name.startswith("`") or name == "text" else f"{name}s"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "-"
    if isinstance(value, BaseModel) or value in ({}, ()):
        return "-"
    return f"`{json.dumps(value, default=list)}`"
