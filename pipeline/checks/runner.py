"""Running the checks: all of them, none hiding another, and the policy's word on each."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Unpack

from growpipe.checks.baseline import sha256_of
from growpipe.checks.child.model_process import ModelProcess, TorchOutputs
from growpipe.checks.child.requests import TorchTarget
from growpipe.checks.context import Context
from growpipe.checks.input_sets import Inputs
from growpipe.checks.measure.protos import all_nodes
from growpipe.checks.policy import Level
from growpipe.checks.registry import LOAD, Check
from growpipe.checks.report import TO_MEND, CheckReport, CheckResult, Finding, Outcome, failed, skipped
from growpipe.checks.request import CheckOptions, CheckRequest, PathLike, Waived
from growpipe.checks.same_defect import without_repeats
from growpipe.graph_ops.errors import (
    GrowpipeError,
    InconclusiveMeasurement,
    MissingEnvironment,
    UnsafeModel,
    UsageError,
)
from growpipe.printing import one_line

__all__ = ["run_checks"]

RUN = "structure/run"


def run_checks(
    model: PathLike,
    *,
    process: ModelProcess | None = None,
    progress: Callable[[Check], None] | None = None,
    **options: Unpack[CheckOptions],
) -> CheckReport:
    """Check one ONNX file.

    Args:
        model: the file.
        process: the child process to use; by default one of its own, under the limits of the policy.
        progress: called with each check before it runs.
        options: those of `CheckOptions`: ``reference``, ``torch``, ``weights``, ``data``, ``baseline``,
            ``policy``, ``only``, ``skip``, ``device``, ``today``.

    Returns:
        The report; a failed check is in it, and raises nothing.

    Raises:
        UsageError: the policy, the data, the baseline or the torch module cannot be used as asked for.
        UnsafeModel: the reference cannot be read.
    """
    started = time.monotonic()
    request = CheckRequest.of(model, **options)
    with ExitStack() as stack:
        context = _context(request, process, stack)
        results = _run(request, context, progress)
        compared = [request.reference_name, "" if context.torch is None else context.torch.name]
    return CheckReport(
        model=request.model,
        sha256=sha256_of(request.path),
        reference=", ".join(name for name in compared if name),
        device=request.device,
        results=tuple(results),
        seconds=time.monotonic() - started,
        versions=_versions(),
    )


def _context(request: CheckRequest, process: ModelProcess | None, stack: ExitStack) -> Context:
    limits = request.policy.limits

    def started(torch: bool) -> ModelProcess:
        new = ModelProcess(seconds=limits.seconds, memory_mb=limits.memory_mb, torch=torch)
        return stack.enter_context(new)

    torch = request.torch
    if isinstance(torch, TorchTarget):
        module = _ModuleInChild(started(torch=True), torch)
        module.process.build_torch(torch)
        torch = module
    return Context(
        path=request.path,
        policy=request.policy,
        process=process or started(torch=False),
        device=request.device,
        reference=request.reference,
        torch=torch,
        datasets=request.datasets,
        baseline=request.baseline,
        metric_process=started(torch=True) if request.policy.accuracy.is_own else None,
    )


def _run(
    request: CheckRequest, context: Context, progress: Callable[[Check], None] | None
) -> list[CheckResult]:
    results: list[CheckResult] = []
    stop = ""
    for check in request.checks:
        if progress is not None:
            progress(check)
        begin = time.monotonic()
        level = request.policy.level(check.id)
        if stop:
            outcome = skipped(stop)
        elif level == "off" and check.id != LOAD:
            outcome = skipped("switched off by the policy")
        else:
            outcome = _outcome(check, context, results)
        if check.id != LOAD:
            level = _severity(outcome, level, context)
            outcome, waiver = _judged(outcome, level, request.waivers.get(check.id))
        else:
            waiver = ""
            if outcome.status == "unsafe":
                stop = f"the model was not loaded (see {LOAD})"
        results.append(_result(check, outcome, time.monotonic() - begin, waiver))
    return results if stop else without_repeats(results, _names(context))


def _names(context: Context) -> Iterator[str]:
    for node in all_nodes(context.proto):
        yield from (node.name, node.domain, *node.input, *node.output)


def _outcome(check: Check, context: Context, before: Sequence[CheckResult]) -> Outcome:
    try:
        if check.runs:
            if check.id != RUN and any(r.check == RUN and not context.runs.ran for r in before):
                return skipped(f"the model does not run (see {RUN})")
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
    except GrowpipeError as error:
        return failed(str(error))
    except Exception as error:
        if any(r.check == "structure/checker" and r.status == "failed" for r in before):
            return skipped(f"not possible on a malformed model (see structure/checker): {error}")
        # A check that breaks has shown nothing: it must neither pass nor keep the others from running.
        return failed(f"the check itself broke, please report it: {type(error).__name__}: {error}")


def _severity(outcome: Outcome, level: Level, context: Context) -> Level:
    if level != "unless-it-runs" or outcome.status != "failed":
        return level
    try:
        return "warning" if context.runs.ran else "error"
    except GrowpipeError:
        return "error"


def _judged(outcome: Outcome, level: str, waiver: Waived | None) -> tuple[Outcome, str]:
    """The outcome under the policy, and the words of the waiver that holds, if one does."""
    if outcome.status not in ("failed", "inconclusive"):
        return outcome, ""
    if waiver is not None and waiver.holds:
        return replace(outcome, status="waived"), waiver.words
    if waiver is not None:
        message = f"{outcome.message} (its waiver has expired: {waiver.words})"
        outcome = replace(outcome, message=message)
    if outcome.status == "failed" and level == "warning":
        outcome = replace(outcome, status="warned")
    return outcome, ""


def _result(check: Check, outcome: Outcome, seconds: float, waiver: str) -> CheckResult:
    return CheckResult(
        check=check.id,
        title=check.title,
        status=outcome.status,
        message=one_line(outcome.message),
        measured=outcome.measured,
        findings=tuple(
            Finding(*(one_line(part) for part in (f.message, f.node, f.operator, f.tensor, f.module)))
            for f in outcome.findings
        ),
        advice=(outcome.advice or check.advice) if outcome.status in TO_MEND else "",
        seconds=seconds,
        waiver=waiver,
    )


@dataclass(frozen=True)
class _ModuleInChild:
    """The user's torch module, in a child process of its own."""

    process: ModelProcess
    target: TorchTarget

    @property
    def name(self) -> str:
        return self.target.target

    def calls(self, names: Sequence[str]) -> Sequence[str]:
        return self.process.torch_calls(self.target, names)

    def run(
        self, inputs: Inputs, *, way: int = 0, double: bool = False, modules: Sequence[str] = ()
    ) -> TorchOutputs:
        return self.process.run_torch(self.target, inputs, way=way, double=double, modules=modules)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("growpipe", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
