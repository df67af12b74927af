"""How the inputs of an ONNX model go into the ``forward`` of the module that it was exported from.

The exporter flattens what ``forward`` takes: a dict ``batch`` of ``x`` and ``y`` becomes inputs ``batch_x``
and ``batch_y``, a list ``xs`` becomes ``xs_0`` and ``xs_1``. Arguments that were left out are gone, and the
user may have given the inputs other names. So there can be several ways.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Call", "ways_to_call"]

MOST_WAYS = 12


@dataclass(frozen=True)
class Call:
    """One way to hand the inputs over.

    Attributes:
        arguments: by parameter: the name of an input, or a nest of dicts, lists and tuples of such names.
        by_position: whether the arguments go in by position.
    """

    arguments: Mapping[str, Any]
    by_position: bool = False

    def __str__(self) -> str:
        if self.by_position:
            return f"forward({', '.join(_shown(nest) for nest in self.arguments.values())})"
        return f"forward({', '.join(f'{name}={_shown(nest)}' for name, nest in self.arguments.items())})"

    def filled(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments by position and by name, with values in the place of the inputs' names."""
        filled = {name: _filled(nest, values) for name, nest in self.arguments.items()}
        return (list(filled.values()), {}) if self.by_position else ([], filled)


def ways_to_call(signature: inspect.Signature, names: Sequence[str]) -> list[Call]:
    """The calls that hand over every input and fill every parameter that has no default; likely ones first.

    Args:
        signature: of the module's ``forward``.
        names: of the model's inputs, in order.
    """
    ways: list[Call] = []
    for call in itertools.chain(
        _by_name(signature, names), _by_prefix(signature, names), _by_order(signature, names)
    ):
        arguments, keywords = call.filled({name: name for name in names})
        try:
            signature.bind(*arguments, **keywords)
        except TypeError:
            continue
        if call not in ways:
            ways.append(call)
        if len(ways) == MOST_WAYS or set(names) <= set(call.arguments):  # the names say it all
            break
    return ways


def _named(signature: inspect.Signature) -> list[inspect.Parameter]:
    return [p for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _by_name(signature: inspect.Signature, names: Sequence[str]) -> Iterator[Call]:
    if names and all(name in signature.parameters for name in names):
        yield Call({name: name for name in names})


def _by_prefix(signature: inspect.Signature, names: Sequence[str]) -> Iterator[Call]:
    """``batch_x`` and ``batch_y`` are a dict ``batch``; ``xs_0`` and ``xs_1`` are a list or tuple ``xs``."""
    paths: dict[str, dict[str, str]] = {}
    for name in names:
        owners = [p.name for p in _named(signature) if name == p.name or name.startswith(f"{p.name}_")]
        if not owners:
            return
        owner = max(owners, key=len)
        paths.setdefault(owner, {})[name[len(owner) + 1 :]] = name
    for sequence in (list, tuple):
        yield Call({owner: _nested(inner, sequence) for owner, inner in paths.items()})


def _nested(inner: Mapping[str, str], sequence: type[list[Any]] | type[tuple[Any, ...]]) -> Any:
    if list(inner) == [""]:
        return inner[""]
    if all(key.isdecimal() for key in inner):
        return sequence(inner.values())
    groups: dict[str, dict[str, str]] = {}
    for key, name in inner.items():
        head, _, rest = key.partition("_")
        groups.setdefault(head, {})[rest] = name
    if any("" in group and len(group) > 1 for group in groups.values()):
        return dict(inner)  # a key that is the beginning of another one: they are keys of one dict
    return {head: _nested(group, sequence) for head, group in groups.items()}


def _by_order(signature: inspect.Signature, names: Sequence[str]) -> Iterator[Call]:
    """In order: into all parameters, then with some of those left out that may be."""
    parameters = _named(signature)
    yield Call({str(position): name for position, name in enumerate(names)}, by_position=True)
    needed = [p for p in parameters if p.default is p.empty]
    # An option such as `return_dict=True` is not a tensor that was left out.
    optional = [p for p in parameters if p.default is None]
    free = len(names) - len(needed)
    if 0 <= free <= len(optional):
        for chosen in itertools.combinations(optional, free):
            kept = {p.name for p in (*needed, *chosen)}
            ordered = [p.name for p in parameters if p.name in kept]
            yield Call(dict(zip(ordered, names, strict=True)))
    if len(needed) == 1 and len(names) > 1:
        for nest in (list(names), tuple(names), {name: name for name in names}):
            yield Call({needed[0].name: nest})


def _shown(nest: Any) -> str:
    match nest:
        case dict():
            return f"{{{', '.join(f'{key}: {_shown(part)}' for key, part in nest.items())}}}"
        case list():
            return f"[{', '.join(map(_shown, nest))}]"
        case tuple():
            return f"({', '.join(map(_shown, nest))})"
    return str(nest)


def _filled(nest: Any, values: Mapping[str, Any]) -> Any:
    match nest:
        case dict():
            return {key: _filled(part, values) for key, part in nest.items()}
        case list():
            return [_filled(part, values) for part in nest]
        case tuple():
            return tuple(_filled(part, values) for part in nest)
    return values[nest]
