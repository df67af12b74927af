"""The grown network against its rival: which one is deployed, and who won, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from growpipe.checks.measure.accuracy import Accuracy
from growpipe.run.facts import JudgedFacts, TrainFacts
from growpipe.run.recipe import Recipe
from growpipe.run.recipe_limits import budget_of
from growpipe.run.stages.names import BRANCH, CHECK, RIVAL, TRAIN, previous_stage, rival_of_branch
from growpipe.run.store import Run, StageRecord

__all__ = ["Verdict", "judge", "judge_branch", "verdict_words"]


@dataclass(frozen=True)
class Verdict:
    """The end of a run.

    Attributes:
        deployed: ``grown`` or ``rival``.
        words: one sentence for people.
    """

    deployed: str
    words: str


@dataclass(frozen=True)
class Contender:
    """A trained network.

    Attributes:
        training: how it was trained, with its figures on the validation set.
        test_accuracy: None if accuracy is not measured.
    """

    training: TrainFacts
    test_accuracy: Accuracy | None


def judge(run: Run, number: int) -> Verdict:
    """Compare the network of round ``number`` with the rival, if there is one.

    Raises:
        UsageError: the round is not checked yet.
    """
    grown = Contender(
        previous_stage(run, number, TRAIN).facts, previous_stage(run, number, CHECK).facts.test_accuracy
    )
    return _compare(run.recipe, grown, run.published(RIVAL))


def judge_branch(run: Run, number: int) -> Verdict:
    """Compare the branch of round ``number`` in a family with its rival, if there is one.

    Raises:
        UsageError: the round has no branch yet.
    """
    branch = previous_stage(run, number, BRANCH).facts
    grown = Contender(branch.training, branch.test_accuracy)
    return _compare(run.recipe, grown, run.published(rival_of_branch(number)))


def _compare(recipe: Recipe, grown: Contender, trained: StageRecord[JudgedFacts] | None) -> Verdict:
    """Compare a grown network with its rival.

    Args:
        recipe: says which of them is to be deployed.
        grown: the grown network.
        trained: the rival; None if there is none.
    """
    finish = recipe.growth.finish
    own = "grown and retrained" if finish == "retrain" else "grown"
    if trained is None:
        return Verdict("grown", f"{own} {_figure(grown)}; no rival was trained")
    rival = Contender(trained.facts.training, trained.facts.test_accuracy)
    better = "rival" if _better(rival.training, grown.training) else "grown"
    deployed = {"best": better, "rival": "rival"}.get(finish, "grown")
    reason = "better on the validation set" if finish == "best" else f'as finish = "{finish}" asks'
    words = (
        f"{own} {_figure(grown)}, uniform from scratch {_figure(rival)} at the same {_measure(recipe)}: "
        + verdict_words(grown.test_accuracy, rival.test_accuracy, better)
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


def _figure(contender: Contender) -> str:
    if contender.test_accuracy is None:
        return f"validation loss {contender.training.validation_loss:.4g}"
    return f"{100 * contender.test_accuracy.value:.1f} %"


def _measure(recipe: Recipe) -> str:
    """What the two networks have in common."""
    budget = budget_of(recipe, 0)
    measures = {
        "parameters": budget.parameters is not None,
        "MACs": budget.macs is not None,
        "latency": budget.milliseconds is not None,
        "cost": budget.table is not None,
    }
    return " and ".join(name for name, bounded in measures.items() if bounded) or "MACs"
