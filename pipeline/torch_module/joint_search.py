"""Which groups a module follows only together, because it has one integer for all of them.

Queries, keys and values are views of ``head_dim`` channels each. If the queries and keys are wider, no value
of ``head_dim`` fits both them and the values; if all are, one does. So groups that no integer follows by
themselves are tried together with others that could need the same integer: with each of them, and, if that
is not enough, with one more at a time as long as ``forward`` gets further.

By how much each grows follows from that integer. With a channel more, a group changes it by its increment,
such as 1 for a value and 2 for a rotary pair, and all must change it alike. If no length of a group equals
the integer, one may be a multiple of it, as values of ``2 * head_dim`` channels are.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from growpipe.graph_ops.plan.joined_groups import JoinedGroups
from growpipe.torch_module.integers import get_integer
from growpipe.torch_module.size_candidates import Place, candidates_of, common_module, divided_lengths
from growpipe.torch_module.size_search import Found
from growpipe.torch_module.trial_growth import SCALE, Trials

__all__ = ["JointSearch"]

logger = logging.getLogger(__name__)

_MOST_PARTNERS = 8  # with which a group is tried
_MOST_RATIOS = 3  # of the steps of two groups
_MOST_FAILURES = 16  # of bundles of three groups and more

_Increments = dict[Place, list[Fraction]]

Find = Callable[[JoinedGroups, bool], Found]
"""What a bundle needs. The second argument says whether what like groups need is taken for an answer."""


class JointSearch:
    """The search for bundles among the groups that a module cannot follow by themselves.

    Args:
        trials: of the module.
        rigid: by group why it cannot grow by itself.
        find: finds what a bundle needs.
        likeness: is equal for groups that stand in the same way in blocks of the same class.

    Attributes:
        bundles: by bundle that was found, what it needs.
        faults: by group why it cannot be part of a bundle, if that says more than why it cannot grow alone.
    """

    def __init__(
        self,
        trials: Trials,
        rigid: Mapping[str, str],
        find: Find,
        likeness: Callable[[JoinedGroups], Any],
    ) -> None:
        self.bundles: dict[JoinedGroups, Found] = {}
        self.faults: dict[str, str] = {}
        self._trials, self._find, self._likeness = trials, find, likeness
        self._order = [group.name for group in trials.groups.groups]
        self._hopeless: set[Any] = set()
        self._increments = {name: self._increments_of(name) for name in rigid}
        self._divided = {name: self._divided_by(name) for name in rigid}
        self._open = list(self._increments)
        # A group that the module would follow but for its scale needs no other one.
        seeking = [name for name in self._open if rigid[name] != SCALE]
        for name in sorted(seeking, key=self._by_factor):
            if name in self._open:
                self._join(name, self._nearest(name))
        for name in (name for name in seeking if name in self._open):
            shared = self._shared_with_bundle(name) or self._shared_with_barrier(name)
            if name not in self.faults and shared is not None:
                self.faults[name] = f"{rigid[name]}; {shared}"

    def _shared_with_bundle(self, name: str) -> str | None:
        """Which groups have the integer that it may need, in words; None if there are none."""
        shared = {
            change.name: bundle
            for bundle, found in self.bundles.items()
            for change in found.changes
            if change.place in self._increments[name]
        }
        innermost = max(shared, key=lambda integer: integer.count("."), default=None)
        return None if innermost is None else f"{innermost} follows {shared[innermost]}"

    def _shared_with_barrier(self, name: str) -> str | None:
        """Which group that cannot split may need the same integer, in words; None if there is none."""
        for path, attribute in self._increments[name]:
            start = f"{path}." if path else ""
            value = get_integer(self._trials.model.get_submodule(path), attribute) or 0
            for group in self._trials.groups.groups:
                barrier = group.barrier
                within = any(m.role == "made" and m.tensor.startswith(start) for m in group.members)
                divides = group.width > 1 and value % group.width == 0
                if within and divides and barrier is not None:
                    return (
                        f"{start}{attribute} may be the width of {group.name!r}, too, which cannot split: "
                        f"{barrier}"
                    )
        return None

    def _increments_of(self, name: str) -> _Increments:
        """By how much an integer may change if the group grows by one step."""
        found: _Increments = {}
        for tier in (0, 1):
            for change in candidates_of(self._trials, self._alone(name), tier):
                found.setdefault(change.place, []).append(Fraction(change.grown - change.sizes[0].size))
        return found

    def _divided_by(self, name: str) -> _Increments:
        """As `_increments_of`, for integers that divide a length of the group."""
        found: _Increments = {}
        for place, increment in divided_lengths(self._trials, self._alone(name)):
            found.setdefault(place, []).append(increment)
        return found

    def _alone(self, name: str) -> JoinedGroups:
        return JoinedGroups.of([self._trials.groups[name]])

    def _by_factor(self, name: str) -> bool:
        return self._trials.groups[name].whole_factor is not None

    def _nearest(self, name: str) -> list[str]:
        """The partners that split in the same way first, then those of the nearest modules."""
        kind, places = self._by_factor(name), self._increments[name].keys()

        def distance(other: str) -> tuple[bool, int]:
            return self._by_factor(other) != kind, -common_module(self._trials, (name, other)).count(".")

        others = [other for other in self._open if other != name]
        exact = [other for other in others if self._increments[other].keys() & places]
        multiple = [
            other
            for other in others
            if other not in exact
            and (self._divided[other].keys() & places or self._increments[other].keys() & self._divided[name])
        ]
        return sorted(exact, key=distance) + sorted(multiple, key=distance)

    def _join(self, name: str, partners: Sequence[str]) -> None:
        """Add the bundle of a group, if there is one."""
        for other in self._unlike(partners)[:_MOST_PARTNERS]:
            for bundle in self._with(self._alone(name), other):
                found = self._found(bundle, alike=True)
                if found.fault is None:
                    return
                if found.fault == SCALE:
                    self.faults[name] = f"it grows only together with {other!r}, and then {SCALE}"
        likeness = self._likeness(self._alone(name))
        if len(partners) > 1 and likeness not in self._hopeless and not self._joined(name, partners):
            self._hopeless.add(likeness)

    def _joined(self, name: str, partners: Sequence[str]) -> bool:
        """Whether a bundle of three groups or more was found, by one more group at a time."""
        bundle, failures = self._alone(name), 0
        steps = _steps(self._found(bundle, alike=False))
        waiting = self._wider(bundle, partners)
        while waiting and failures < _MOST_FAILURES:
            other, wider = waiting.pop(0)
            found = self._found(wider, alike=False)
            if found.fault is None:
                return True
            if _steps(found) > steps:
                bundle, steps = wider, _steps(found)
                likeness = self._likeness(self._alone(other))
                alike = [one for one in partners if self._likeness(self._alone(one)) == likeness]
                if self._follows_with(bundle, alike):
                    return True
                waiting = self._wider(bundle, partners)
            else:
                failures += 1
        return False

    def _follows_with(self, bundle: JoinedGroups, alike: Sequence[str]) -> bool:
        """Whether the module follows the bundle with all these groups, one for each of its blocks."""
        for other in alike:
            if other not in bundle.names:
                bundle = next(self._with(bundle, other), bundle)
        return self._found(bundle, alike=False).fault is None

    def _wider(self, bundle: JoinedGroups, partners: Sequence[str]) -> list[tuple[str, JoinedGroups]]:
        """The bundle with each of these groups that is no part of it, one of those that are alike."""
        more = self._unlike([other for other in partners if other not in bundle.names])
        return [(other, wider) for other in more for wider in self._with(bundle, other)]

    def _unlike(self, names: Sequence[str]) -> list[str]:
        """The first of all groups that stand in the same way in blocks of the same class."""
        first = {self._likeness(self._alone(name)): name for name in reversed(names)}
        return [name for name in names if name in first.values()]

    def _with(self, bundle: JoinedGroups, other: str) -> Iterator[JoinedGroups]:
        """The bundle with one group more, in the steps with which an integer changes alike."""
        names = sorted((*bundle.names, other), key=self._order.index)
        groups = [self._trials.groups[name] for name in names]
        if any(map(self._by_factor, names)):
            yield JoinedGroups.of(groups)
            return
        for ratio in self._ratios(bundle, other):
            steps = {**bundle.channels(ratio.denominator), other: ratio.numerator}
            shared = math.gcd(*steps.values())
            yield JoinedGroups.of(groups, {name: step // shared for name, step in steps.items()})

    def _ratios(self, bundle: JoinedGroups, other: str) -> list[Fraction]:
        """How many channels the other group gets for one step of the bundle, what most integers say first."""
        votes: Counter[Fraction] = Counter()
        kinds = ((self._increments, self._increments), (self._increments, self._divided),
                 (self._divided, self._increments))  # fmt: skip
        for of_bundle, of_other in kinds:
            for name, channels in bundle.channels(1).items():
                for place, increments in of_bundle[name].items():
                    own = of_other[other].get(place, ())
                    votes.update(channels * one / another for one in increments for another in own)
            if votes:
                break
        return [ratio for ratio, _ in votes.most_common(_MOST_RATIOS)]

    def _found(self, bundle: JoinedGroups, *, alike: bool) -> Found:
        """What the groups need together; they are a bundle if there is something that they need."""
        found = self._find(bundle, alike)
        if found.fault is None and len(bundle.names) > 1:
            logger.debug("%s grow together", bundle)
            self.bundles[bundle] = found
            for name in bundle.names:
                self._open.remove(name)
                self.faults.pop(name, None)
        return found


def _steps(found: Found) -> int:
    return -1 if found.furthest is None else found.furthest.steps
