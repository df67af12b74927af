"""The grown network against its rival: which one is deployed, and who won, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from growpipe.checks.measure.accuracy import Accuracy
from growpipe.run.facts import TrainFacts
from growpipe.run.recipe import Recipe
from growpipe.run.stages.names import CHECK, RIVAL, TRAIN, previous_stage
from growpipe.run.store import Run

__all__ = ["Verdict", "judge", "verdict_words"]


@dataclass(frozen=True)
class Verdict:
    """The end of a run.

    Attributes:
        deployed: ``grown`` or ``rival``.
        words: one sentence for people.
    """

    deployed: str
    words: str


def judge(run: Run, number: int) -> Verdict:
    """Compare the network of round ``number`` with the rival, if there is one.

    Raises:
        UsageError: the round is not checked yet.
    """
    finish = run.recipe.growth.finish
    trained = previous_stage(run, number, TRAIN).facts
    accuracy = previous_stage(run, number, CHECK).facts.test_accuracy
    rival = run.published(RIVAL)
    own = "grown and retrained" if finish == "retrain" else "grown"
    if rival is None:
        return Verdict("grown", f"{own} {_figure(trained, accuracy)}; no rival was trained")
    better = "rival" if _better(rival.facts.training, trained) else "grown"
    deployed = {"best": better, "rival": "rival"}.get(finish, "grown")
    reason = "better on the validation set" if finish == "best" else f'as finish = "{finish}" asks'
    words = (
        f"{own} {_figure(trained, accuracy)}, "
        f"uniform from scratch {_figure(rival.facts.training, rival.facts.test_accuracy)} "
        f"at the same {_measure(run.recipe)}: "
        + verdict_words(accuracy, rival.facts.test_accuracy, better)
        + f"; deployed: the {deployed} network, {reason}"
    )
    return Verdict(deployed, words)


def verdict_words(grown: Accuracy | None, rival: Accuracy | None, better: str) -> str:
    """Who won.

    Args:
        grown: test accuracy of the grown network; None if accuracy is not measured.
        rival: test accuracy of the rival; None if accuracy is not measured.
        better: ``grown`` or ``rival``, by validation; decides if accuracy is not measured.
    """
    if grown is not None and rival is not None:
        error = math.sqrt(sum(a.value * (1 - a.value) / a.samples for a in (grown, rival)))
        difference = grown.value - rival.value
        if abs(difference) <= error:
            return f"no difference beyond the standard error of {100 * error:.1f} points"
        better = "grown" if difference > 0 else "rival"
    return "growth wins here" if better == "grown" else "plain training wins here"


def _better(first: TrainFacts, second: TrainFacts) -> bool:
    """Whether the first network is better on the validation set: by accuracy, then by loss."""

    def badness(facts: TrainFacts) -> tuple[float, float]:
        loss = facts.validation_loss
        return -(facts.validation_accuracy or 0.0), math.inf if math.isnan(loss) else loss

    return badness(first) < badness(second)


def _figure(training: TrainFacts, accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return f"validation loss {training.validation_loss:.4g}"
    return f"{100 * accuracy.value:.1f} %"


def _measure(recipe: Recipe) -> str:
    """What the two networks have in common."""
    budget = recipe.budget
    measures = {
        "parameters": budget.parameters is not None,
        "MACs": budget.macs is not None,
        "latency": budget.milliseconds is not None,
        "cost": budget.table is not None,
    }
    return " and ".join(name for name, bounded in measures.items() if bounded) or "MACs"
