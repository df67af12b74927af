"""A run that is killed: does it end with the same files, and no others?

    python -m benchmarks.torture.kills [--kills 200] [--work FOLDER] [--record]

One small run on digits, with growth, a rival and a control, is killed (SIGKILL) before each of its renames
and, when it was started again, right after that rename; each in a new folder. It is killed at random moments
too, many times in one folder. Then it is started again and must end with exit code 0. Every file must be
there that the undisturbed run has, no other one, and all must be equal byte for byte, except those that hold
measured times. A rename is seen by an audit hook: every file and folder of a run appears by one. What was
stopped goes on where it was, as long as the code of growpipe stays the same. ``--record`` writes
results/kills.json and RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.common import record
from benchmarks.common.command import run_command
from benchmarks.graph.corpus import cache_folder
from growpipe.graph_ops.errors import CheckFailed

COMMAND = "python -m benchmarks.torture.kills"
IN_ONE_FOLDER = 20
"""Random kills until a run is left to end."""

RECIPE = """
name = "quick"
model = "growpipe.models.digits:build"
data = "growpipe.data.digits:loaders"
inputs = ["image"]
outputs = ["logits"]
[train]
epochs = 1
final_epochs = 1
threads = 1
[growth]
rounds = 1
share = 0.5
samples = 64
[control]
seed_control = true
[budget]
parameters = 900
"""

MEASURED = ("manifest.json", "report.html", "report.json", "summary.json", "summary.md")
"""Files that hold times, or the hash of a file that does."""


@dataclass(frozen=True)
class Trial:
    """One folder in which the run is killed and then ends.

    Attributes:
        kind: ``at a rename`` or ``at random``.
        number: of the rename, from 0, or of the seed of the moments.
    """

    kind: str
    number: int


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        trial: the trial.
        kills: how often the run was killed.
        fault: what is wrong at the end; empty if nothing is.
        code: the revision of growpipe.
    """

    trial: Trial
    kills: int
    fault: str
    code: str


class Killer:
    """Kills this process at one of its renames; an audit hook."""

    def __init__(self) -> None:
        self.renames = 0
        self._armed = False
        self._before: int | None = None
        self._after: int | None = None

    def arm(self, before: int | None, after: int | None) -> None:
        """Count from now on; kill before the rename of that number, or right after the other one."""
        self.renames, self._before, self._after, self._armed = 0, before, after, True

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed:
            return
        if self._after is not None and self.renames > self._after:
            self._kill()
        if event == "os.rename":
            if self.renames == self._before:
                self._kill()
            self.renames += 1

    def _kill(self) -> None:
        self._armed = False  # a kill is an event too
        os.kill(os.getpid(), signal.SIGKILL)


