"""For test suites: one assertion that an exported model is fit to ship."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from growpipe.checks.child.model_process import TorchOutputs
from growpipe.checks.formats.text import to_text
from growpipe.checks.input_sets import Inputs
from growpipe.checks.measure.inputs import Dataset
from growpipe.checks.report import CheckReport
from growpipe.checks.request import CommonOptions, PathLike
from growpipe.checks.runner import run_checks
from growpipe.graph_ops.errors import UnsafeModel, UsageError
from growpipe.graph_ops.files.load_save import load_model

__all__ = ["assert_export_ok"]


def assert_export_ok(
    model: PathLike,
    module: Any = None,
    example_inputs: Mapping[str, Any] | Sequence[Any] | None = None,
    **options: Unpack[CommonOptions],
) -> CheckReport:
    """Assert that an exported model passes all checks of `growpipe check`.

    Args:
        model: the ONNX file.
        module: the ``torch.nn.Module`` it was exported from, or ``my_net.py:build``; compared in eval mode,
            and left as it was found.
        example_inputs: inputs to run on besides the random ones, by name or in the order of the model's
            inputs: arrays or tensors, [samples, ...].
        options: those of `growpipe.checks.request.CommonOptions`: ``reference``, ``baseline``, ``policy``,
            ``only``, ``skip``, ``device``.

    Returns:
        The report, for further assertions.

    Raises:
        AssertionError: a check failed, or could not be decided; the message is the report.
        UsageError: the arguments do not fit each other.
    """
    __tracebackhide__ = True
    report = run_checks(
        model,
        torch=module if module is None or isinstance(module, str) else _ModuleHere(module),
        data=[] if example_inputs is None else _dataset(model, example_inputs),
        **options,
    )
    if not report.ok:
        raise AssertionError(f"{os.fspath(model)} is not fit to ship\n{to_text([report])}")
    return report


@dataclass(frozen=True)
class _ModuleHere:
    """A torch module of the test suite; it runs in this process."""

    module: Any

    @property
    def name(self) -> str:
        return type(self.module).__name__

    def run(self, inputs: Inputs, *, double: bool = False, modules: Sequence[str] = ()) -> TorchOutputs:
        from growpipe.checks.child.torch_reference import run_module

        outputs, inner = run_module(self.module, inputs, double=double, modules=modules)
        return TorchOutputs(outputs, inner)


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
