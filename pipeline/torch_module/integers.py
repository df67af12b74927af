"""Integers that modules keep beside their parameters, by name: read, replaced, and remembered as replaced.

A name is that of an attribute (``"heads"``), of an entry of a list or tuple (``"sizes[1]"``), or of an
integer of an object that the module holds, such as a configuration (``"config.hidden_size"``).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

__all__ = [
    "changed_integers",
    "get_integer",
    "held_integers",
    "held_objects",
    "own_integers",
    "set_integers",
]

_MARK = "_growpipe_changed"
"""Where a module, its deep copies and its pickles keep the names of the integers that were changed."""

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) | {_MARK}
_DEEPEST = 2  # lists in lists
_NAME = re.compile(r"(\w+)(?:\.(\w+))?((?:\[\d+\])*)")


def own_integers(module: nn.Module) -> dict[str, int]:
    """The integers of the module's attributes, and of lists and tuples among them."""
    found: dict[str, int] = {}
    for attribute, value in vars(module).items():
        if attribute not in _OF_EVERY_MODULE:
            found.update(_integers(attribute, value))
    return found


def held_integers(module: nn.Module) -> dict[str, int]:
    """The integers of the objects that the module holds and that are no modules and no tensors."""
    return {
        name: integer
        for attribute, value in held_objects(module).items()
        for inner, entry in vars(value).items()
        if not inner.startswith("_")
        for name, integer in _integers(f"{attribute}.{inner}", entry)
    }


def held_objects(module: nn.Module) -> dict[str, Any]:
    """The objects with attributes that the module holds and that are no modules and no tensors."""
    return {
        attribute: value
        for attribute, value in vars(module).items()
        if attribute not in _OF_EVERY_MODULE and _is_holder(value)
    }


def get_integer(module: nn.Module, name: str) -> int | None:
    """The integer of this name; None if the module has none."""
    keys = _keys(name)
    value: Any = module
    for key in keys:
        try:
            value = vars(value)[key] if isinstance(key, str) else value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value if keys and type(value) is int else None


def set_integers(module: nn.Module, values: Mapping[str, int]) -> None:
    """Replace integers that the module has; `changed_integers` lists them from then on.

    Lists, tuples and objects may be shared with other modules, so the module gets a copy of its own.
    """
    for name, value in values.items():
        attribute, *inner = _keys(name)
        assert isinstance(attribute, str)
        vars(module)[attribute] = _replaced(vars(module)[attribute], inner, value)
    if values:
        vars(module)[_MARK] = tuple(sorted({*vars(module).get(_MARK, ()), *values}))


def changed_integers(module: nn.Module) -> dict[str, int]:
    """The integers that `set_integers` has changed, as they are now."""
    names = vars(module).get(_MARK, ())
    values = {name: get_integer(module, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _integers(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, int]]:
    if type(value) is int:
        yield name, value
    elif isinstance(value, (list, tuple)) and depth < _DEEPEST:
        for position, entry in enumerate(value):
            yield from _integers(f"{name}[{position}]", entry, depth + 1)


def _is_holder(value: Any) -> bool:
    return hasattr(value, "__dict__") and not (
        isinstance(value, (type, nn.Module, torch.Tensor, torch.Generator)) or callable(value)
    )


def _keys(name: str) -> list[str | int]:
    match = _NAME.fullmatch(name)
    if match is None:
        return []
    attribute, inner, places = match.groups()
    return [attribute, *([inner] if inner else []), *map(int, re.findall(r"\d+", places))]


def _replaced(old: Any, keys: list[str | int], value: int) -> Any:
    """``old``, or a copy of it in which the integer at these keys is ``value``."""
    if not keys:
        return value
    key, *inner = keys
    if isinstance(key, str):
        changed = copy.copy(old)
        vars(changed)[key] = _replaced(vars(old)[key], inner, value)
        return changed
    entries = list(old)
    entries[key] = _replaced(entries[key], inner, value)
    return old._make(entries) if hasattr(old, "_make") else type(old)(entries)
