"""Do two ONNX files compute the same? Judged with onnxruntime alone, by nothing of growpipe.

    python -m benchmarks.graph.parity probe MODEL.onnx
    python -m benchmarks.graph.parity compare MODEL.onnx FORM.onnx --feeds FEEDS.json

``probe`` finds sizes of the symbolic dimensions that the model accepts, and prints the feeds as JSON.
``compare`` runs both files on these feeds, at the lowest and the highest optimisation, and prints how far
they are apart. What is allowed follows from the model itself: how far its own outputs move between the two
levels of optimisation, and if every input moves by one unit in its last place. An output of a sigmoid or a
softmax may hide everything, so the inputs of these last operators are compared too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

__all__ = ["Feed", "compare", "probe"]

SIZES = (64, 48, 32, 128, 512, 224, 576, 320, 16, 640, 160, 1600, 16000, 8, 4, 2, 1, 3)
"""Sizes of symbolic dimensions that are tried, the most likely first."""

BATCHES = (3, 2)
"""Batch sizes that are tried beside 1."""

BOUNDS = (256, 64, 10, 2)
"""Integers below the first bound that the model accepts."""

SCALARS = (16000, 8000, 1, 0)
"""Integers that a scalar input takes; the first two are rates of sampling."""

SLOW = 1.0
"""Seconds of a run that allow fewer feeds."""

SEARCH_SECONDS = 30.0

_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}

_ROUNDINGS = 500
"""What is always allowed, in units of rounding of the coarsest float type of the model."""

_COARSEST = 0.02
"""What is allowed at most on the ground of a coarse type, as a share of the output's scale."""

_QUANTISED = 0.02
"""What is allowed if the model rounds to integers: one step of a hundred or two."""

_MOVEMENTS = 10
"""What is allowed, in multiples of what the model's own outputs move."""

_SATURATING = ("Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Tanh", "Relu", "Clip")
_MOVING = ("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Cast")

_SATURATED = 2.0**-22
"""Differences of float32 outputs below this are those of the activations' own approximations."""

Outputs = dict[str, npt.NDArray]


@dataclass(frozen=True, slots=True)
class Feed:
    """How to make the inputs of one run.

    Attributes:
        sizes: of the symbolic dimensions, by name, or ``input.axis`` if they have none.
        seed: of the random numbers.
        kind: ``normal`` numbers, or ``uniform`` between 0 and 1.
        bound: integers lie below it.
        scalar: what integer inputs of rank 0 are.
    """

    sizes: Mapping[str, int]
    seed: int
    kind: str
    bound: int
    scalar: int


def session(path: Path | bytes, optimised: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    source = path if isinstance(path, bytes) else str(path)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def saturated(path: Path) -> dict[str, str]:
    """By the name of an output that a sigmoid or a softmax makes, the input of this operator."""
    graph = onnx.load(path, load_external_data=False).graph
    makers = {name: node for node in graph.node for name in node.output}
    found = {}
    for name in (output.name for output in graph.output):
        node = makers.get(name)
        while node is not None and node.op_type in _MOVING:
            node = makers.get(node.input[0])
        if node is not None and node.op_type in _SATURATING:
            found[name] = node.input[0]
    return found


def with_inner(path: Path, wanted: Sequence[str]) -> bytes:
    """The model with some of its inner values as further outputs."""
    model = onnx.load(path)
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in present)
    return bytes(model.SerializeToString())


def run(model: ort.InferenceSession, inputs: Mapping[str, npt.NDArray]) -> Outputs:
    outputs: Outputs = {}
    for output, value in zip(model.get_outputs(), model.run(None, dict(inputs)), strict=True):
        _flatten(output.name, value, outputs)
    return outputs


def _flatten(name: str, value: Any, into: Outputs) -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            _flatten(f"{name}[{key}]", part, into)
    elif isinstance(value, (list, tuple)):
        for position, part in enumerate(value):
            _flatten(f"{name}[{position}]", part, into)
    else:
        into[name] = np.asarray(value)


