"""The picture of a family: the metric against MACs and against measured latency, the rivals beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from growpipe.run.facts import JudgedFacts, MemberFacts
from growpipe.run.figure import GROWN_COLOR, RIVAL_COLOR, two_panels

__all__ = ["draw_family"]


def draw_family(members: Sequence[MemberFacts], path: Path) -> None:
    """Draw the members and their rivals.

    Args:
        members: the smallest first.
        path: the PNG to write.

    Raises:
        MissingEnvironment: matplotlib is not installed.
    """
    with two_panels(path, "the picture of a family", sharey=True) as (figure, left, right):
        from matplotlib.ticker import EngFormatter, MaxNLocator

        quality = members[0].grown.score.quality
        grown = [_height(member.grown) for member in members]
        left.plot(
            [m.grown.size.macs for m in members], grown, "o-", color=GROWN_COLOR, label="grown, one run"
        )
        right.plot([m.latency.candidate_ms for m in members], grown, "o-", color=GROWN_COLOR)
        rivals = [(m.rival, m.rival_latency) for m in members]
        beside = [(rival, latency) for rival, latency in rivals if rival is not None and latency is not None]
        if beside:
            heights = [_height(rival) for rival, _ in beside]
            label = "uniform from scratch, each alone"
            left.plot(
                [rival.size.macs for rival, _ in beside], heights, "D--", color=RIVAL_COLOR, label=label
            )
            right.plot([latency.candidate_ms for _, latency in beside], heights, "D--", color=RIVAL_COLOR)
        left.set(xlabel="MACs", ylabel=quality.axis("test"))
        left.xaxis.set_major_formatter(EngFormatter(sep=""))
        right.set(xlabel="latency of one sample in onnxruntime, ms")
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(5))
        figure.legend(loc="outside lower left", ncols=3, fontsize=8)


def _height(facts: JudgedFacts) -> float:
    return facts.score.quality.scaled(facts.score.value)
