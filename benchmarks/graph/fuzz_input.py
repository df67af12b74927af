"""One mutated file through the commands, in this process, and what counts as a fault."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.processor_time import processor_seconds
from benchmarks.common.watch import MEGABYTES, SECONDS, ended, peak, reset_peak, watched
from benchmarks.graph.fuzz_judge import is_heavy, judge
from benchmarks.graph.mutations import mutate
from growpipe.checks import equivalence
from growpipe.checks.equivalence import Equivalence
from growpipe.cli import main as growpipe_main

__all__ = ["epsilon_of", "made", "proves", "run_content", "run_input"]

_ANOTHER_FUNCTION = "another function"
_EXHAUSTED = ("hang", "slow", "memory")
_FORMS = ("form/model.onnx", "grown.onnx", "grown-form/model.onnx")
"""What the commands write, if they succeed."""


def made(corpus: Sequence[bytes], seed: int, number: int) -> tuple[bytes, str]:
    """The file of a number, and the kinds of mutation that made it."""
    random = np.random.default_rng([seed, number])
    # Small files are quick: they come more often.
    weights = 1 / np.sqrt([len(content) + 2000.0 for content in corpus])
    content = corpus[int(random.choice(len(corpus), p=weights / weights.sum()))]
    return mutate(content, corpus, random)


def run_input(
    corpus: Sequence[bytes], seed: int, number: int, folder: Path, *, show: bool = False
) -> dict[str, Any]:
    """Make input ``number`` and run the commands on it; what came of it, as JSON values.

    Args:
        corpus: the well-formed files.
        seed: the seed of the mutations.
        number: of the input.
        folder: where it goes, and everything that the commands write.
        show: whether the traceback of a fault goes to stderr.
    """
    content, kinds = made(corpus, seed, number)
    proved = proves(number)
    with contextlib.nullcontext() if proved else _without_proof():
        result = run_content(content, folder, epsilon_of(number), show=show)
    if not proved and result["fault"].startswith(_ANOTHER_FUNCTION):
        # A form that the commands' own proof refuses is not written for a user.
        proved = True
        shutil.rmtree(folder)
        result = run_content(content, folder, epsilon_of(number), show=show)
    heavy = proved and result["fault"].startswith(_EXHAUSTED) and is_heavy(folder / "model.onnx")
    if heavy:
        proved = False
        shutil.rmtree(folder)
        with _without_proof():
            result = run_content(content, folder, epsilon_of(number), show=show)
    return {"number": number, "kinds": kinds, "proved": proved, "heavy": heavy, **result}


def epsilon_of(number: int) -> float:
    """The ε of the plan for an input; at 0 the forms keep the function, and are judged."""
    return 0.01 if number % 3 else 0.0


def proves(number: int) -> bool:
    """Whether the commands run their own proof of what they write, which takes half of their time."""
    return number % 3 == 1


@contextlib.contextmanager
def _without_proof() -> Iterator[None]:
    usual = equivalence.compare_forms
    equivalence.compare_forms = lambda reference, candidate, what: Equivalence(False, "left out")
    try:
        yield
    finally:
        equivalence.compare_forms = usual


def run_content(content: bytes, folder: Path, epsilon: float = 0.0, *, show: bool = False) -> dict[str, Any]:
    """`run_input` for a file that is there, with a plan of that ε."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    reset_peak()
    started = processor_seconds()
    outcome, fault = "refused", ""
    with watched(folder) as outside:
        for name, arguments in _commands(folder, epsilon):
            code = ended(partial(growpipe_main, arguments), show=show)
            if isinstance(code, str):
                outcome, fault = "fault", f"{code} [{name}]"
                break
            if code == 3:
                outcome, fault = "fault", f"exit: {name} ended with 3, as if the machine were at fault"
                break
            if code == 0:
                outcome = name
            elif name in ("inspect", "grow"):
                break
    seconds = processor_seconds() - started
    most = peak()
    forms = [folder / name for name in _FORMS if (folder / name).is_file()]
    judged = judge(folder / "model.onnx", forms) if forms and not fault and not epsilon else "not judged"
    if judged not in ("same", "not judged"):
        outcome, fault = "fault", f"{_ANOTHER_FUNCTION}: {judged}"
    if not fault and outside:
        outcome, fault = "fault", f"outside: {outside[0]}"
    if not fault and seconds > SECONDS:
        outcome, fault = "fault", f"slow: {seconds:.1f} s"
    if not fault and most > MEGABYTES:
        outcome, fault = "fault", f"memory: {most} MB"
    return {
        "outcome": outcome,
        "fault": fault,
        "judged": judged == "same",
        "seconds": round(seconds, 3),
        "peak_mb": most,
    }


def _commands(folder: Path, epsilon: float) -> Iterator[tuple[str, list[str]]]:
    model, plan, grown = folder / "model.onnx", folder / "plan", folder / "grown.onnx"
    yield "inspect", ["inspect", str(model), "--json"]
    yield "deploy", ["deploy", str(model), "-o", str(folder / "form")]
    yield "plan", ["plan", str(model), "--random", "-o", str(plan), "--epsilon", str(epsilon)]
    if plan.is_dir():
        yield "grow", ["grow", str(model), "--plan", str(plan), "-o", str(grown)]
        if grown.is_file():
            yield "deploy grown", ["deploy", str(grown), "-o", str(folder / "grown-form")]
