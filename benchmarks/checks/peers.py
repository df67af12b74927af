"""What each tool catches of the corpus of broken models, and what it rejects of the good ones.

Beside `growpipe check`: the ONNX checker with full checks, polygraphy (`check lint`, and `run --onnxrt
--validate`, compared with the outputs of the reference where a kind has one) and onnxslim (`--model-check`).
Tools that are not installed are left out. Every tool runs in a child process: a crash or a hang of the tool
itself is counted as such, not as a catch.

    pip install polygraphy onnx-graphsurgeon onnxslim
    python -m benchmarks.checks.peers --record
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.common.command import run_command
from benchmarks.common.record import append, summarise
from tests.helpers.broken_models import BROKEN
from tests.helpers.good_models import GOOD, save

SECONDS = 30
RESULT = "check_peers"
PACKAGES = ("growpipe", "onnx", "onnxruntime", "polygraphy", "onnx-graphsurgeon", "onnxslim")
Given = dict[str, Any]
"""The arguments of `growpipe.checks.run_checks`: ``model``, and ``reference``, ``data`` and so on."""
Tool = Callable[[Given, dict[str, Any]], bool]
"""Whether a tool rejects a model under a policy."""


def growpipe_release(given: Given, policy: dict[str, Any]) -> bool:
    from growpipe.checks import run_checks

    return run_checks(**given, policy={"profile": "release", **policy}).exit_code != 0


def growpipe_check(given: Given, policy: dict[str, Any]) -> bool:
    from growpipe.checks import run_checks

    return run_checks(**given, policy=policy).exit_code != 0


def onnx_checker(given: Given, policy: dict[str, Any]) -> bool:
    import onnx

    try:
        onnx.checker.check_model(os.fspath(given["model"]), full_check=True)
    except Exception:
        return True  # whatever it raises, it rejects the model
    return False


def _polygraphy(*arguments: str) -> bool:
    from polygraphy.tools._main import main

    try:
        return bool(main(list(arguments)))
    except (Exception, SystemExit):
        return True  # a traceback, and an exit code that is not 0


def polygraphy_lint(given: Given, policy: dict[str, Any]) -> bool:
    return _polygraphy("check", "lint", os.fspath(given["model"]))


def polygraphy_run(given: Given, policy: dict[str, Any]) -> bool:
    model = os.fspath(given["model"])
    if "reference" not in given:
        return _polygraphy("run", model, "--onnxrt", "--validate")
    with tempfile.TemporaryDirectory() as folder:
        outputs = str(Path(folder) / "outputs.json")
        if _polygraphy("run", os.fspath(given["reference"]), "--onnxrt", "--save-outputs", outputs):
            raise RuntimeError("the reference did not run")
        return _polygraphy("run", model, "--onnxrt", "--validate", "--load-outputs", outputs)


def onnxslim_model_check(given: Given, policy: dict[str, Any]) -> bool:
    import onnxslim

    with tempfile.TemporaryDirectory() as folder:
        try:
            onnxslim.slim(os.fspath(given["model"]), str(Path(folder) / "slim.onnx"), model_check=True)
        except (Exception, SystemExit):
            return True
    return False


TOOLS: dict[str, tuple[str | None, Callable[[Given, dict[str, Any]], bool]]] = {
    "growpipe check --profile release": (None, growpipe_release),
    "growpipe check": (None, growpipe_check),
    "onnx checker": (None, onnx_checker),
    "polygraphy check lint": ("onnx_graphsurgeon", polygraphy_lint),
    "polygraphy run": ("polygraphy", polygraphy_run),
    "onnxslim --model-check": ("onnxslim", onnxslim_model_check),
}
"""By name: the module that must be there, and what says whether the tool rejects a model."""


def _child(connection: Any, tool: Tool, given: Given, policy: dict[str, Any]) -> None:
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
    try:
        connection.send("caught" if tool(given, policy) else "missed")
    except BaseException as error:
        connection.send(f"broke: {type(error).__name__}")


def verdict(tool: Tool, given: Given, policy: dict[str, Any]) -> str:
    """``caught``, ``missed``, ``hung``, ``crashed`` or ``broke: error``."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=_child, args=(theirs, tool, given, policy))
    process.start()
    theirs.close()
    answered = ours.poll(SECONDS)
    if not answered:
        process.kill()
        process.join()
        return "hung"
    try:
        answer: str = ours.recv()
    except EOFError:
        answer = "crashed"
    process.join()
    return answer


