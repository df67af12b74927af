"""Files of the wild: what every command makes of ONNX files that ship in public packages.

    python -m benchmarks.graph.wild [--second] [--only NAME] [--folder CACHE] [--fresh] [--record]

Every file of `corpus.PACKAGES`, or with ``--second`` of `corpus.SECOND`, goes through ``inspect``, a random
``plan``, ``grow``, ``deploy`` (of the file and of the grown one) and ``check``, each in a process of its own
with limits of time and memory. The packages are fetched by pip and npm into a cache folder: ``--folder``, or
``wild`` in the folder that GROWPIPE_DATA names, or in the user's cache. Whether a form computes what its file
computes is judged by `parity`, not by growpipe.

A verdict is ``ok``, ``declined`` (with the reason) or ``fault``. A run that was stopped goes on where it was,
as long as the code of growpipe stays the same. ``--record`` writes results/wild.json and RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import record
from benchmarks.common.child import Ended, run_child
from benchmarks.common.command import run_command
from benchmarks.common.fuzzing import revision_words
from benchmarks.graph.corpus import PACKAGES, SECOND, Package, WildFile, cache_folder, fetch
from growpipe.graph_ops.errors import CheckFailed, UsageError

SECONDS = 300.0
MEGABYTES = 12_000
GROWTH = 0.3

STEPS = ("inspect", "plan", "grow", "deploy", "deploy grown", "check", "check form", "check release")

_OBJECT = re.compile(r"\bat 0x[0-9a-f]{6,}|<[\w.]+ object|anonymous:\d{6,}|\b1[34]\d{13}\b")
"""What a message shows if it shows an object of the program."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one command made of one file.

    Attributes:
        verdict: ``ok``, ``declined``, ``fault`` or ``skipped``.
        what: the reason, in one line.
        seconds: the time of the command.
    """

    verdict: str
    what: str = ""
    seconds: float = 0.0


class Trial:
    """The commands on one file, in a folder of its own.

    Attributes:
        file: the file.
        folder: where the forms go.
    """

    def __init__(self, file: WildFile, folder: Path) -> None:
        self.file = file
        self.folder = folder
        self.facts: dict[str, Any] = {}
        self._feeds = folder / "feeds.json"

    def run(self) -> dict[str, Verdict]:
        """The verdict of every step."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._probe()
        steps: dict[str, Callable[[], Verdict]] = {
            "inspect": self._inspect,
            "plan": self._plan,
            "grow": self._grow,
            "deploy": lambda: self._deploy(self.file.path, self.folder / "form"),
            "deploy grown": self._deploy_grown,
            "check": lambda: self._check("--format", "text"),
            "check form": self._check_form,
            "check release": self._check_release,
        }
        verdicts: dict[str, Verdict] = {}
        for name, step in steps.items():
            verdicts[name] = step()
        return verdicts

    def _growpipe(self, *arguments: object) -> Ended:
        command = [sys.executable, "-m", "growpipe", *map(str, arguments)]
        return run_child(command, seconds=SECONDS, megabytes=MEGABYTES, environment={"COLUMNS": "500"})

    def _probe(self) -> None:
        ended = _parity("probe", self.file.path)
        feeds = json.loads(ended.stdout) if ended.code == 0 else []
        self._feeds.write_text(json.dumps(feeds))
        self.facts["feeds"] = len(feeds)

    def _inspect(self) -> Verdict:
        ended = self._growpipe("inspect", self.file.path, "--json")
        if ended.code:
            return _refused(ended, "fault")
        found = json.loads(ended.stdout)
        groups = found["groups"]
        self.facts["groups"] = len(groups)
        self.facts["splittable"] = sum(bool(group["splittable"]) for group in groups)
        self.facts["macs"] = found["macs"]
        stays = [group["barrier"] or _BY_FACTORS for group in groups if not group["splittable"]]
        barriers = stays + found["barriers"]
        self.facts["barriers"] = dict(Counter(map(_barrier, barriers)))
        self.facts["uncounted"] = len(found["uncounted"])
        shown = _OBJECT.search(ended.stdout + ended.stderr)
        if shown:
            return Verdict("fault", f"shows an object: {shown.group()}", ended.seconds)
        return Verdict(
            "ok", f"{self.facts['splittable']} of {len(groups)} channel groups splittable", ended.seconds
        )

    def _plan(self) -> Verdict:
        ended = self._growpipe(
            "plan", self.file.path, "--random", "--growth", GROWTH, "-o", self.folder / "plan"
        )
        if ended.code == 0:
            return Verdict("ok", "", ended.seconds)
        refused = _refused(ended, "fault")
        if self.facts.get("splittable", 0) or ended.code != 2 or ended.traceback:
            return refused
        barriers = Counter({_kind(reason): n for reason, n in self.facts.get("barriers", {}).items()})
        if not barriers:
            # A file whose weights the graph computes, or that has none, has nothing to show a barrier at.
            if "no channel group: " in refused.what:
                return Verdict("declined", refused.what, ended.seconds)
            return Verdict("fault", f"nothing says why: {refused.what}", ended.seconds)
        why = "; ".join(f"{reason} ({n})" for reason, n in barriers.most_common(4))
        return Verdict("declined", f"no group splits: {why}", ended.seconds)

    def _grow(self) -> Verdict:
        if not (self.folder / "plan").is_dir():
            return Verdict("skipped", "no plan")
        grown = self.folder / "grown.onnx"
        ended = self._growpipe("grow", self.file.path, "--plan", self.folder / "plan", "-o", grown)
        if ended.code:
            return _refused(ended, "fault")
        return self._judged(grown, ended)

    def _deploy(self, model: Path, form: Path) -> Verdict:
        ended = self._growpipe("deploy", model, "-o", form)
        if ended.code:
            return _refused(ended, "fault")
        return self._judged(form / "model.onnx", ended)

    def _deploy_grown(self) -> Verdict:
        grown = self.folder / "grown.onnx"
        if not grown.exists():
            return Verdict("skipped", "not grown")
        return self._deploy(grown, self.folder / "grown-form")

    def _judged(self, form: Path, ended: Ended) -> Verdict:
        if not self.facts["feeds"]:
            return Verdict("ok", "not compared: no input was found that the file accepts", ended.seconds)
        judge = _parity("compare", self.file.path, form, "--feeds", self._feeds)
        if judge.code:
            return Verdict("fault", f"onnxruntime ended on the form: {_how(judge)}", ended.seconds)
        found = json.loads(judge.stdout)
        if not found["same"]:
            return Verdict("fault", f"another function: {found['what']}", ended.seconds)
        return Verdict("ok", found["what"] or f"{found['relative']:.0e}", ended.seconds)

    def _check(self, *options: object) -> Verdict:
        ended = self._growpipe("check", *options, self.file.path)
        return _checked(ended)

    def _check_form(self) -> Verdict:
        form = self.folder / "form" / "model.onnx"
        if not form.exists():
            return Verdict("skipped", "not deployed")
        return _checked(self._growpipe("check", "--reference", self.file.path, "--skip", "latency", form))

    def _check_release(self) -> Verdict:
        """What the strict profile says: its verdict is no fault of growpipe's, unless it breaks."""
        help_text = self._growpipe("check", "--help").stdout
        if "--profile" not in help_text:
            return Verdict("skipped", "there are no profiles")
        verdict = _checked(self._growpipe("check", "--profile", "release", self.file.path))
        strict = verdict.verdict == "fault" and verdict.what.startswith("fails a file")
        return Verdict("declined", verdict.what, verdict.seconds) if strict else verdict


