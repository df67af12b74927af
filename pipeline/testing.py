"""For test suites: one assertion that an exported model is fit to ship."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from growpipe.checks.child.model_process import TorchOutputs
from growpipe.checks.child.torch_arguments import Call
from growpipe.checks.formats.text import to_text
from growpipe.checks.input_sets import Inputs
from growpipe.checks.measure.inputs import Dataset
from growpipe.checks.report import CheckReport
from growpipe.checks.request import CommonOptions, PathLike
from growpipe.checks.runner import run_checks
from growpipe.graph_ops.arrays import AnyArray
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
        example_inputs: inputs to run on besides the random ones: arrays or tensors, [samples, ...]. By the
            names of the model's inputs; in the order of these; or as ``forward`` takes them, by position or
            by name, with dicts, lists and tuples of tensors.
        options: those of `growpipe.checks.request.CommonOptions`: ``reference``, ``baseline``, ``policy``,
            ``only``, ``skip``, ``device``.

    Returns:
        The report, for further assertions.

    Raises:
        AssertionError: a check failed, or could not be decided; the message is the report.
        UsageError: the arguments do not fit each other.
    """
    __tracebackhide__ = True
    examples, call = ({}, None) if example_inputs is None else _examples(model, module, example_inputs)
    report = run_checks(
        model,
        torch=module if module is None or isinstance(module, str) else _ModuleHere(module, call),
        data=[Dataset("the example inputs", examples, None)] if examples else [],
        **options,
    )
    if not report.ok:
        raise AssertionError(f"{os.fspath(model)} is not fit to ship\n{to_text([report])}")
    return report


@dataclass(frozen=True)
class _ModuleHere:
    """A torch module of the test suite; it runs in this process.

    Attributes:
        module: the ``torch.nn.Module``.
        call: how the inputs go into ``forward``; None to find out.
    """

    module: Any
    call: Call | None = None

    @property
    def name(self) -> str:
        return type(self.module).__name__

    def calls(self, names: Sequence[str]) -> Sequence[str]:
        return list(map(str, self._ways(names)))

    def run(
        self, inputs: Inputs, *, way: int = 0, double: bool = False, modules: Sequence[str] = ()
    ) -> TorchOutputs:
        from growpipe.checks.child.torch_reference import run_module

        call = self._ways(list(inputs))[way]
        return TorchOutputs(*run_module(self.module, inputs, call, double=double, modules=modules))

    def _ways(self, names: Sequence[str]) -> list[Call]:
        from growpipe.checks.child.torch_reference import call_ways

        return [self.call] if self.call is not None else call_ways(self.module, names)


def _examples(
    model: PathLike, module: Any, given: Mapping[str, Any] | Sequence[Any]
) -> tuple[dict[str, AnyArray], Call | None]:
    """The example inputs by the names of the model, and how they go into ``forward``, if they say so."""
    try:
        graph = load_model(model).graph
    except UnsafeModel:
        return {}, None  # what is wrong with it is said by the checks
    names = [str(v.name) for v in graph.inputs if v.name not in graph.initializers]
    if isinstance(given, Mapping) and set(names) <= set(given):
        return {name: _array(value) for name, value in given.items()}, None
    arguments = dict(given) if isinstance(given, Mapping) else {str(i): v for i, v in enumerate(given)}
    waiting = iter(names)
    leaves: dict[str, AnyArray] = {}

    def named(nest: Any) -> Any:
        if isinstance(nest, Mapping):
            return {key: named(part) for key, part in nest.items()}
        if isinstance(nest, (list, tuple)):
            return type(nest)(named(part) for part in nest)
        name = next(waiting, f"input {len(leaves)}")
        leaves[name] = _array(nest)
        return name

    nest = {parameter: named(argument) for parameter, argument in arguments.items()}
    if list(leaves) != names:
        raise UsageError(f"the model has inputs {names}, and {len(leaves)} example inputs were given")
    is_flat = all(isinstance(part, str) for part in nest.values())
    by_position = not isinstance(given, Mapping)
    return leaves, None if (is_flat and by_position) or module is None else Call(nest, by_position)


def _array(value: Any) -> AnyArray:
    if hasattr(value, "detach"):  # a tensor of torch, which this file need not import
        value = value.detach().cpu().numpy()
    return np.asarray(value)
