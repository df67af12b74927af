"""The story of a run that never was, for tests of pages."""

from __future__ import annotations

from growpipe.pages.content import (
    CheckLine,
    Curve,
    GroupGrowth,
    Measured,
    Network,
    RoundStory,
    RunStory,
)
from growpipe.quality import METRICS, Quality

__all__ = ["story"]


def story(
    name: str = "conv1.weight", *, rounds: int = 2, groups: int = 2, quality: Quality = METRICS["accuracy"]
) -> RunStory:
    """A finished run.

    Args:
        name: of the first group, and part of every other text.
        rounds: how often it grew.
        groups: the number of its channel groups.
        quality: what networks are judged by.
    """
    names = [name, *(f"conv{index}.weight" for index in range(2, groups + 1))]

    def network(label: str, kind: str, width: int, score: float, **more: object) -> Network:
        found = Measured(score, score - 0.02, score + 0.01)
        widths = dict.fromkeys(names, width)
        return Network(label, kind, widths, 100 * width, 1000 * width, 10, 10**9, found, 1 - score, **more)  # type: ignore[arg-type]

    return RunStory(
        title=f"run of {name}",
        verdict=f"Grown 90.0 %, for {name}.",
        stopped="the budget is spent",
        networks=(
            network("round 0", "seed", 2, 0.8, milliseconds=0.5),
            *(network(f"round {n}", "grown", 2 + 2 * n, 0.8 + 0.05 * n) for n in range(1, rounds + 1)),
            network("rival", "rival", 2 * rounds, 0.85, deployed=True),
            network("control", "control", 2, 0.6),
        ),
        size="parameters",
        limit=700.0,
        rounds=(
            *(
                RoundStory(n, None, 0.2, -0.1, -0.05, 1.0, "the budget is spent", tuple(_growths(names)))
                for n in range(rounds)
            ),
            RoundStory(rounds, stopped=f"nothing is left to split in {name}"),
        ),
        curves=(
            Curve("grown", "grown", (1.0, 0.5, 0.6, 0.3), (1.1, 0.4, 0.4, 0.1), (2,)),
            Curve("rival", "rival", (1.2, 0.4), (1.3, 0.2)),
        ),
        checks=(CheckLine("round 0", f"parity of {name}", "3.0e-07", "≤ 1e-05"),),
        environment=(("torch", name),),
        command=f"growpipe run {name}",
        recipe=f'name = "{name}"\n',
        quality=quality,
    )


def _growths(names: list[str]) -> list[GroupGrowth]:
    splits = {"positive pair": 2}
    first = GroupGrowth(names[0], 2, 4, -0.1, -0.2, 0.2, 30, 400, splits, (-1.0, -0.5, 0.1), (0.2, 0.4, 2.0))
    return [first, *(GroupGrowth(name, 2, 2, low=(0.0,), high=(0.0,)) for name in names[1:])]
