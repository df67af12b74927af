"""Running the checks: all of them, none hiding another, and the policy's word on each."""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from growpipe.checks.baseline import Baseline, load_baseline, sha256_of
from growpipe.checks.child.sandbox import Sandbox
from growpipe.checks.context import Context, TorchReference
from growpipe.checks.measure.inputs import Dataset, load_dataset
from growpipe.checks.measure.sessions import PROVIDERS, Device
from growpipe.checks.policy import Policy, load_policy
from growpipe.checks.registry import LOAD, Check, all_checks, select
from growpipe.checks.report import CheckReport, CheckResult, Finding, Outcome, failed, skipped
from growpipe.graph_ops.errors import (
    CheckFailed,
    GrowpipeError,
    InconclusiveMeasurement,
    MissingEnvironment,
    UnsafeModel,
    UsageError,
)
from growpipe.graph_ops.files.load_save import load_model

__all__ = ["run_checks"]

PathLike = str | os.PathLike[str]


def run_checks(
    model: PathLike,
    *,
    reference: PathLike | None = None,
    torch: str | TorchReference | None = None,
    weights: PathLike | None = None,
    data: Sequence[PathLike | Dataset] = (),
    baseline: PathLike | Baseline | None = None,
    policy: PathLike | Policy | Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    device: Device = "cpu",
    sandbox: Sandbox | None = None,
    progress: Callable[[Check], None] | None = None,
    today: datetime.date | None = None,
) -> CheckReport:
    """Check one ONNX file.

    Args:
        model: the file.
        reference: an ONNX file that must compute the same, such as the parent of a grown model.
        torch: ``my_net.py:build``, or a `TorchReference`, that must compute the same.
        weights: of the torch module.
        data: ``.npz`` files of inputs by name, and of ``targets`` where accuracy is checked.
        baseline: what an earlier model measured.
        policy: a TOML file, a `Policy`, or its tables as a mapping.
        only, skip: ids or areas; they add to those of the policy.
        device: where the models run.
        sandbox: the child process to use; by default one of its own, under the limits of the policy.
        progress: called with each check before it runs.
        today: the day on which waivers are judged.

    Returns:
        The report; a failed check is in it, and raises nothing.

    Raises:
        UsageError: the policy, the data, the baseline or the torch module cannot be used as asked for.
        UnsafeModel: the reference cannot be read.
    """
    started = time.monotonic()
    if isinstance(policy, Mapping):
        policy = load_policy(None, policy)
    elif not isinstance(policy, Policy):
        policy = load_policy(policy)
    if device not in PROVIDERS:
        raise UsageError(f"unknown device {device!r}: choose one of {', '.join(PROVIDERS)}")
    if weights is not None and not isinstance(torch, str):
        raise UsageError("weights belong to a torch module: give --torch my_net.py:build too")
    checks = select((*policy.only, *only), (*policy.skip, *skip))
    waivers = _waivers(policy, today or datetime.date.today())
    for word in policy.levels:
        if word not in {c.id for c in all_checks()}:
            select((word,))  # an area, or an error that suggests the right word
    if reference is not None:
        # What cannot be read is no reference; that is no fault of the model.
        load_model(reference)
    path = Path(os.path.abspath(model))
    limits = policy.limits
    own = sandbox is None
    sandbox = sandbox or Sandbox(seconds=limits.seconds, memory_mb=limits.memory_mb)
    torch_sandbox: Sandbox | None = None
    try:
        if isinstance(torch, str):
            torch_sandbox = Sandbox(seconds=limits.seconds, memory_mb=limits.memory_mb, torch=True)
            torch = _sandboxed(torch_sandbox, torch, weights)
        context = Context(
            path=path,
            policy=policy,
            sandbox=sandbox,
            device=device,
            reference=None if reference is None else Path(os.path.abspath(reference)),
            torch=torch,
            datasets=[d if isinstance(d, Dataset) else load_dataset(d) for d in data],
            baseline=baseline
            if baseline is None or isinstance(baseline, Baseline)
            else load_baseline(baseline),
        )
        results: list[CheckResult] = []
        stop: str | None = None
        for check in checks:
            if progress is not None:
                progress(check)
            begin = time.monotonic()
            level = policy.levels.get(check.id, policy.levels.get(check.area, "error"))
            if stop is not None:
                outcome = skipped(stop)
            elif level == "off" and check.id != LOAD:
                outcome = skipped("switched off by the policy")
            else:
                outcome = _outcome(check, context, results)
            result = _judged(check, outcome, level, waivers, time.monotonic() - begin)
            results.append(result)
            if check.id == LOAD and result.status == "unsafe":
                stop = f"the model was not loaded (see {LOAD})"
    finally:
        if own:
            sandbox.close()
        if torch_sandbox is not None:
            torch_sandbox.close()
    compared = [os.fspath(reference)] if reference is not None else []
    compared += [torch.name] if isinstance(torch, TorchReference) else []
    return CheckReport(
        model=os.fspath(model),
        sha256=sha256_of(path),
        reference=", ".join(compared),
        device=device,
        results=tuple(results),
        seconds=time.monotonic() - started,
        versions=_versions(),
    )


