"""Which attributes of which modules ``forward`` reads: observed while it runs."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from growpipe.torch_module.integers import held_objects

__all__ = ["attributes_read"]

logger = logging.getLogger(__name__)


def attributes_read(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, set[str]] | None:
    """By path of a module the names that ``forward`` reads of it.

    A name is that of an attribute (``"heads"``), or of one of an object that the module holds
    (``"config.hidden_size"``). An alias that a configuration keeps for an attribute counts as all its
    attributes of the same value.

    Args:
        model: in eval mode. Its modules are of other classes while it runs, and what they were afterwards.
        inputs: positional inputs of it.

    Returns:
        The names; None if the module does not bear being watched, so that every attribute may matter.
    """
    reads: dict[int, set[str]] = {id(module): set() for module in model.modules()}
    try:
        with _watched_objects(model, reads), _watched_modules(model, reads):
            model(*inputs)
    except Exception:  # code that insists on its exact classes
        logger.debug("%s cannot be watched: every integer may matter", type(model).__name__)
        return None
    return {path: reads[id(module)] for path, module in model.named_modules()}


Note = Callable[[Any, str], None]


def _watching(kind: type, note: Note) -> type:
    """A class that is ``kind``, and notes what is read of its objects."""

    plain: Any = kind.__getattribute__

    def read(self: Any, name: str) -> Any:
        note(self, name)
        return plain(self, name)

    return type(kind.__name__, (kind,), {"__getattribute__": read, "__module__": kind.__module__})


@contextlib.contextmanager
def _watched_modules(model: nn.Module, reads: dict[int, set[str]]) -> Iterator[None]:
    """Every module notes what is read of it inside."""
    kinds = {module: type(module) for module in model.modules()}

    def note(module: nn.Module, name: str) -> None:
        reads.get(id(module), set()).add(name)

    watchers = {kind: _watching(kind, note) for kind in set(kinds.values())}
    try:
        for module, kind in kinds.items():
            module.__class__ = watchers[kind]
        yield
    finally:
        for module, kind in kinds.items():
            module.__class__ = kind


@contextlib.contextmanager
def _watched_objects(model: nn.Module, reads: dict[int, set[str]]) -> Iterator[None]:
    """Every module holds copies of its objects inside, which note what is read of them through the module."""
    places: dict[int, tuple[set[str], str, Any]] = {}
    originals: list[tuple[nn.Module, str, Any]] = []
    watchers: dict[type, type] = {}

    def note(watched: Any, name: str) -> None:
        if id(watched) not in places:
            return
        noted, attribute, original = places[id(watched)]
        held = vars(original)
        if name in held or name.startswith("__"):
            noted.add(f"{attribute}.{name}")
        elif type(value := getattr(original, name, None)) is int:
            noted.update(f"{attribute}.{other}" for other, entry in held.items() if entry == value)

    try:
        for module in model.modules():
            for attribute, original in held_objects(module).items():
                kind = type(original)
                watched = copy.copy(original)
                try:
                    watched.__class__ = watchers.setdefault(kind, _watching(kind, note))
                except TypeError:  # a class written in C
                    reads[id(module)].update(f"{attribute}.{name}" for name in vars(original))
                    continue
                places[id(watched)] = (reads[id(module)], attribute, original)
                originals.append((module, attribute, original))
                vars(module)[attribute] = watched
        yield
    finally:
        for module, attribute, original in originals:
            vars(module)[attribute] = original
