"""The table of checks. A check is a function from a `growpipe.checks.context.Context` to an `Outcome`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from growpipe.checks.report import Outcome
from growpipe.graph_ops.errors import UsageError
from growpipe.suggestions import did_you_mean

if TYPE_CHECKING:
    from growpipe.checks.context import Context

__all__ = ["AREAS", "LOAD", "Check", "all_checks", "explain", "register", "select"]

AREAS = ("safety", "structure", "provider", "numerics", "accuracy", "cost", "latency")
"""In the order in which they run: what is cheap and decisive first."""

LOAD = "safety/load"
"""The check that all others need; it cannot be left out or waived."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        id: ``area/name``.
        title: what holds when it passes.
        advice: what to do next if it fails.
        explanation: what it looks at, why it matters, its keys in the policy.
        function: does it.
        runs: needs the model to run, and is left out when it did not.
    """

    id: str
    title: str
    advice: str
    explanation: str
    function: Callable[[Context], Outcome]
    runs: bool

    @property
    def area(self) -> str:
        return self.id.partition("/")[0]


_CHECKS: dict[str, Check] = {}


def register(
    id_: str, title: str, advice: str, *, runs: bool = False
) -> Callable[[Callable[[Context], Outcome]], Callable[[Context], Outcome]]:
    """Enter a function into the table; its docstring is the explanation."""

    def enter(function: Callable[[Context], Outcome]) -> Callable[[Context], Outcome]:
        area, separator, name = id_.partition("/")
        if (
            area not in AREAS
            or not separator
            or not name
            or id_ in _CHECKS
            or not (function.__doc__ and advice)
        ):
            raise UsageError(f"check {id_!r} needs a known area, a name of its own, advice and a docstring")
        _CHECKS[id_] = Check(id_, title, advice, inspect.cleandoc(function.__doc__), function, runs)
        return function

    return enter


def all_checks() -> tuple[Check, ...]:
    """Every check, in the order in which they run."""
    for area in AREAS:
        importlib.import_module(f"growpipe.checks.areas.{area}")
    return tuple(c for area in AREAS for c in _CHECKS.values() if c.area == area)


def select(only: Sequence[str] = (), skip: Sequence[str] = ()) -> tuple[Check, ...]:
    """The checks that are asked for; a word is an id or an area. `LOAD` is always among them.

    Raises:
        UsageError: a word is neither.
    """
    checks = all_checks()
    for word in (*only, *skip):
        _known(word, checks)
    return tuple(
        c
        for c in checks
        if c.id == LOAD
        or ((not only or c.id in only or c.area in only) and not (c.id in skip or c.area in skip))
    )


def explain(word: str) -> str:
    """What a check looks at, why, and what to do when it fails.

    Raises:
        UsageError: there is no such check or area.
    """
    checks = all_checks()
    _known(word, checks)
    return "\n\n".join(
        f"{c.id}: {c.title}\n\n{c.explanation}\n\nIf it fails: {c.advice}."
        for c in checks
        if word in (c.id, c.area)
    )


def _known(word: str, checks: Iterable[Check]) -> None:
    words = [*(c.id for c in checks), *AREAS]
    if word not in words:
        raise UsageError(
            f"there is no check {word!r}{did_you_mean(word, words)}; see growpipe check --list-checks"
        )