_BY_FACTORS = "none: the group grows by whole factors, which this benchmark does not ask for"


def _barrier(barrier: object) -> str:
    if isinstance(barrier, dict):
        return f"{barrier.get('operator')}: {barrier.get('reason')}"
    return str(barrier)


def _parity(command: str, *arguments: object) -> Ended:
    line = [sys.executable, "-m", "benchmarks.graph.parity", command, *map(str, arguments)]
    return run_child(line, seconds=SECONDS, megabytes=MEGABYTES, folder=record.FOLDER.parent)


def _how(ended: Ended) -> str:
    if ended.timed_out:
        return f"no end after {SECONDS:.0f} s of processor time"
    if ended.signal:
        return f"ended by {ended.signal}"
    return f"exit {ended.code}: {ended.last_line[:400]}"


def _refused(ended: Ended, otherwise: str) -> Verdict:
    """What a command that did not succeed is: a fault if it broke, else ``otherwise``."""
    what = _how(ended)
    if ended.traceback:
        return Verdict("fault", f"traceback: {ended.last_line[:300]}", ended.seconds)
    if ended.timed_out or ended.signal:
        return Verdict("fault", what, ended.seconds)
    if _OBJECT.search(ended.stderr):
        return Verdict("fault", f"shows an object: {what}", ended.seconds)
    return Verdict(otherwise, what, ended.seconds)


def _checked(ended: Ended) -> Verdict:
    if ended.code == 0:
        shown = _OBJECT.search(ended.stdout)
        return (
            Verdict("fault", f"shows an object: {shown.group()}", ended.seconds)
            if shown
            else Verdict("ok", "", ended.seconds)
        )
    if ended.code == 1 and not ended.traceback:
        failed = [" ".join(line.split())[:260] for line in ended.stdout.splitlines() if "FAILED" in line[:14]]
        return Verdict("fault", "fails a file that runs: " + "; ".join(failed), ended.seconds)
    return _refused(ended, "fault")


