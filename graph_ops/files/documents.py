"""JSON and TOML documents, read within bounds of size, depth and numbers, and written for every reader."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.reading import Place, one_line, read_text, reading

__all__ = [
    "MAX_DEPTH",
    "MAX_JSON",
    "MAX_TOML",
    "json_document",
    "json_values",
    "parse_json",
    "parse_toml",
    "read_json",
    "read_toml",
    "table_at",
    "validated",
]

MAX_JSON = 32 << 20
"""Bytes of a JSON document: every three of them can become seventy in memory."""

MAX_TOML = 1 << 20
"""Bytes of a TOML document; Python's parser takes about a second for as many."""

MAX_DEPTH = 64
"""How deep objects, arrays and tables may be nested."""

_MAX_DIGITS = 400  # the longest float64 in plain notation has 325 before or after the point
_LARGEST = 2**64

# Python's parser copies the path of a key once per part.
_LONG_KEY = re.compile(rf"""(?<![\w.\-"'])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){{{MAX_DEPTH}}}""")

if TYPE_CHECKING:
    from pydantic import BaseModel

Document = TypeVar("Document", bound="BaseModel")


def read_json(path: Place, what: str, *, inside: Place | None = None, most: int = MAX_JSON) -> Any:
    """Read a JSON file; see `growpipe.graph_ops.files.reading.opened` for ``inside`` and ``most``.

    Raises:
        MissingFile: there is no such file.
        UsageError: it cannot be read, or is not JSON within the limits of `parse_json`.
    """
    text = read_text(path, what, most=most, inside=inside)
    with reading(what, path):
        return parse_json(text)


def read_toml(path: Place, what: str, *, most: int = MAX_TOML) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        MissingFile: there is no such file.
        UsageError: it cannot be read, or is not TOML within the limits of `parse_toml`.
    """
    text = read_text(path, what, most=most)
    with reading(what, path):
        return parse_toml(text)


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        UsageError: it is not JSON, nests deeper than `MAX_DEPTH`, holds an integer beyond 64 bits or a number
            of more than 400 digits, or text that is not Unicode.
    """
    try:
        data = json.loads(text, parse_int=_integer, parse_float=_float)
    except RecursionError:
        raise UsageError(f"it is nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:
        raise UsageError(f"it is not JSON: {one_line(error)}") from None
    _check(data)
    return data


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        UsageError: it is not TOML, or breaks one of the limits of `parse_json`.
    """
    if _LONG_KEY.search(text):
        raise UsageError(f"it has a key of more than {MAX_DEPTH} parts")
    try:
        data = tomllib.loads(text, parse_float=_float)
    except RecursionError:
        raise UsageError(f"it is nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:  # a TOMLDecodeError, an impossible date, an integer of 5,000 digits
        raise UsageError(f"it is not TOML: {one_line(error)}") from None
    _check(data)
    return data


def _integer(text: str) -> int:
    if len(text) > 20:
        raise UsageError(f"it has an integer of {len(text)} digits; integers have at most 64 bits")
    return int(text)


def _float(text: str) -> float:
    if len(text) > _MAX_DIGITS:
        raise UsageError(f"it has a number of {len(text)} digits; at most {_MAX_DIGITS} are read")
    return float(text)


def _check(document: Any) -> None:
    """Refuse what would trouble others later: deep nesting, huge integers, text that cannot be written."""
    waiting = [(document, 1)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, str):
            _check_text(value)
        elif isinstance(value, int) and not -_LARGEST < value < _LARGEST:
            raise UsageError(f"it has an integer of {value.bit_length()} bits; integers have at most 64")
        elif isinstance(value, dict | list):
            if depth > MAX_DEPTH:
                raise UsageError(f"it is nested more than {MAX_DEPTH} deep")
            if isinstance(value, dict):
                for key in value:
                    _check_text(key)
            inner = value.values() if isinstance(value, dict) else value
            waiting.extend((each, depth + 1) for each in inner)


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError("it has text that is not Unicode (half of a surrogate pair)") from None


def validated(form: type[Document], data: Any) -> Document:
    """A document of a pydantic model. Use it within `reading`, which names the file.

    Raises:
        UsageError: with the first fault and where it is.
    """
    from pydantic import ValidationError  # takes longer to import than all the rest here

    try:
        return form.model_validate(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in fault["loc"])
        raise UsageError(f"it is wrong at {one_line(key)!r}: {one_line(fault['msg'])}") from None


def json_document(data: Any, *, indent: int | None = 1, sort_keys: bool = False) -> str:
    """JSON that every reader accepts: `json_values` of ``data``."""
    return json.dumps(json_values(data), indent=indent, sort_keys=sort_keys, allow_nan=False)


def json_values(data: Any) -> Any:
    """``data`` with the numbers that JSON lacks as the texts ``nan``, ``inf`` and ``-inf``."""
    if isinstance(data, Mapping):
        return {key: json_values(part) for key, part in data.items()}
    if isinstance(data, list | tuple):
        return [json_values(part) for part in data]
    if isinstance(data, float) and not math.isfinite(data):
        return str(float(data))
    return data


def table_at(data: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The table of a TOML document under nested ``keys``; empty if it is not there.

    Raises:
        UsageError: one of the keys holds something else than a table.
    """
    found: Any = data
    for number, key in enumerate(keys):
        found = found.get(key, {})
        if not isinstance(found, dict):
            raise UsageError(f"{'.'.join(keys[: number + 1])} is {type(found).__name__}, not a table")
    return dict(found)
