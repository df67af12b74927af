"""What people are told of a stage, on stderr."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

from growpipe.checks.measure.latency import LatencyRatio
from growpipe.progress import log
from growpipe.quality import Score
from growpipe.run.facts import NetworkSize
from growpipe.run.store import StageRecord

__all__ = ["announced"]

Facts = TypeVar("Facts")

_TOLD_LAST = ("verdict",)  # the last line of the command


def announced(record: StageRecord[Facts]) -> StageRecord[Facts]:
    """Say what a stage did."""
    if record.skipped:
        log(f"{record.name}: nothing changed, skipped")
        return record
    told = [f"{name} {value}" for name, value in _told(record.facts)]
    log(f"{record.name}: " + (", ".join(told) or "done"))
    return record


def _told(facts: Any) -> Iterator[tuple[str, str]]:
    """What people are told of facts: name and value."""
    for field in dataclasses.fields(facts):
        if field.name in _TOLD_LAST:
            continue
        match getattr(facts, field.name):
            case Score() as score:
                yield (
                    f"{field.name.removesuffix('score')}{score.quality.name}",
                    score.quality.shown(score.value),
                )
            case LatencyRatio() as latency:
                yield field.name, f"{latency.ratio:.2f}"
            case NetworkSize() as size:
                yield "parameters", f"{size.parameters:,}"
                yield "MACs", f"{size.macs:,}"
            case bool() | None | "":
                pass
            case float() as number:
                yield field.name, f"{number:.4g}"
            case int() | str() as value:
                yield field.name, str(value)
            case nested if dataclasses.is_dataclass(nested):
                yield from _told(nested)