def judged(tools: Mapping[str, Tool]) -> dict[str, Any]:
    """The verdict of every tool on every model of the two corpora, and what they sum up to."""
    kinds: dict[str, dict[str, Any]] = {}
    for kind, case in BROKEN.items():
        with tempfile.TemporaryDirectory() as folder:
            made = case.make(Path(folder))
            given = {"model": made} if isinstance(made, Path) else made
            verdicts = {name: verdict(tool, given, dict(case.policy)) for name, tool in tools.items()}
        kinds[kind] = {"area": case.check.partition("/")[0], "check": case.check, **verdicts}
        print(kind, verdicts, file=sys.stderr)
    good: dict[str, dict[str, str]] = {}
    for kind, make in GOOD.items():
        with tempfile.TemporaryDirectory() as folder:
            given = {"model": save(make(), Path(folder))}
            good[kind] = {name: verdict(tool, given, {}) for name, tool in tools.items()}
        print(kind, good[kind], file=sys.stderr)
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    summary = {name: _summary(name, kinds, good) for name in tools}
    return {"summary": summary, "versions": versions, "broken": kinds, "good": good}


def _summary(
    name: str, kinds: Mapping[str, Mapping[str, Any]], good: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    areas = sorted({kind["area"] for kind in kinds.values()})
    caught = [(kind["area"], kind[name] == "caught") for kind in kinds.values()]
    return {
        "caught": sum(hit for _, hit in caught),
        "of": len(kinds),
        "by_area": {
            area: [sum(hit for own, hit in caught if own == area), sum(own == area for own, _ in caught)]
            for area in areas
        },
        "crashed_or_hung": sum(kind[name] in ("crashed", "hung") for kind in kinds.values()),
        "good_rejected": sorted(kind for kind, verdicts in good.items() if verdicts[name] != "missed"),
        "good": len(good),
    }


_TEXT = """## What each tool catches

`python -m benchmarks.checks.peers --record`: the corpus of broken models of `tests/helpers` ({kinds}
kinds) and its good ones ({good}). Every tool was given the model, polygraphy also the outputs of the
reference if a kind has one; budgets, accuracy and latency are no part of what the others do. A tool that
hangs or crashes on a model has not caught it. The corpus was written together with growpipe check: its
own rows say that every kind is held, not how it does on kinds that nobody thought of. `--profile release`
is the strict profile; the default one lets pass what is not a fault for everyone, such as an old operator
set.

{table}

Per kind: `results/check_peers.json`. Versions: {versions}.
"""


def report(found: Mapping[str, Any]) -> str:
    """The section of RESULTS.md."""
    summary = found["summary"]
    first = next(iter(summary.values()))
    areas = list(first["by_area"])
    lines = [
        f"| tool | caught | {' | '.join(areas)} | hung or crashed itself | good models rejected |",
        "|---" * (len(areas) + 4) + "|",
    ]
    for name, row in summary.items():
        shares = " | ".join(f"{hits}/{count}" for hits, count in row["by_area"].values())
        lines.append(
            f"| {name} | {row['caught']} of {row['of']} | {shares} | {row['crashed_or_hung']} | "
            f"{len(row['good_rejected'])} of {row['good']} |"
        )
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    return _TEXT.format(kinds=first["of"], good=first["good"], table="\n".join(lines), versions=versions)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help=f"write results/{RESULT}.json and RESULTS.md")
    arguments = parser.parse_args()
    tools = {}
    for name, (module, tool) in TOOLS.items():
        try:
            if module is not None:
                importlib.import_module(module)
        except ImportError:
            print(f"{name}: {module} is not installed", file=sys.stderr)
            continue
        tools[name] = tool
    found = judged(tools)
    if arguments.record:
        append(RESULT, found)
        summarise(RESULT, report(found))
    print(report(found))


if __name__ == "__main__":
    run_command(main)
