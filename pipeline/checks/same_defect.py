"""One defect is one line: a check that fails for what an earlier one has found says so, and no more."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from growpipe.checks.report import CheckResult

__all__ = ["without_repeats"]

_FOLLOWS: Mapping[str, Collection[str]] = {
    # What follows from another defect wherever it stands: nothing can be said as long as that is there.
    "structure/shapes": ("safety/domains", "structure/checker", "structure/widths"),
    "structure/run": (
        "safety/domains",
        "structure/checker",
        "structure/names",
        "structure/shapes",
        "structure/widths",
    ),
    "numerics/finite": ("numerics/weights",),
    "numerics/determinism": ("structure/training",),
    "numerics/optimisation": ("structure/training", "numerics/determinism"),
    "numerics/batch": ("structure/training", "numerics/determinism"),
    "numerics/reference": ("structure/training", "numerics/determinism", "numerics/weights"),
    "numerics/torch": ("structure/training", "numerics/determinism", "numerics/weights"),
}
_SHARES_PLACE: Mapping[str, Collection[str]] = {
    # What is the same defect if both name the same node or tensor.
    "structure/checker": ("safety/domains",),
    "structure/names": ("structure/checker",),
    "structure/outputs": ("structure/shapes",),
}
_RANK = {"warned": 1, "inconclusive": 2, "failed": 3}

_WORD = re.compile(r"[^\s'\"()\[\],;]+")


def without_repeats(results: Sequence[CheckResult], names: Iterable[str]) -> list[CheckResult]:
    """The results, with those skipped that show a defect which an earlier one shows.

    A warning hides no failure.

    Args:
        results: in the order in which the checks ran.
        names: of the nodes, tensors and domains of the model.
    """
    known = {name for name in names if name}
    lacking = [result for result in results if result.status == "missing"]
    told = next((result for result in lacking if result.check == "provider/used"), (*lacking, None)[0])
    kept: list[CheckResult] = []
    for result in results:
        cause = _cause(result, kept, known) if result.status in _RANK else None
        if result.status == "missing" and result is not told:
            cause = told
        if cause is not None:
            message = f"the same defect as {cause.check}: {result.message}"
            result = replace(result, status="skipped", message=message, findings=(), advice="")
        kept.append(result)
    return kept


def _cause(result: CheckResult, earlier: Sequence[CheckResult], known: Collection[str]) -> CheckResult | None:
    for other in earlier:
        if _RANK.get(other.status, 0) < _RANK[result.status]:
            continue
        if other.check in _FOLLOWS.get(result.check, ()):
            return other
        may_share = other.check in _SHARES_PLACE.get(result.check, ())
        if may_share and _places(other, known) & _places(result, known):
            return other
    return None


def _places(result: CheckResult, known: Collection[str]) -> set[str]:
    texts = [result.message, *map(str, result.findings)]
    words = {word.strip(".:") for text in texts for word in _WORD.findall(text)}
    words |= {place for f in result.findings for place in (f.node, f.tensor)}
    return words & set(known)
