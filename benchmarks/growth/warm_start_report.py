"""The tables of `warm_start.py`, from its outcomes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

from benchmarks.common import record
from benchmarks.common.mean import with_error

Outcomes = Mapping[str, Mapping[int, Sequence["Outcome"]]]  # by entry and epochs after growth


@dataclass(frozen=True)
class Protocol:
    """What every entry has in common: factor in MACs, epochs of the parent, samples of the analysis."""

    factor: float
    parent_epochs: int
    samples: int


@dataclass(frozen=True)
class Outcome:
    """One trained network.

    Attributes:
        entry, seed, epochs: what was trained, and for how long after growth.
        accuracy: on the test set.
        macs: of a forward pass.
        training_macs: of the training after growth, and of the growth itself.
        parent_macs: of the training before.
        gradient_ratio: gradient of new copies over that of old ones, right after growth.
    """

    entry: str
    seed: int
    epochs: int
    accuracy: float
    macs: int
    training_macs: float
    parent_macs: float
    seconds: float
    gradient_ratio: float | None = None


def gathered(folder: Path) -> dict[str, dict[int, list[Outcome]]]:
    """The outcomes by entry and length."""
    found: dict[str, dict[int, list[Outcome]]] = {}
    for path in sorted(folder.glob("outcome-*.json")):
        outcome = Outcome(**json.loads(path.read_text(encoding="utf-8")))
        found.setdefault(outcome.entry, {}).setdefault(outcome.epochs, []).append(outcome)
    return found


def macs_to_reach(curve: Sequence[tuple[float, float]], level: float) -> float:
    """The training MACs at which a curve of (MACs, accuracy) first has this accuracy.

    Linear in the logarithm of the MACs between its points; infinite if it never has it.
    """
    (macs, accuracy), *rest = curve
    if accuracy >= level:
        return macs
    for more, higher in rest:
        if higher >= level:
            share = (level - accuracy) / (higher - accuracy)
            return math.exp(math.log(macs) + share * (math.log(more) - math.log(macs)))
        macs, accuracy = more, higher
    return math.inf


def relative_cost(
    outcomes: Mapping[int, Sequence[Outcome]], rival: Mapping[int, Sequence[Outcome]], *, parent: bool
) -> tuple[float, float]:
    """The MACs to the rival's best accuracy over those of the rival, and the standard error.

    Args:
        outcomes: of an entry, by length.
        rival: by length; its best accuracy is that of the longest.
        parent: count the training of the parent.

    Returns:
        Infinity if the accuracy is not reached; the error (jackknife over seeds) is then not a number.
    """
    longest = max(rival)
    seeds = sorted(
        set.intersection(*({o.seed for o in some} for some in (rival[longest], *outcomes.values())))
    )

    def ratio(chosen: Sequence[int]) -> float:
        def over(found: Sequence[Outcome], value: Callable[[Outcome], float]) -> float:
            return mean(value(o) for o in found if o.seed in chosen)

        level = over(rival[longest], lambda o: o.accuracy)
        curve = [
            (
                over(found, lambda o: o.training_macs + parent * o.parent_macs),
                over(found, lambda o: o.accuracy),
            )
            for _, found in sorted(outcomes.items())
        ]
        return macs_to_reach(curve, level) / over(rival[longest], lambda o: o.training_macs)

    whole, count = ratio(seeds), len(seeds)
    if count < 2 or not math.isfinite(whole):
        return whole, math.nan
    left_out = [ratio([s for s in seeds if s != gone]) for gone in seeds]
    centre = mean(left_out)
    return whole, math.sqrt((count - 1) / count * sum((value - centre) ** 2 for value in left_out))


def table(found: Outcomes) -> list[str]:
    """A row per entry. A cost is an upper bound (≤) if the shortest training has the accuracy already."""
    level = mean(o.accuracy for o in found["scratch"][max(found["scratch"])])
    lengths = sorted({epochs for outcomes in found.values() for epochs in outcomes})
    heads = [f"{epochs} epochs" for epochs in lengths]
    heads += ["MACs to scratch's best", "with the parent's", "new / old gradient"]
    lines = [f"| entry | seeds | {' | '.join(heads)} |"]
    lines.append("|---|---|" + "---|" * len(heads))
    for entry, outcomes in found.items():
        cells = []
        for epochs in lengths:
            values = [100 * o.accuracy for o in outcomes.get(epochs, [])]
            error = f" ± {stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.2f}{error}" if values else "-")
        costs = []
        shortest = mean(o.accuracy for o in outcomes[min(outcomes)])
        bound = "≤ " if entry != "scratch" and shortest > level else ""
        for parent in (False, True):
            value, error = relative_cost(outcomes, found["scratch"], parent=parent)
            error_text = "" if math.isnan(error) else f" ± {100 * error:.0f}"
            reached = f"{bound}{100 * value:.0f}{error_text} %" if math.isfinite(value) else "not reached"
            costs.append(reached)
        ratios = [
            o.gradient_ratio for some in outcomes.values() for o in some if o.gradient_ratio is not None
        ]
        count = max(len(some) for some in outcomes.values())
        ratio = f"{mean(ratios):.2f}" if ratios else "-"
        lines.append(f"| {entry} | {count} | {' | '.join(cells)} | {' | '.join(costs)} | {ratio} |")
    return lines


def against_others(found: Outcomes, chosen: str) -> list[str]:
    """A row per entry at the longest length: all of equal cost in use, with all that their training took.

    Args:
        found: the outcomes by entry and length.
        chosen: the entry that the others are compared with, seed by seed.
    """
    longest = max(length for outcomes in found.values() for length in outcomes)
    lines = [f"| entry | accuracy, % | {chosen} less it, paired | training MACs, the parent's included |"]
    lines.append("|---|---|---|---|")
    own = {o.seed: 100 * o.accuracy for o in found[chosen][longest]}
    for entry, outcomes in found.items():
        there = {o.seed: 100 * o.accuracy for o in outcomes.get(longest, [])}
        if not there:
            continue
        differences = [own[seed] - there[seed] for seed in sorted(own.keys() & there.keys())]
        paired = "-" if entry == chosen else with_error(differences, sign=True)
        macs = mean(o.training_macs + o.parent_macs for o in outcomes[longest])
        lines.append(f"| {entry} | {with_error(list(there.values()))} | {paired} | {macs:.3g} |")
    return lines


@dataclass(frozen=True)
class Page:
    """What the report of a recipe says beside its tables.

    Attributes:
        recipe: the recipe's name.
        section: the name of the section of RESULTS.md, and of the file of results.
        command: how the outcomes were made, without the entries.
        findings: Markdown that goes under the heading, or nothing.
        chosen: the entry that all others are compared with at the longest length.
    """

    recipe: str
    section: str
    command: str
    findings: str
    chosen: str


def write_report(page: Page, protocol: Protocol, found: Outcomes) -> None:
    """Write the tables into RESULTS.md, and all outcomes beside it."""
    outcomes = [asdict(o) for by_length in found.values() for some in by_length.values() for o in some]
    record.append(page.section, {"command": page.command, "protocol": asdict(protocol), "outcomes": outcomes})
    findings = f"{page.findings}\n\n" if page.findings else ""
    curves, others = ("\n".join(lines) for lines in (table(found), against_others(found, page.chosen)))
    record.summarise(
        page.section,
        f"## A trained network grown by {protocol.factor:g} in MACs: {page.recipe}\n\n{findings}"
        f"`{page.command} --entries ...`.\n"
        "Test accuracy in %, ± is the standard error over seeds. All trainings end annealed. *MACs to\n"
        "scratch's best*: training MACs after growth, the analysis charged, to the accuracy of `scratch` at\n"
        "its longest length, over those of `scratch`; then with the parent's own training, "
        f"{protocol.parent_epochs} epochs.\n\n{curves}\n\n"
        "At the longest length, with all that the training took:\n\n"
        f"{others}",
    )