def summary(rows: dict[str, dict[str, Any]], packages: Sequence[Package]) -> str:
    """The section of RESULTS.md."""
    steps = [
        step for step in STEPS if any(row["steps"][step]["verdict"] != "skipped" for row in rows.values())
    ]
    counts = {step: Counter(row["steps"][step]["verdict"] for row in rows.values()) for step in steps}
    head = "| step | ok | declined | fault | skipped |\n|---|---|---|---|---|\n" + "\n".join(
        f"| {step} | {c['ok']} | {c['declined']} | {c['fault']} | {c['skipped']} |"
        for step, c in counts.items()
    )
    table = f"| file | groups | {' | '.join(steps)} |\n|---|---|{'---|' * len(steps)}\n" + "\n".join(
        f"| {name} | {row['facts'].get('splittable', '')}/{row['facts'].get('groups', '')} | "
        + " | ".join(_cell(row["steps"][step]) for step in steps)
        + " |"
        for name, row in rows.items()
    )
    reasons = "\n".join(_reasons(rows, steps)) or "None."
    barriers: Counter[str] = Counter()
    for row in rows.values():
        barriers.update({_kind(reason): n for reason, n in row["facts"].get("barriers", {}).items()})
    most = "\n".join(f"| {reason} | {n} |" for reason, n in barriers.most_common(25))
    count = len({package.name for package in packages})
    second = ", second list" if packages is SECOND else ""
    return f"""
## Files of the wild{second} (`graph/wild.py`)

{len(rows)} ONNX files that ship in {count} public packages. "grow" adds {GROWTH:.0%} to every
group at ε = 0; "check form" compares the deploy form with its file. The number is the largest difference
between the form and its file over the scale of the output, on several sizes, batch sizes and seeds, at the
lowest and highest optimisation of onnxruntime, judged by `parity.py`.
{revision_words(list(rows.values()))}

{head}

{table}

Every decline and fault:

{reasons}

Why groups of channels do not split, by operator and reason:

| barrier | groups |
|---|---|
{most}
"""


def _cell(verdict: dict[str, Any]) -> str:
    if verdict["verdict"] == "ok":
        return verdict["what"] if re.fullmatch(r"[\de+-]+", verdict["what"]) else "ok"
    return {"skipped": "", "declined": "declined"}.get(verdict["verdict"], "**fault**")


def _kind(barrier: str) -> str:
    """A barrier without the names that belong to one file."""
    return re.sub(r"\s+", " ", re.sub(r"'[^']*'|\d+", "…", barrier)).replace("|", "/")[:140]


def _reasons(rows: dict[str, dict[str, Any]], steps: Iterable[str]) -> list[str]:
    return [
        f"- {name}, {step}: {entry['verdict']}, {entry['what']}".replace("|", "/")
        for name, row in rows.items()
        for step in steps
        if (entry := row["steps"][step])["verdict"] in ("declined", "fault")
    ]


def _faults(row: dict[str, Any]) -> int:
    return sum(entry["verdict"] == "fault" for entry in row["steps"].values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--only", action="append", default=[], help="files whose name has this in it; repeatable"
    )
    parser.add_argument("--second", action="store_true", help="the files of `corpus.SECOND` instead")
    parser.add_argument("--folder", type=Path, help="where the packages lie, or go")
    parser.add_argument(
        "--work", type=Path, help="where the forms go (default: in the folder of the packages)"
    )
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    parser.add_argument(
        "--earlier", action="store_true", help="keep what earlier revisions gave, if it is no fault"
    )
    parser.add_argument("--record", action="store_true", help="write results/wild.json and RESULTS.md")
    arguments = parser.parse_args()
    name, packages = ("wild_second", SECOND) if arguments.second else ("wild", PACKAGES)
    folder = cache_folder(name, arguments.folder).absolute()
    files = [
        f for f in fetch(packages, folder) if not arguments.only or any(o in f.name for o in arguments.only)
    ]
    if not files:
        raise UsageError(f"no file of the corpus has {' or '.join(arguments.only)} in its name")
    work = (arguments.work or folder / "work").absolute()
    code = record.code_hash()
    rows: dict[str, dict[str, Any]] = {}
    started = time.monotonic()
    for number, file in enumerate(files, 1):
        place = work / file.name.replace("/", "_")
        state = place / "verdicts.json"
        row = json.loads(state.read_text()) if state.exists() and not arguments.fresh else {}
        if row.get("code") != code and not (arguments.earlier and row and not _faults(row)):
            trial = Trial(file, place)
            verdicts = trial.run()
            row = {
                "code": code,
                "facts": trial.facts,
                "steps": {step: asdict(verdict) for step, verdict in verdicts.items()},
            }
            state.write_text(json.dumps(row, indent=1))
        rows[file.name] = row
        elapsed = time.monotonic() - started
        print(f"[{number}/{len(files)} {elapsed:.0f} s] {file.name}", flush=True)
        for step, entry in row["steps"].items():
            if entry["verdict"] in ("fault", "declined"):
                print(f"    {step}: {entry['verdict']}: {entry['what']}", flush=True)
    if arguments.record and not arguments.only:
        options = " --second" * arguments.second + " --earlier" * arguments.earlier
        command = f"python -m benchmarks.graph.wild{options} --record"
        record.append(name, {"command": command, "files": rows})
        record.summarise(name, summary(rows, packages))
    print(summary(rows, packages))
    faults = sum(map(_faults, rows.values()))
    if faults:
        raise CheckFailed(f"{faults} faults on {len(files)} files")


if __name__ == "__main__":
    run_command(main)