def symbolic(model: ort.InferenceSession) -> dict[str, bool]:
    """The symbolic dimensions of the inputs; True if one is a batch by its name or its place."""
    found: dict[str, bool] = {}
    for entry in model.get_inputs():
        for axis, size in enumerate(entry.shape):
            if isinstance(size, int) and size > 0:
                continue
            name = _dimension(entry.name, axis, size)
            is_batch = axis == 0 or name.lower() in ("n", "b") or "batch" in name.lower()
            found[name] = found.get(name, False) or is_batch
    return found


def _dimension(entry: str, axis: int, size: object) -> str:
    return size if isinstance(size, str) and size != "?" else f"{entry}.{axis}"


def inputs_of(model: ort.InferenceSession, feed: Feed) -> dict[str, npt.NDArray]:
    random = np.random.default_rng(feed.seed)
    inputs = {}
    for entry in model.get_inputs():
        shape = [
            size if isinstance(size, int) and size > 0 else feed.sizes[_dimension(entry.name, axis, size)]
            for axis, size in enumerate(entry.shape)
        ]
        dtype = np.dtype(_NUMPY[entry.type])
        if dtype.kind == "f":
            drawn = random.standard_normal(shape) if feed.kind == "normal" else random.random(shape)
            inputs[entry.name] = np.asarray(drawn).astype(dtype)
        elif dtype.kind == "b":
            inputs[entry.name] = np.asarray(random.integers(0, 2, shape)).astype(dtype)
        elif dtype.kind == "O":
            inputs[entry.name] = np.full(shape, "word", dtype=object)
        elif not shape:
            inputs[entry.name] = np.asarray(feed.scalar, dtype=dtype)
        else:
            inputs[entry.name] = random.integers(0, min(feed.bound, np.iinfo(dtype).max), shape).astype(dtype)
    return inputs


def probe(path: Path) -> list[Feed]:
    """The feeds on which a model is judged: several sizes, batch sizes and seeds; none if nothing runs."""
    model = session(path, optimised=False)
    integers = [entry for entry in model.get_inputs() if "int" in entry.type]
    bounds = BOUNDS if integers else BOUNDS[:1]
    # A scalar often chooses between two networks in one file: each value has sizes of its own.
    scalars = SCALARS if any(not entry.shape for entry in integers) else SCALARS[:1]
    found: list[Feed] = []
    for scalar in scalars:
        most: list[Feed] = []
        for bound in bounds:
            feeds = list(_feeds(model, bound, scalar))
            # Large indices may be in range in one feed by chance, and out of it in another.
            running = [feed for feed in feeds if _runs(model, feed)]
            most = max(most, running, key=len)
            if feeds and len(running) == len(feeds):
                most = running
                break
        found += most
    return found


def _feeds(model: ort.InferenceSession, bound: int, scalar: int) -> Iterator[Feed]:
    for number, sizes in enumerate(_accepted(model, bound, scalar)):
        feeds = [Feed(sizes, 0, "normal", bound, scalar), Feed(sizes, 1, "uniform", bound, scalar)]
        # A model that takes seconds is judged on one feed of each size.
        yield from feeds if _seconds(model, feeds[0]) < SLOW else [feeds[number % 2]]


def _seconds(model: ort.InferenceSession, feed: Feed) -> float:
    started = time.perf_counter()
    run(model, inputs_of(model, feed))
    return time.perf_counter() - started


def _accepted(model: ort.InferenceSession, bound: int, scalar: int) -> Iterator[dict[str, int]]:
    """Sizes at a batch of 1, other sizes at a batch of 1, and the first ones at a larger batch."""
    dims = symbolic(model)
    others = [name for name, is_batch in dims.items() if not is_batch]
    batch = {name: 1 for name, is_batch in dims.items() if is_batch}

    def runs(sizes: Mapping[str, int]) -> bool:
        return _runs(model, Feed(sizes, 0, "normal", bound, scalar))

    accepted = filter(
        runs, ({**batch, **dict(zip(others, c, strict=True))} for c in _combinations(len(others)))
    )
    first = next(accepted, None)
    if first is None:
        return
    yield first
    # A state may have the batch on another axis, under a name of its own.
    for number in BATCHES if batch else ():
        joined = {name: number if size == 1 else size for name, size in first.items()}
        alone = {**first, **dict.fromkeys(batch, number)}
        larger = next(filter(runs, (joined, alone)), None)
        if larger is not None:
            yield larger
            break
    other = next(accepted, None)
    if other is not None:
        yield other


