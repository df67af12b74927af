"""What each tool catches of the corpus of broken models, and what it rejects of the good ones.

Beside `growpipe check`: the ONNX checker with full checks, polygraphy (`check lint`, and `run --onnxrt
--validate`, compared with the outputs of the reference where a kind has one) and onnxslim (`--model-check`).
Tools that are not installed are left out. Every tool runs in a child process: a crash or a hang of the tool
itself is counted as such, not as a catch.

    pip install polygraphy onnx-graphsurgeon onnxslim
    python -m benchmarks.checks.peers --out benchmarks/results/check_peers.json
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.common.command import run_command
from tests.helpers.broken_models import BROKEN
from tests.helpers.good_models import GOOD, save

SECONDS = 30
Given = dict[str, Any]
"""The arguments of `growpipe.checks.run_checks`: ``model``, and ``reference``, ``data`` and so on."""


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


def _child(
    connection: Any, tool: Callable[[Given, dict[str, Any]], bool], given: Given, policy: dict[str, Any]
) -> None:
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
    try:
        connection.send("caught" if tool(given, policy) else "missed")
    except BaseException as error:
        connection.send(f"broke: {type(error).__name__}")


def verdict(tool: Callable[[Given, dict[str, Any]], bool], given: Given, policy: dict[str, Any]) -> str:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
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
    areas = sorted({k["area"] for k in kinds.values()})
    summary = {
        name: {
            "caught": sum(k[name] == "caught" for k in kinds.values()),
            "of": len(kinds),
            "by_area": {
                area: [
                    sum(k[name] == "caught" for k in kinds.values() if k["area"] == area),
                    sum(k["area"] == area for k in kinds.values()),
                ]
                for area in areas
            },
            "crashed_or_hung": sum(k[name] in ("crashed", "hung") for k in kinds.values()),
            "good_rejected": sorted(g for g, verdicts in good.items() if verdicts[name] != "missed"),
            "good": len(good),
        }
        for name in tools
    }
    packages = ("growpipe", "onnx", "onnxruntime", "polygraphy", "onnx-graphsurgeon", "onnxslim")
    versions = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    document = {"summary": summary, "versions": versions, "broken": kinds, "good": good}
    text = json.dumps(document, indent=1) + "\n"
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    run_command(main)
