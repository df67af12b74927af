"""For test suites: one assertion that an exported model is fit to ship."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from growpipe.checks.context import TorchReference
from growpipe.checks.formats.text import to_text
from growpipe.checks.measure.inputs import Dataset
from growpipe.checks.measure.sessions import Device
from growpipe.checks.policy import Policy
from growpipe.checks.report import CheckReport
from growpipe.checks.runner import run_checks
from growpipe.graph_ops.errors import UnsafeModel, UsageError
from growpipe.graph_ops.files.load_save import load_model

__all__ = ["assert_export_ok"]

PathLike = str | os.PathLike[str]


def assert_export_ok(
    model: PathLike,
    module: Any = None,
    example_inputs: Mapping[str, Any] | Sequence[Any] | None = None,
    *,
    reference: PathLike | None = None,
    baseline: PathLike | None = None,
    policy: PathLike | Policy | Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    device: Device = "cpu",
) -> CheckReport:
    """Assert that an exported model passes all checks of `growpipe check`.

    Args:
        model: the ONNX file.
        module: the ``torch.nn.Module`` it was exported from, or ``my_net.py:build``; compared in eval mode,
            and left as it was found.
        example_inputs: inputs to run on besides the random ones, by name or in the order of the model's
            inputs: arrays or tensors, [samples, ...].
        reference: an ONNX file that must compute the same.
        baseline: what an earlier model measured.
        policy: a TOML file, a `Policy`, or its tables as a mapping.
        only, skip: ids or areas of checks.
        device: where the model runs.

    Returns:
        The report, for further assertions.

    Raises:
        AssertionError: a check failed, or could not be decided; the message is the report.
        UsageError: the arguments do not fit each other.
    """
    __tracebackhide__ = True
    report = run_checks(
        model,
        reference=reference,
        torch=module if module is None or isinstance(module, str) else _in_process(module),
        data=[] if example_inputs is None else _dataset(model, example_inputs),
        baseline=baseline,
        policy=policy,
        only=only,
        skip=skip,
        device=device,
    )
    if not report.ok:
        raise AssertionError(f"{os.fspath(model)} is not fit to ship\n{to_text([report])}")
    return report


def _in_process(module: Any) -> TorchReference:
    from growpipe.checks.child.torch_reference import run_module

    def run(
        inputs: Mapping[str, npt.NDArray], double: bool, modules: Sequence[str]
    ) -> tuple[list[npt.NDArray], dict[str, npt.NDArray]]:
        return run_module(module, inputs, double=double, modules=modules)

    return TorchReference(type(module).__name__, run)


def _dataset(model: PathLike, inputs: Mapping[str, Any] | Sequence[Any]) -> list[Dataset]:
    if not isinstance(inputs, Mapping):
        try:
            graph = load_model(model).graph
        except UnsafeModel:
            return []  # what is wrong with it is said by the checks
        names = [str(v.name) for v in graph.inputs if v.name not in graph.initializers]
        if len(names) != len(inputs):
            raise UsageError(f"the model has inputs {names}, and {len(inputs)} example inputs were given")
        inputs = dict(zip(names, inputs, strict=True))
    return [Dataset("the example inputs", {name: _array(value) for name, value in inputs.items()}, None)]


def _array(value: Any) -> npt.NDArray:
    if hasattr(value, "detach"):  # a tensor: torch is there
        from growpipe.torch_module.outputs import to_numpy

        return to_numpy(value)
    return np.asarray(value)
