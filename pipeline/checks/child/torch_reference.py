"""The user's torch module as a reference. It and `torch_metric` alone import torch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from growpipe.checks.child.torch_arguments import Call, ways_to_call
from growpipe.environment import how_to_install
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import CheckFailed, MissingEnvironment, UsageError
from growpipe.user_code import call_user_code, load_reference

__all__ = ["call_ways", "load_module", "run_module"]

MAX_INNER_BYTES = 2**30


def load_module(target: str, weights: str | None = None) -> Any:
    """Build the user's module.

    Args:
        target: ``my_net.py:build``, a file and a function without arguments (or a class) in it.
        weights: a safetensors file, or a ``torch.save``d state dict (read with ``weights_only=True``).

    Returns:
        The ``torch.nn.Module``, in eval mode.

    Raises:
        MissingEnvironment: torch is not installed.
        UsageError: there is no such file or function, or the weights do not fit.
    """
    torch = _torch()
    module = call_user_code(target, load_reference(target, None))
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"--torch {target!r} gave {type(module).__name__}, not a torch.nn.Module")
    if weights is not None:
        from growpipe.torch_module.weights import load_weights

        load_weights(module, weights)
    return module.eval()


def call_ways(module: Any, names: Sequence[str]) -> list[Call]:
    """The ways to call a module with the inputs of an ONNX model, likely ones first.

    Args:
        module: a ``torch.nn.Module``.
        names: of the model's inputs, in order.

    Raises:
        UsageError: there is none.
    """
    signature = inspect.signature(module.forward)
    ways = ways_to_call(signature, names)
    if not ways:
        raise UsageError(
            f"forward{signature} of the torch module cannot be called with the model's inputs "
            f"{list(names)}; wrap the module in one whose forward takes them"
        )
    return ways


def run_module(
    module: Any,
    inputs: Mapping[str, AnyArray],
    call: Call,
    *,
    double: bool = False,
    modules: Sequence[str] = (),
) -> tuple[list[AnyArray], dict[str, AnyArray]]:
    """Run a module as the ONNX model would be run.

    Args:
        module: a ``torch.nn.Module``; run in eval mode, and left as it was found.
        inputs: by the names of the ONNX model.
        call: how the inputs go into ``forward``.
        double: run a copy of the module in float64.
        modules: submodules whose (last) output is wanted too.

    Returns:
        The outputs, flattened, in order; and the tensors that the named submodules gave.

    Raises:
        CheckFailed: the module cannot be run on these inputs.
    """
    import copy

    torch = _torch()
    from growpipe.torch_module.outputs import evaluation_mode, output_tensors

    subject = copy.deepcopy(module).double() if double else module
    feed = {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}
    if double:
        feed = {name: t.double() if t.is_floating_point() else t for name, t in feed.items()}
    inner: dict[str, AnyArray] = {}
    kept = 0

    def keep(name: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            nonlocal kept
            size = output.numel() * output.element_size() if isinstance(output, torch.Tensor) else None
            if size is not None and kept + size <= MAX_INNER_BYTES:
                kept += size
                inner[name] = _array(output)

        return hook

    by_name = dict(subject.named_modules())
    hooks = [by_name[name].register_forward_hook(keep(name)) for name in modules if name in by_name]
    try:
        arguments, keywords = call.filled(feed)
        with torch.no_grad(), evaluation_mode(subject):
            output = subject(*arguments, **keywords)
    except Exception as error:
        # User code raises anything.
        line = " ".join(str(error).split())[:400]
        raise CheckFailed(f"the torch module cannot be run: {type(error).__name__}: {line}") from None
    finally:
        for hook in hooks:
            hook.remove()
    return [_array(tensor) for tensor in output_tensors(output)], inner


def _array(tensor: Any) -> AnyArray:
    """The tensor's values, in a type that numpy has itself."""
    from growpipe.torch_module.outputs import to_numpy

    array = to_numpy(tensor)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MissingEnvironment(
            f"--torch needs torch, which is not installed: {how_to_install('train')}"
        ) from None
    return torch