class Runs:
    """Runs of one recipe in forked processes.

    Attributes:
        folder: where the recipe and the runs are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = folder / "recipe.toml"
        self.recipe.write_text(RECIPE)
        _import_all()
        self._killer = Killer()
        sys.addaudithook(self._killer)

    def start(self, run: Path, *, before: int | None = None, after: int | None = None) -> int:
        """Begin or go on with a run; the number of the process. See `Killer.arm`."""
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            os.setsid()
            log = os.open(f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            from growpipe.cli import main

            self._killer.arm(before, after)
            main(["run", str(self.recipe), "--out", str(run)])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        finally:
            Path(f"{run}.renames").write_text(str(self._killer.renames))
            os._exit(code)

    def end(self, run: Path) -> str:
        """Let a run end; what is wrong with how it did, empty if nothing is."""
        _, status = os.waitpid(self.start(run), 0)
        if not status:
            return ""
        last = Path(f"{run}.log").read_text(errors="replace").strip().splitlines()[-1:]
        return f"it ended with {os.waitstatus_to_exitcode(status)}: {''.join(last)[:200]}"


def _import_all() -> None:
    """What a run imports, so that a killed one costs only its own time."""
    import matplotlib.pyplot  # noqa: F401
    import onnxscript  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch.export  # noqa: F401

    import growpipe.analyser
    import growpipe.commands.run
    import growpipe.run.loop  # noqa: F401


def contents(run: Path) -> dict[str, bytes]:
    """By name every file of a run; one that holds times is empty."""
    return {
        path.relative_to(run).as_posix(): b"" if path.name in MEASURED else path.read_bytes()
        for path in sorted(run.rglob("*"))
        if not path.is_dir()
    }


def differences(run: Path, wanted: dict[str, bytes]) -> str:
    """What of a run is not as in the undisturbed one; empty if nothing is."""
    found = contents(run)
    if found.keys() != wanted.keys():
        strays, missing = sorted(found.keys() - wanted.keys()), sorted(wanted.keys() - found.keys())
        return f"stray files {strays[:5]}, missing files {missing[:5]}"
    others = [name for name in wanted if found[name] != wanted[name]]
    return f"other contents: {others[:5]}" if others else ""


def killed_at_a_rename(runs: Runs, run: Path, number: int) -> int:
    """Kill a run before a rename, and the next one after it has done that rename; how often it was killed."""
    kills = 0
    for process in (lambda: runs.start(run, before=number), lambda: runs.start(run, after=0)):
        _, status = os.waitpid(process(), 0)
        kills += os.WIFSIGNALED(status)
    return kills


def killed_at_random(runs: Runs, run: Path, seed: int, seconds: float) -> int:
    """Kill a run at random moments, until it ends before a kill; how often it was killed."""
    chance = Random(seed)
    kills = 0
    while kills < IN_ONE_FOLDER:
        process = runs.start(run)
        time.sleep(chance.uniform(0.0, seconds / (0.4 * IN_ONE_FOLDER)))
        os.kill(process, signal.SIGKILL)  # a zombie if it has ended
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status):
            break
        kills += 1
    return kills


def outcomes(work: Path, journal: Path, kills: int) -> list[Outcome]:
    """Run the trials that the journal does not have, and return all."""
    code = record.code_hash()
    done = {outcome.trial: outcome for outcome in _entries(journal) if outcome.code == code}
    runs = Runs(work)
    reference = work / f"undisturbed-{code}"
    seconds, renames = undisturbed(runs, reference)
    wanted = contents(reference)
    for trial in _trials(renames, lambda: kills - _count(done.values(), "at random")):
        if trial in done:
            continue
        run = work / f"{trial.kind.replace(' ', '-')}-{trial.number}"
        shutil.rmtree(run, ignore_errors=True)
        if trial.kind == "at random":
            count = killed_at_random(runs, run, trial.number, seconds)
        else:
            count = killed_at_a_rename(runs, run, trial.number)
        fault = runs.end(run) or differences(run, wanted)
        done[trial] = Outcome(trial, count, fault, code)
        with journal.open("a") as file:
            file.write(json.dumps(asdict(done[trial])) + "\n")
        print(f"{trial.kind} {trial.number}: {count} kills {fault or 'the same'}", flush=True)
        if not fault:
            shutil.rmtree(run)
    return list(done.values())


def undisturbed(runs: Runs, run: Path) -> tuple[float, int]:
    """The seconds and the renames of the run that nobody kills; it is made if it is not there."""
    facts = Path(f"{run}.json")
    if not facts.exists():
        shutil.rmtree(run, ignore_errors=True)
        started = time.monotonic()
        fault = runs.end(run)
        if fault:
            raise CheckFailed(f"the undisturbed run is no reference: {fault}")
        seconds = time.monotonic() - started
        facts.write_text(json.dumps([seconds, int(Path(f"{run}.renames").read_text())]))
    seconds, renames = json.loads(facts.read_text())
    return seconds, renames


def _trials(renames: int, left: Callable[[], int]) -> Iterator[Trial]:
    for number in range(renames):
        yield Trial("at a rename", number)
    number = 0
    while left() > 0:
        yield Trial("at random", number)
        number += 1


def _count(found: Sequence[Outcome] | Any, kind: str) -> int:
    return sum(outcome.kills for outcome in found if outcome.trial.kind == kind)


def _entries(journal: Path) -> Iterator[Outcome]:
    if journal.exists():
        for line in journal.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that a kill cut off
            yield Outcome(Trial(**entry.pop("trial")), **entry)


def summary(found: Sequence[Outcome]) -> str:
    """The section of RESULTS.md."""
    kinds = Counter(outcome.trial.kind for outcome in found)
    rows = "\n".join(
        f"| {kind} | {folders} | {_count(found, kind)} | "
        f"{sum(bool(o.fault) for o in found if o.trial.kind == kind)} |"
        for kind, folders in kinds.items()
    )
    return f"""
## Killed runs (`torture/kills.py`)

A small run on digits (one round of growth, a rival, a control) is killed by SIGKILL and started again. At the
end every file is there that the undisturbed run has, no other one, and all are equal byte for byte, except
those that hold measured times ({", ".join(MEASURED)}). "At a rename" kills before a rename, and right
after it when the run was started again; "at random" kills up to {IN_ONE_FOLDER} times in one folder.

| killed | runs | kills | faults |
|---|---|---|---|
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="kills at random moments")
    parser.add_argument("--work", type=Path, help="where the runs and the journal go")
    parser.add_argument("--record", action="store_true", help="write results/kills.json and RESULTS.md")
    arguments = parser.parse_args()
    work: Path = (arguments.work or cache_folder("kills")).absolute()
    work.mkdir(parents=True, exist_ok=True)
    found = outcomes(work, work / "journal.jsonl", arguments.kills)
    faults = [outcome for outcome in found if outcome.fault]
    if arguments.record:
        record.append("kills", {"command": f"{COMMAND} --record", "trials": [asdict(o) for o in found]})
        record.summarise("kills", summary(found))
    print(summary(found))
    if faults:
        raise CheckFailed(f"{len(faults)} of {len(found)} runs do not end alike: {faults[0].fault}")


if __name__ == "__main__":
    run_command(main)
