"""Sessions of onnxruntime: the only place of the checks that imports it. Never a silent fallback."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from growpipe.environment import PROVIDERS, Device, how_to_install
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import CheckFailed, MissingEnvironment, UsageError

__all__ = ["PROVIDERS", "Device", "Model", "Session", "open_session", "readable_errors"]

Model = str | os.PathLike[str] | bytes
"""A model: the path of its file, or its serialised bytes (which cannot have external data)."""


@contextmanager
def readable_errors(what: str) -> Iterator[None]:
    """Turn an exception of onnxruntime into a one-line `CheckFailed` that begins with ``what``."""
    try:
        yield
    except Exception as error:
        # The exceptions of onnxruntime share no base class; they come from its extension module.
        if "onnxruntime" not in type(error).__module__ and not isinstance(error, (RuntimeError, ValueError)):
            raise
        line = " ".join(str(error).split())
        raise CheckFailed(f"{what}: {line[:600]}") from None


class Session:
    """A model that is loaded, on the device that was asked for.

    Attributes:
        inputs: the names, shapes and types the model asks for; a symbolic dimension is a str or None.
        outputs: the names of its outputs, in order.
        providers: the execution providers in use, the asked one first.
    """

    def __init__(self, raw: Any, device: Device) -> None:
        self.raw = raw
        self.device = device
        self.inputs: dict[str, tuple[tuple[int | str | None, ...], str]] = {
            i.name: (tuple(i.shape), i.type) for i in raw.get_inputs()
        }
        self.outputs: tuple[str, ...] = tuple(o.name for o in raw.get_outputs())
        self.providers: tuple[str, ...] = tuple(raw.get_providers())

    def prepared(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """The part of ``inputs`` that the model asks for, contiguous, and floats in the model's precision.

        A model of float16 and its float32 original can so be given the same inputs.

        Raises:
            UsageError: an input of the model is missing.
        """
        missing = [name for name in self.inputs if name not in inputs]
        if missing:
            raise UsageError(
                f"the model needs inputs {missing}, which were not given; given are {sorted(inputs)}"
            )
        return {
            name: np.asarray(_in_precision(inputs[name], kind), order="C")
            for name, (_, kind) in self.inputs.items()
        }

    def run(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """All outputs by name. Sequences and maps come out as several arrays, ``name[0]``, ``name[key]``.

        Raises:
            UsageError: an input of the model is missing.
            CheckFailed: the runtime refuses to run the model.
        """
        feed = self.prepared(inputs)
        with readable_errors("onnxruntime could not run the model"):
            values = self.raw.run(None, feed)
        outputs: dict[str, AnyArray] = {}
        for name, value in zip(self.outputs, values, strict=True):
            _flatten(name, value, outputs)
        return outputs


def _in_precision(array: AnyArray, kind: str) -> AnyArray:
    """The array in the floating-point type that onnxruntime names; itself if either is of another kind."""
    wanted = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}
    dtype = wanted.get(kind)
    return array if dtype is None or array.dtype.kind != "f" else array.astype(dtype, copy=False)


def _flatten(name: str, value: Any, into: dict[str, AnyArray]) -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            _flatten(f"{name}[{key}]", part, into)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for position, part in enumerate(value):
            _flatten(f"{name}[{position}]", part, into)
    elif value is not None:  # None: an optional output that is empty
        into[name] = np.asarray(value)


def open_session(
    model: Model,
    *,
    optimised: bool = True,
    device: Device = "cpu",
    threads: int = 1,
    profile_prefix: str | None = None,
    optimised_path: str | None = None,
) -> Session:
    """Load a model into onnxruntime.

    Args:
        model: path or bytes.
        optimised: the highest level of graph optimisation, or none at all.
        device: where to run; the provider is asserted.
        threads: threads within an operator. Spinning is off, so that sessions do not disturb each other.
        profile_prefix: where to write a profile of the runs; none by default.
        optimised_path: where to write the graph after optimisation; nowhere by default.

    Raises:
        MissingEnvironment: onnxruntime is not installed, or the device is not there.
        CheckFailed: onnxruntime refuses the model.
    """
    try:
        import onnxruntime as ort
    except ImportError:
        raise MissingEnvironment(
            f"onnxruntime is not installed: {how_to_install('cpu')}; for CUDA the extra is gpu"
        ) from None
    if device not in PROVIDERS:
        raise UsageError(f"unknown device {device!r}: choose one of {', '.join(PROVIDERS)}")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL if optimised else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    if optimised_path is not None:
        options.optimized_model_filepath = optimised_path
    wanted = PROVIDERS[device]
    if wanted not in ort.get_available_providers():
        raise MissingEnvironment(f"this onnxruntime has no {wanted}: install the build for {device!r}")
    providers = [wanted] if device == "cpu" else [wanted, PROVIDERS["cpu"]]
    source = model if isinstance(model, bytes) else os.fspath(model)
    with readable_errors("onnxruntime could not load the model"):
        session = Session(ort.InferenceSession(source, options, providers=providers), device)
    # onnxruntime falls back to the CPU with no more than a line on stderr.
    if not session.providers or session.providers[0] != wanted:
        raise MissingEnvironment(
            f"{wanted} was asked for and onnxruntime runs on {', '.join(session.providers) or 'nothing'}; "
            "check the driver and that the build matches its CUDA version"
        )
    return session