def _outcome(check: Check, context: Context, before: Iterable[CheckResult]) -> Outcome:
    try:
        if check.runs:
            if check.id != "structure/run" and any(
                r.check == "structure/run" and not context.runs for r in before
            ):
                return skipped("the model does not run (see structure/run)")
            context.first()
        return check.function(context)
    except UsageError:
        raise
    except UnsafeModel as error:
        return Outcome("unsafe", str(error))
    except MissingEnvironment as error:
        return Outcome("missing", str(error))
    except InconclusiveMeasurement as error:
        return Outcome("inconclusive", str(error))
    except (CheckFailed, GrowpipeError) as error:
        return failed(str(error))
    except Exception as error:
        if any(r.check == "structure/checker" and r.status == "failed" for r in before):
            return skipped(f"not possible on a malformed model (see structure/checker): {error}")
        # A check that breaks has shown nothing: it must neither pass nor keep the others from running.
        return failed(f"the check itself broke, please report it: {type(error).__name__}: {error}")


def _judged(
    check: Check,
    outcome: Outcome,
    level: str,
    waivers: Mapping[str, tuple[str, bool]],
    seconds: float,
) -> CheckResult:
    status, message, waiver = outcome.status, outcome.message, ""
    if check.id != LOAD and status in ("failed", "inconclusive"):
        if check.id in waivers:
            waiver, holds = waivers[check.id]
            if holds:
                status = "waived"
            else:
                message = f"{message} (its waiver has expired: {waiver})"
                waiver = ""
        if status == "failed" and level == "warning":
            status = "warned"
    return CheckResult(
        check=check.id,
        title=check.title,
        status=status,
        message=_line(message),
        measured=outcome.measured,
        findings=tuple(
            Finding(_line(f.message), f.node, _line(f.operator), f.tensor, f.module) for f in outcome.findings
        ),
        seconds=seconds,
        waiver=waiver,
    )


def _waivers(policy: Policy, today: datetime.date) -> dict[str, tuple[str, bool]]:
    """By check: reason and date in words, and whether it holds today."""
    known = {c.id for c in all_checks()}
    waivers: dict[str, tuple[str, bool]] = {}
    for waiver in policy.waivers:
        if waiver.check not in known:
            select((waiver.check,))
            raise UsageError(f"a waiver names the area {waiver.check!r}; name one check: {sorted(known)}")
        if waiver.check == LOAD:
            raise UsageError(f"{LOAD} cannot be waived: nothing can be said of a model that is not read")
        waivers[waiver.check] = (f"{waiver.reason}, until {waiver.expires}", today <= waiver.expires)
    return waivers


def _sandboxed(sandbox: Sandbox, target: str, weights: PathLike | None) -> TorchReference:
    arguments = {
        "target": target,
        "weights": None if weights is None else os.path.abspath(weights),
    }
    sandbox.call("torch_signature", arguments)

    def run(
        inputs: Mapping[str, Any], double: bool, modules: Sequence[str]
    ) -> tuple[list[Any], dict[str, Any]]:
        reply = sandbox.call("torch_run", {**arguments, "double": double, "modules": list(modules)}, inputs)
        count = sum(key.startswith("output/") for key in reply.arrays)
        outputs = [reply.arrays[f"output/{i}"] for i in range(count)]
        return outputs, {name: reply.arrays[key] for name, key in reply.data["inner"].items()}

    return TorchReference(target, run)


def _line(text: str) -> str:
    """One line, without control characters: names within a model go to terminals too."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("growpipe", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
