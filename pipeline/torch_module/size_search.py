"""Which integers have to change with channel groups: found by trying, the most promising choice first.

A wrong integer stops ``forward`` where it is used, so a choice that gets further than the one it extends is
on the way. Choices are extended by one integer at a time; if none gets further, by two of those that have any
effect, since two lengths of one reshape must change together.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from growpipe.graph_ops.plan.joined_groups import JoinedGroups
from growpipe.torch_module.size_candidates import Change, Place, candidates_of
from growpipe.torch_module.trial_growth import SCALE, Outcome, Trials

__all__ = ["Found", "find_sizes"]

logger = logging.getLogger(__name__)

MOST_TRIALS = 160
"""For one group; a module that needs more stays as it is."""

_MOST_PAIRED = 8  # moves of which all pairs are tried
_TIERS = (0, 1, 2)

Choice = frozenset[Change]


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        changes: the integers that follow the groups.
        fault: why there is no such choice; None if there is one.
        furthest: the trial in which ``forward`` came furthest; None if none began.
    """

    changes: Choice
    fault: str | None = None
    furthest: Outcome | None = None


class _Spent(Exception):
    """The search has used its trials."""


def find_sizes(trials: Trials, bundle: JoinedGroups) -> Found:
    """The integers that must follow the widths of groups so that the module computes what it computed.

    Args:
        trials: of the module; the trial of these groups has begun.
        bundle: the groups, which grow together.
    """
    first = trials.run()
    if first.fault is None:
        return Found(frozenset(), None, first)
    fault, search = first.fault, _Search(trials, first)
    tried: dict[str, None] = {}
    for tier in _TIERS:
        candidates = candidates_of(trials, bundle, tier)
        if not candidates or (tier and candidates == search.candidates):
            continue
        tried |= dict.fromkeys(change.name for change in candidates)
        try:
            choices = search.through(candidates)
        except _Spent:
            logger.debug("%s: no choice of integers among %d", bundle, MOST_TRIALS)
            break
        if len(choices) > 1:
            either = " and of ".join(sorted(_names({c.name: None for c in choice}) for choice in choices))
            why = f"{fault}; ambiguous: a change of {either} makes it follow alike"
            return Found(frozenset(), why, search.furthest())
        if choices:
            return Found(choices[0], None, search.furthest())
    if search.scale_follows:
        why = SCALE
    elif not tried:
        why = f"{fault}; no integer of a module equals its width or a multiple of it"
    else:
        why = f"{fault}; no change of {_names(tried)} makes it follow{search.furthest_choice()}"
    return Found(frozenset(), why, search.furthest())


class _Search:
    """The choices of one bundle that were tried, and what they showed."""

    def __init__(self, trials: Trials, first: Outcome) -> None:
        self.candidates: Sequence[Change] = ()
        self._trials = trials
        self._known: dict[Choice, Outcome] = {frozenset(): first}

    def through(self, candidates: Sequence[Change]) -> list[Choice]:
        """The smallest choices that make the module follow; none if there is none.

        Raises:
            _Spent: too many choices were tried.
        """
        self.candidates = candidates
        moves = _moves(candidates)
        start: Choice = frozenset()
        waiting = [(-self._outcome(start).steps, 0, start)]
        seen, number = {start}, 0
        while waiting:
            _, _, choice = heapq.heappop(waiting)
            for extended in self._extensions(choice, moves):
                good = [other for other in extended if self._outcome(other).fault is None]
                if good:
                    return self._smallest(good)
                steps = self._outcome(choice).steps
                further = [o for o in extended if o not in seen and self._outcome(o).steps > steps]
                for other in further:
                    number += 1
                    seen.add(other)
                    heapq.heappush(waiting, (-self._outcome(other).steps, number, other))
                if further:
                    break
        return []

    def _extensions(self, choice: Choice, moves: Sequence[Choice]) -> Iterator[list[Choice]]:
        """The choice with one move more, then with two that have an effect."""
        yield _extended(choice, moves)
        effective = [
            move
            for move in moves
            if all(self._outcome(other) != self._outcome(choice) for other in _extended(choice, [move]))
        ]
        yield _extended(choice, [one | other for one, other in combinations(effective[:_MOST_PAIRED], 2)])

    @property
    def scale_follows(self) -> bool:
        """Whether ``forward`` came to its end with another scale of queries and keys."""
        return any(outcome.fault == SCALE for outcome in self._known.values())

    def furthest(self) -> Outcome:
        """The trial in which ``forward`` came furthest."""
        return max(self._known.values(), key=lambda outcome: outcome.steps)

    def furthest_choice(self) -> str:
        """The choice with which ``forward`` came furthest, and what went wrong then, in words."""
        choice = max(self._known, key=lambda choice: self._known[choice].steps)
        if not choice:
            return ""
        changes = ", ".join(f"{change.name} {change.grown}" for change in sorted(choice, key=_order))
        return f"; with {changes}: {self._known[choice].fault}"

    def _outcome(self, choice: Choice) -> Outcome:
        if choice not in self._known:
            if len(self._known) >= MOST_TRIALS:
                raise _Spent
            self._known[choice] = self._trials.run(change.sizes[0] for change in choice)
        return self._known[choice]

    def _smallest(self, choices: Iterable[Choice]) -> list[Choice]:
        """The choices without what they do not need, and those with another integer in the place of one."""
        found: dict[Choice, None] = {}
        for choice in choices:
            for change in sorted(choice, key=_order):
                if self._outcome(choice - {change}).fault is None:
                    choice -= {change}
            found[choice] = None
        smallest = [choice for choice in found if not any(other < choice for other in found)]
        return smallest if len(smallest) > 1 else [smallest[0], *self._swapped(smallest[0])]

    def _swapped(self, choice: Choice) -> list[Choice]:
        """The choices that follow alike with another integer of the same module in the place of one."""
        swapped = [
            choice - {change} | {other}
            for change in choice
            for other in self.candidates
            if other.place[0] == change.place[0] and all(other.place != kept.place for kept in choice)
        ]
        return [other for other in dict.fromkeys(swapped) if self._outcome(other).fault is None]


def _moves(candidates: Sequence[Change]) -> list[Choice]:
    """What a choice is extended by: one integer, or the same one of all blocks that are alike."""
    alike: dict[tuple[str, int], list[Change]] = {}
    for change in candidates:
        alike.setdefault((change.place[1], change.grown), []).append(change)
    together = [frozenset(changes) for changes in alike.values() if len(changes) > 1]
    return [*together, *(frozenset({change}) for change in candidates)]


def _extended(choice: Choice, moves: Iterable[Choice]) -> list[Choice]:
    """The choice with every move that adds something and gives no integer two values."""
    extended = dict.fromkeys(choice | move for move in moves)
    return [
        other for other in extended if len({change.place for change in other}) == len(other) > len(choice)
    ]


def _order(change: Change) -> Place:
    return change.place


def _names(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    return ", ".join(shown[:4]) + more
