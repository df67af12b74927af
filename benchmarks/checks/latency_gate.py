"""Is the latency gate of `growpipe check` right on a busy machine?

A/A: two equal models behind a gate of 5 %; every "fail" is a false one. A/B: a model with 15 % more layers;
every "fail" is right. A naive gate (two sessions at onnxruntime's defaults, one after the other, ratio of
mean wall times) is put beside it. The machine is kept busy by processes of matrix products, one per core.

    python -m benchmarks.checks.latency_gate --out benchmarks/results/check_latency_gate.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.common.command import run_command
from benchmarks.common.record import environment
from growpipe.checks.measure.latency import Timing, paired_latency

LIMIT = 1.05
LAYERS, SLOWER = 40, 46  # 15 % more of the same layer


def perceptron(layers: int, width: int) -> bytes:
    """``layers`` products of [8, width] by [width, width] with their activations."""
    random = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(layers):
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"h{i}"]))
        nodes.append(helper.make_node("Relu", [f"h{i}"], [f"x{i + 1}"]))
        matrix = random.standard_normal((width, width)) / np.sqrt(width)
        weights.append(numpy_helper.from_array(matrix.astype(np.float32), f"w{i}"))
    return _model(nodes, weights, [8, width], layers)


def convolutional(layers: int, channels: int) -> bytes:
    """``layers`` 3 x 3 convolutions of ``channels`` channels on 14 x 14 pixels with their activations."""
    random = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(layers):
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"h{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"h{i}"], [f"x{i + 1}"]))
        kernel = random.standard_normal((channels, channels, 3, 3)) / np.sqrt(9 * channels)
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"w{i}"))
    return _model(nodes, weights, [1, channels, 14, 14], layers)


def _model(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], shape: list[int], layers: int
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


CASES: dict[str, tuple[Callable[[int], bytes], tuple[int, ...]]] = {
    "perceptron 128": (lambda layers: perceptron(layers, 128), (8, 128)),
    "perceptron 256": (lambda layers: perceptron(layers, 256), (8, 256)),
    "convolutions 16": (lambda layers: convolutional(layers, 16), (1, 16, 14, 14)),
    "convolutions 32": (lambda layers: convolutional(layers, 32), (1, 32, 14, 14)),
}


def naive(reference: bytes, candidate: bytes, inputs: dict[str, np.ndarray], runs: int = 50) -> float:
    """What is usually done: sessions at their defaults, one after the other, mean wall times."""
    sessions = [
        onnxruntime.InferenceSession(m, providers=["CPUExecutionProvider"]) for m in (reference, candidate)
    ]
    means = []
    for session in sessions:
        for _ in range(5):
            session.run(None, inputs)
        begin = time.perf_counter()
        for _ in range(runs):
            session.run(None, inputs)
        means.append(time.perf_counter() - begin)
    return means[1] / means[0]


def _burn() -> None:
    random = np.random.default_rng(os.getpid())
    a = random.standard_normal((300, 300))
    while True:
        for _ in range(int(random.integers(20, 400))):
            a = np.tanh(a @ a.T / 300)
        time.sleep(float(random.uniform(0, 0.05)))


@contextmanager
def load(processes: int) -> Iterator[None]:
    """Processes that come and go, as other jobs on a shared runner do."""
    burning = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(processes)]
    for process in burning:
        process.start()
    try:
        yield
    finally:
        for process in burning:
            process.terminate()
            process.join()


def measure(kind: str, count: int, seconds: float) -> dict[str, Any]:
    """``count`` comparisons, turning through the cases."""
    verdicts: Counter[str] = Counter()
    naive_fails = 0
    ratios: dict[str, list[float]] = {name: [] for name in CASES}
    naive_ratios: list[float] = []
    noises, durations, wide = [], [], []
    for number in range(count):
        name = list(CASES)[number % len(CASES)]
        make, shape = CASES[name]
        inputs = {"x0": np.random.default_rng(number).standard_normal(shape).astype(np.float32)}
        reference = make(LAYERS)
        candidate = reference if kind == "A/A" else make(SLOWER)
        begin = time.perf_counter()
        result = paired_latency(
            reference, candidate, inputs, Timing(limit=LIMIT, seconds=seconds, seed=number)
        )
        durations.append(time.perf_counter() - begin)
        verdicts[result.verdict(LIMIT)] += 1
        ratios[name].append(result.ratio)
        noises.append(result.noise)
        wide.append(result.high / result.low - 1)
        naive_ratios.append(naive(reference, candidate, inputs))
        naive_fails += naive_ratios[-1] > LIMIT
    return {
        "comparisons": count,
        "verdicts": dict(verdicts),
        "failed": verdicts["fail"] / count,
        "inconclusive": verdicts["inconclusive"] / count,
        "median_ratio": {name: float(np.median(r)) for name, r in ratios.items() if r},
        "range_of_ratios": [float(min(map(min, ratios.values()))), float(max(map(max, ratios.values())))],
        "median_noise": float(np.median(noises)),
        "median_width_of_interval": float(np.median(wide)),
        "median_seconds": float(np.median(durations)),
        "naive_failed": naive_fails / count,
        "naive_range_of_ratios": [float(min(naive_ratios)), float(max(naive_ratios))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--same", type=int, default=200, help="A/A comparisons; 0 keeps those of --out")
    parser.add_argument(
        "--slower", type=int, default=100, help="comparisons with the slower model; 0 likewise"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="the most time of one comparison")
    parser.add_argument("--load", type=int, default=os.cpu_count() or 1, help="processes that keep it busy")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    document: dict[str, Any] = {}
    if arguments.out and arguments.out.exists():
        document = json.loads(arguments.out.read_text())
    document |= {"gate": LIMIT, "slowdown": SLOWER / LAYERS, "seconds": arguments.seconds}
    with load(arguments.load):
        for kind, count in (("A/A", arguments.same), ("A/B", arguments.slower)):
            if count:
                measured = measure(kind, count, arguments.seconds)
                document[kind] = {**measured, "environment": environment(), "burners": arguments.load}
    text = json.dumps(document, indent=1) + "\n"
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    run_command(main)
