"""Variants of a model in fewer bits: made by onnxruntime's converters, shipped with their figures."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from growpipe.checks.measure.compare import Divergence, compare, run_model
from growpipe.checks.measure.inputs import Dataset, input_specs, random_inputs, sizes_of
from growpipe.checks.measure.judge import Judge, score, task_of
from growpipe.checks.measure.latency import LatencyRatio, Timing, paired_latency
from growpipe.checks.measure.memory import MemoryRoom
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import CheckFailed, UsageError
from growpipe.graph_ops.files.load_save import load_model
from growpipe.quality import Score

__all__ = ["Variant", "judged", "write_half", "write_int8"]

_LATENCY_SECONDS = 2.0
_BATCH = 32
_RANDOM_SAMPLES = 16
_MEMORY_MB = 4096
_LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Variant:
    """How a variant compares with the float32 model.

    Attributes:
        kind: ``fp16`` or ``int8``.
        file: where it stands in the bundle.
        bytes: its size.
        float32_bytes: that of the float32 model.
        judged_on: on which samples: of which file and how many, or random ones.
        difference: the largest difference of an output, as a share of the output's scale.
        top1_agreement: the share of rows whose largest entry is in the same place; None without
            rows.
        score: of the variant; None without targets.
        float32_score: of the float32 model; None without targets.
        latency: of the variant over the float32 model, one sample on the CPU with one thread.
    """

    kind: str
    file: str
    bytes: int
    float32_bytes: int
    judged_on: str
    difference: float
    top1_agreement: float | None
    score: Score | None
    float32_score: Score | None
    latency: LatencyRatio


def write_half(model: Path, target: Path) -> None:
    """Write a variant whose weights and inner values are float16; inputs and outputs stay float32.

    Raises:
        UsageError: the model holds what the converter cannot convert.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _quiet():
        try:
            converted = convert_float_to_float16(onnx.load(model), keep_io_types=True)
        except Exception as error:  # the converter raises whatever it meets
            raise UsageError(f"onnxruntime cannot convert the model to float16: {error}") from error
        onnx.save(converted, target)


