"""What is to be checked, brought into one form: files found, policy read, words of the user understood."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from growpipe.checks.baseline import Baseline, load_baseline
from growpipe.checks.child.requests import TorchTarget
from growpipe.checks.context import ReferenceModel, TorchReference
from growpipe.checks.measure.inputs import Dataset, load_dataset
from growpipe.checks.measure.sessions import PROVIDERS, Device
from growpipe.checks.policy import Policy, load_policy
from growpipe.checks.registry import LOAD, Check, all_checks, select
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.load_save import load_model

__all__ = ["CheckOptions", "CheckRequest", "CommonOptions", "PathLike", "Waived"]

PathLike = str | os.PathLike[str]


class CommonOptions(TypedDict, total=False):
    """Options of `growpipe.checks.run_checks` and of `growpipe.testing.assert_export_ok`.

    Attributes:
        reference: an ONNX file that must compute the same, such as the parent of a grown model.
        baseline: what an earlier model measured: a file, or a `Baseline`.
        policy: a TOML file, a `Policy`, or its tables as a mapping.
        only: ids or areas of checks; they add to those of the policy.
        skip: ids or areas of checks; they add to those of the policy.
        device: where the models run; ``"cpu"`` by default.
    """

    reference: PathLike | None
    baseline: PathLike | Baseline | None
    policy: PathLike | Policy | Mapping[str, object] | None
    only: Sequence[str]
    skip: Sequence[str]
    device: Device


class CheckOptions(CommonOptions, total=False):
    """Options of `growpipe.checks.run_checks`.

    Attributes:
        torch: ``my_net.py:build``, or a `TorchReference`, that must compute the same.
        weights: of the torch module: safetensors, or a saved state dict.
        data: ``.npz`` files of inputs by name, and of ``targets`` if accuracy or another metric is checked.
        today: the day on which waivers are judged.
    """

    torch: str | TorchReference | None
    weights: PathLike | None
    data: Sequence[PathLike | Dataset]
    today: datetime.date | None


@dataclass(frozen=True, slots=True)
class Waived:
    """A waiver of a policy, judged on a day.

    Attributes:
        words: the reason and the last day.
        holds: whether that day has not passed.
    """

    words: str
    holds: bool


@dataclass(frozen=True)
class CheckRequest:
    """One model to be checked.

    Attributes:
        model: the path as it was given.
        path: the same, absolute.
        policy: what is allowed.
        checks: which checks run, in order.
        waivers: by the id of a check.
        device: where the models run.
        reference: the reference model, if there is one.
        reference_name: its path as it was given; empty if there is none.
        torch: the torch module, if there is one; a target is yet to be built.
        datasets: the user's inputs.
        baseline: what an earlier model measured, if that was given.
    """

    model: str
    path: Path
    policy: Policy
    checks: tuple[Check, ...]
    waivers: Mapping[str, Waived]
    device: Device
    reference: ReferenceModel | None
    reference_name: str
    torch: TorchTarget | TorchReference | None
    datasets: tuple[Dataset, ...]
    baseline: Baseline | None

    @staticmethod
    def of(model: PathLike, **options: Unpack[CheckOptions]) -> CheckRequest:
        """Read and check everything that was given.

        Raises:
            UsageError: the policy, the data or the baseline cannot be used as asked for.
            UnsafeModel: the reference cannot be read.
        """
        if not os.fspath(model):
            raise UsageError("the name of the model is empty; growpipe check MODEL.onnx")
        policy = _policy(options.get("policy"))
        device = options.get("device", "cpu")
        if device not in PROVIDERS:
            raise UsageError(f"unknown device {device!r}: choose one of {', '.join(PROVIDERS)}")
        reference = options.get("reference")
        baseline = options.get("baseline")
        for word in policy.levels:
            if word not in {c.id for c in all_checks()}:
                select((word,))  # an area, or an error that suggests the right word
        return CheckRequest(
            model=os.fspath(model),
            path=Path(os.path.abspath(model)),
            policy=policy,
            checks=select((*policy.only, *options.get("only", ())), (*policy.skip, *options.get("skip", ()))),
            waivers=_waivers(policy, options.get("today") or datetime.date.today()),
            device=device,
            # A reference that cannot be read is an error of the request, not a fault of the model.
            reference=None if reference is None else _reference(reference),
            reference_name="" if reference is None else os.fspath(reference),
            torch=_torch(options.get("torch"), options.get("weights")),
            datasets=tuple(d if isinstance(d, Dataset) else load_dataset(d) for d in options.get("data", ())),
            baseline=baseline
            if baseline is None or isinstance(baseline, Baseline)
            else load_baseline(baseline),
        )


def _policy(given: PathLike | Policy | Mapping[str, object] | None) -> Policy:
    if isinstance(given, Policy):
        return given
    return load_policy(None, given) if isinstance(given, Mapping) else load_policy(given)


def _reference(path: PathLike) -> ReferenceModel:
    return ReferenceModel(Path(os.path.abspath(path)), load_model(path))


def _torch(
    module: str | TorchReference | None, weights: PathLike | None
) -> TorchTarget | TorchReference | None:
    if isinstance(module, str):
        return TorchTarget(module, None if weights is None else os.path.abspath(weights))
    if weights is not None:
        raise UsageError("weights belong to a torch module: give --torch my_net.py:build too")
    return module


def _waivers(policy: Policy, today: datetime.date) -> dict[str, Waived]:
    known = {c.id for c in all_checks()}
    waivers: dict[str, Waived] = {}
    for waiver in policy.waivers:
        if waiver.check not in known:
            select((waiver.check,))
            raise UsageError(f"a waiver names the area {waiver.check!r}; name one check: {sorted(known)}")
        if waiver.check == LOAD:
            raise UsageError(f"{LOAD} cannot be waived: nothing can be said of a model that is not read")
        waivers[waiver.check] = Waived(f"{waiver.reason}, until {waiver.expires}", today <= waiver.expires)
    return waivers