def _combinations(count: int) -> Iterator[tuple[int, ...]]:
    """Sizes for ``count`` dimensions, all alike first; for a time of `SEARCH_SECONDS`."""
    started = time.monotonic()
    mixed = itertools.product(SIZES, repeat=count) if 1 < count <= 3 else iter(())
    alike = ((size,) * count for size in SIZES) if count else iter(((),))
    for combination in itertools.chain(alike, (c for c in mixed if len(set(c)) > 1)):
        yield combination
        if time.monotonic() - started > SEARCH_SECONDS:
            return


def _runs(model: ort.InferenceSession, feed: Feed) -> bool:
    try:
        outputs = run(model, inputs_of(model, feed))
    except Exception:
        return False
    return all(array.size for array in outputs.values())


def compare(original: Path, form: Path, feeds: Sequence[Feed]) -> dict[str, Any]:
    """How far a form is from its original.

    Returns:
        ``same``; ``what`` is wrong if it is not; ``excess`` is the largest difference as a multiple of what
        is allowed, ``relative`` the largest difference over the scale of its output.
    """
    references = {level: session(original, level) for level in (False, True)}
    try:
        forms = {level: session(form, level) for level in (False, True)}
    except Exception as error:
        return _differs(f"onnxruntime does not load it: {_line(error)}")
    for ends in ("get_inputs", "get_outputs"):
        before, after = (
            [(entry.name, entry.type) for entry in getattr(model, ends)()]
            for model in (references[False], forms[False])
        )
        if before != after:
            return _differs(f"{ends[4:]} were {before} and are {after}")
    floor = _floor(original)
    worst = {"excess": 0.0, "relative": 0.0}
    for feed in feeds:
        inputs = inputs_of(references[False], feed)
        low, high = (run(references[level], inputs) for level in (False, True))
        if feed is feeds[0] and not _equal(low, run(references[False], inputs)):
            return {"same": True, "what": "the original is random: not compared", **worst}
        nudged = run(references[False], _nudged(inputs, feed.seed))
        for level, reference in ((False, low), (True, high)):
            where = f"{'highest' if level else 'lowest'} optimisation, {dict(feed.sizes)}, {feed.kind}"
            try:
                outputs = run(forms[level], inputs)
            except Exception as error:
                return _differs(f"it does not run ({where}): {_line(error)}")
            for name, array in reference.items():
                if name not in outputs or outputs[name].shape != array.shape:
                    shape = outputs[name].shape if name in outputs else None
                    if nudged[name].shape != array.shape:
                        continue  # as many as a threshold lets through
                    return _differs(f"output {name!r} had shape {array.shape} and has {shape} ({where})")
                movements = [o[name] for o in (low, high, nudged) if o[name].shape == array.shape]
                excess, relative = _apart(array, outputs[name], movements, floor)
                if excess > 1:
                    return _differs(f"output {name!r} is off by {relative:.1e} ({where})", excess, relative)
                worst = {
                    "excess": max(worst["excess"], excess),
                    "relative": max(worst["relative"], relative),
                }
    return _behind(original, form, feeds) or {"same": True, "what": "", **worst}