def write_int8(model: Path, target: Path, calibration: Dataset) -> None:
    """Write a variant in int8, quantised statically: weights per channel, activations by their range.

    Args:
        model: the float32 model.
        target: where to write.
        calibration: inputs that show the range of every activation.

    Raises:
        UsageError: the data lacks an input, or the model holds what the quantiser cannot quantise.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    batches = _batches(model, calibration)

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, AnyArray] | None:
            return next(batches, None)

    with _quiet():
        try:
            quantize_static(
                str(model), str(target), Reader(), per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
        except Exception as error:  # the quantiser raises whatever it meets
            raise UsageError(f"onnxruntime cannot quantise the model to int8: {error}") from error


def _batches(model: Path, data: Dataset) -> Iterator[dict[str, AnyArray]]:
    inputs = _inputs_of(model, data)
    size = _fixed_batch(model) or _BATCH
    samples = len(next(iter(inputs.values())))
    return iter(
        [
            {k: v[i : i + size] for k, v in inputs.items()}
            for i in range(0, samples - samples % size or samples, size)
        ]
    )


def _fixed_batch(model: Path) -> int | None:
    """The number of samples that the model runs on at once, if it is fixed."""
    specs = input_specs(load_model(model)) or ()
    return next((spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], int)), None)


def _inputs_of(model: Path, data: Dataset) -> Mapping[str, AnyArray]:
    """The inputs that the model asks for.

    Raises:
        UsageError: one is missing.
    """
    names = [value.name or "" for value in load_model(model).graph.inputs]
    missing = [name for name in names if name not in data.inputs]
    if missing:
        raise UsageError(
            f"{data.path} has no array {missing[0]!r}; the model's inputs are {', '.join(names)}"
        )
    return {name: data.inputs[name] for name in names}


def judged(kind: str, model: Path, variant: Path, place: str, data: Dataset | None) -> Variant:
    """Compare a variant with the float32 model.

    Args:
        kind: ``fp16`` or ``int8``.
        model: the float32 model.
        variant: the variant.
        place: where the variant stands in the bundle.
        data: samples, with targets if the variant is to be judged by their metric; None for random samples.

    Raises:
        CheckFailed: the variant does not run, gives values that are not finite where float32 gives finite
            ones, or holds values beyond its type.
        UsageError: the data lacks an input.
    """
    inputs, told = _samples(model, data)
    if kind == "fp16":
        _refuse_overflow(model, inputs)
    found = _worst(model, variant, inputs)
    if not np.isfinite(found.relative) or found.non_finite:
        raise CheckFailed(
            f"the {kind} variant gives values that are not finite on {told}; ship the float32 model alone"
        )
    scores: list[Score | None] = [None, None]
    if data is not None and data.targets is not None:
        judge = Judge(task_of(data.targets))
        scores = [score(path, inputs, data.targets, judge) for path in (variant, model)]
    size = _fixed_batch(model) or 1
    one = {name: array[:size] for name, array in inputs.items()}
    return Variant(
        kind=kind,
        file=place,
        bytes=variant.stat().st_size,
        float32_bytes=sum(part.stat().st_size for part in model.parent.glob(f"{model.name}*")),
        judged_on=told,
        difference=found.relative,
        top1_agreement=found.top1_agreement,
        score=scores[0],
        float32_score=scores[1],
        latency=paired_latency(model, variant, one, Timing(seconds=_LATENCY_SECONDS, level=0.95)),
    )


def _samples(model: Path, data: Dataset | None) -> tuple[Mapping[str, AnyArray], str]:
    """What a variant is judged on, and that in words."""
    if data is None:
        return _random(model), f"{_RANDOM_SAMPLES} random samples"
    inputs = _inputs_of(model, data)
    return inputs, f"{len(next(iter(inputs.values())))} samples of {Path(data.path).name}"


def _worst(model: Path, variant: Path, inputs: Mapping[str, AnyArray]) -> Divergence:
    size = _fixed_batch(model)
    if size is not None:
        inputs = {name: array[:size] for name, array in inputs.items()}
    return compare(run_model(model, inputs), run_model(variant, inputs))


def _refuse_overflow(model: Path, inputs: Mapping[str, AnyArray]) -> None:
    """onnxruntime computes float16 in float32 on a CPU, where nothing overflows; on other devices it would.

    Raises:
        CheckFailed: an inner value of the model is beyond what float16 can hold.
    """
    size = _fixed_batch(model) or _BATCH
    few = {name: array[:size] for name, array in inputs.items()}
    for name, found in run_model(_showing_inner_values(model), few, optimised=False).items():
        highest = float(np.abs(found).max(initial=0.0)) if found.dtype.kind == "f" else 0.0
        if highest > _LARGEST_HALF:
            raise CheckFailed(
                f"{name!r} reaches {highest:.3g}, and float16 ends at {_LARGEST_HALF:.0f}; ship float32 alone"
            )


def _showing_inner_values(model: Path) -> bytes:
    """The model with every value that a node computes as an output."""
    proto = onnx.load(model)
    known = {value.name for value in proto.graph.output}
    inner = dict.fromkeys(name for node in proto.graph.node for name in node.output)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner if name and name not in known)
    serialised: bytes = proto.SerializeToString()
    return serialised


def _random(model: Path) -> Mapping[str, AnyArray]:
    specs = input_specs(load_model(model))
    if specs is None:
        raise UsageError("the model has an input that cannot be random; give --test-vectors")
    sizes = sizes_of(specs, _RANDOM_SAMPLES, {}, 8)
    return random_inputs(specs, sizes, 0, MemoryRoom(_MEMORY_MB))


@contextmanager
def _quiet() -> Iterator[None]:
    """The converters warn and log about what is judged afterwards anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