def _behind(original: Path, form: Path, feeds: Sequence[Feed]) -> dict[str, Any] | None:
    """What differs in the inputs of the last saturating operators that both files have; None if nothing."""
    ours, theirs = saturated(original), saturated(form)
    pairs = {ours[name]: theirs[name] for name in ours if name in theirs}
    if not pairs:
        return None
    try:
        models = (
            session(with_inner(original, list(pairs)), False),
            session(with_inner(form, list(pairs.values())), False),
        )
    except Exception:
        return None  # a file of gigabytes
    floor = _floor(original)
    for feed in feeds:
        inputs = inputs_of(models[0], feed)
        right, nudged, found = (
            run(models[0], inputs),
            run(models[0], _nudged(inputs, feed.seed)),
            run(models[1], inputs),
        )
        for before, after in pairs.items():
            if right[before].shape != found[after].shape:
                return _differs(f"inner value {before!r} had shape {right[before].shape}")
            moved = [nudged[before]] if nudged[before].shape == right[before].shape else []
            excess, relative = _apart(right[before], found[after], [right[before], *moved], floor)
            if excess > 1:
                return _differs(f"{before!r}, behind an output, is off by {relative:.1e}", excess, relative)
    return None


def _differs(what: str, excess: float | None = None, relative: float | None = None) -> dict[str, Any]:
    return {"same": False, "what": what, "excess": excess, "relative": relative}


def _apart(
    reference: npt.NDArray, candidate: npt.NDArray, movements: Sequence[npt.NDArray], floor: float
) -> tuple[float, float]:
    """The largest difference as a multiple of what is allowed, and over the output's scale."""
    if reference.dtype.kind not in "fc":
        different = float(np.mean(reference != candidate)) if reference.size else 0.0
        moved = max((float(np.mean(reference != m)) for m in movements if m.size), default=0.0)
        allowed = 3 * moved + (0.01 if floor == _QUANTISED else 0.0)
        return (different / allowed if allowed else np.inf * different if different else 0.0), different
    a, b = reference.astype(np.float64), candidate.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return np.inf, np.inf
    scale = float(np.abs(a[finite]).max(initial=0.0))
    difference = float(np.abs(a - b)[finite].max(initial=0.0))
    moved = max(float(np.nan_to_num(np.abs(m.astype(np.float64) - a)).max(initial=0.0)) for m in movements)
    absolute = _SATURATED if reference.dtype == np.float32 and scale <= 1 else 0.0
    allowed = max(floor * scale, _MOVEMENTS * moved, absolute)
    if difference == 0:
        return 0.0, 0.0
    if difference <= absolute:
        scale = 1.0  # the range of the activation
    return difference / allowed if allowed else np.inf, difference / scale if scale else np.inf


def _floor(path: Path) -> float:
    model = onnx.load(path)
    text = {node.op_type for node in model.graph.node}
    if any(word in op for op in text for word in ("Quantize", "QLinear", "Integer")):
        return _QUANTISED
    types = {tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        types |= {a.i for a in node.attribute if node.op_type == "Cast" and a.name == "to"}
    if onnx.TensorProto.FLOAT16 in types or onnx.TensorProto.BFLOAT16 in types:
        return _COARSEST
    if types & {onnx.TensorProto.FLOAT} or onnx.TensorProto.DOUBLE not in types:
        return float(_ROUNDINGS * np.finfo(np.float32).eps)
    return float(_ROUNDINGS * np.finfo(np.float64).eps)


def _nudged(inputs: Mapping[str, npt.NDArray], seed: int) -> dict[str, npt.NDArray]:
    """The inputs, every float moved to a neighbour."""
    random = np.random.default_rng([seed, 1])
    return {
        name: np.nextafter(
            array, np.where(random.random(array.shape) < 0.5, -np.inf, np.inf).astype(array.dtype)
        )
        if array.dtype.kind == "f"
        else array
        for name, array in inputs.items()
    }


def _equal(a: Outputs, b: Outputs) -> bool:
    return all(np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind == "f") for name in a)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    probing = commands.add_parser("probe")
    probing.add_argument("model", type=Path)
    comparing = commands.add_parser("compare")
    comparing.add_argument("model", type=Path)
    comparing.add_argument("form", type=Path)
    comparing.add_argument("--feeds", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "probe":
        print(json.dumps([asdict(feed) for feed in probe(arguments.model)]))
        return
    feeds = [Feed(**feed) for feed in json.loads(arguments.feeds.read_text())]
    print(json.dumps(compare(arguments.model, arguments.form, feeds)))


if __name__ == "__main__":
    main()
