"""Speed and memory of the graph side: growing a large model, finding the groups of a long one.

    python -m benchmarks.graph.scale [--gigabytes 1] [--repeats 7] [--folder DIR]

Growing is compared with onnx-ir loading and saving the very same file: both in fresh processes, alternating,
the ratio taken pair by pair, so that a slow moment of the machine hits both. Peak memory is the resident set
of the process, pages of the mapped file included. Results go to results/graph_scale.json and RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.common import record
from benchmarks.common.command import run_command
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.files.load_save import load_model, save_model
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.data_free import random_plan
from growpipe.graph_ops.plan.split_plan import SplitPlan

WIDTH = 4096
LAYER_BYTES = WIDTH * (WIDTH + 1) * 4
NODES = (1_000, 2_500, 5_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the large files go (default: the system's own)")
    parser.add_argument("--child", choices=["onnx-ir", "grow"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.folder)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        growing = measure_growing(Path(folder), arguments.gigabytes, arguments.repeats)
    groups = measure_groups(arguments.repeats)
    growing["in_memory"] = str(arguments.folder or "").startswith("/dev/shm")
    record.append("graph_scale", {"growing": growing, "groups": groups})
    record.summarise("graph_scale", summary(growing, groups))
    print(summary(growing, groups))


def child(what: str, folder: Path) -> None:
    """One measurement in a process of its own: what it took, as JSON on stdout."""
    started, cpu = time.perf_counter(), time.process_time()
    if what == "onnx-ir":
        model = ir.load(str(folder / "model.onnx"))
        ir.save(model, str(folder / "out.onnx"), external_data="out.onnx.data")
    else:
        plan = SplitPlan.load(folder / "plan")
        save_model(grow_graph(load_model(folder / "model.onnx"), plan), folder / "out.onnx")
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak_memory()}))


def peak_memory() -> int:
    """The largest resident set of this process, in bytes.

    Not ``ru_maxrss``: on Linux a process inherits that of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure_growing(folder: Path, gigabytes: float, repeats: int) -> dict[str, Any]:
    layers = max(2, round(gigabytes * 2**30 / LAYER_BYTES))
    save_model(deep_network(layers), folder / "model.onnx", external_data=True)
    model = load_model(folder / "model.onnx")
    plan = random_plan(find_channel_groups(model), model, growth=0.1)
    plan.save(folder / "plan")
    size = (folder / "model.onnx").stat().st_size + (folder / "model.onnx.data").stat().st_size
    runs: dict[str, list[dict[str, float]]] = {"onnx-ir": [], "grow": []}
    for repeat in range(repeats + 1):
        for what in ("onnx-ir", "grow") if repeat % 2 else ("grow", "onnx-ir"):
            for old in folder.glob("out.onnx*"):
                old.unlink()
            os.sync()
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.graph.scale", "--child", what, "--folder", str(folder)],
                check=True,
                capture_output=True,
                text=True,
            )
            if repeat:  # the first pair brings the file into the page cache
                runs[what].append(json.loads(done.stdout))
    ratios = [g["seconds"] / b["seconds"] for g, b in zip(runs["grow"], runs["onnx-ir"], strict=True)]
    return {
        "model_bytes": size,
        "added_channels": plan.added_channels,
        "ratio_median": statistics.median(ratios),
        "ratios": ratios,
        "peak_over_model": max(run["peak_bytes"] for run in runs["grow"]) / size,
        "runs": runs,
    }


def deep_network(layers: int) -> ir.Model:
    """``layers`` fully connected layers of `WIDTH` by `WIDTH`."""
    body, declared = [], []
    for i in range(layers):
        declared.append(f"float[{WIDTH},{WIDTH}] w{i}, float[{WIDTH}] b{i}")
        before, after = f"r{i - 1}" if i else "x", "y" if i == layers - 1 else f"h{i}"
        body.append(f"{after} = Gemm<transB=1>({before}, w{i}, b{i})")
        if i < layers - 1:
            body.append(f"r{i} = Relu(h{i})")
    head = f'<ir_version: 10, opset_import: ["": 20]> deep (float[N,{WIDTH}] x, {", ".join(declared)})'
    model = ir.from_onnx_text(f"{head} => (float[N,{WIDTH}] y) {{ {' '.join(body)} }}")
    rng = np.random.default_rng(0)
    for value in list(model.graph.inputs)[1:]:
        assert value.shape is not None
        array = rng.standard_normal(value.shape.numpy(), dtype=np.float32) / np.float32(WIDTH**0.5)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


def measure_groups(repeats: int) -> list[dict[str, float]]:
    found = []
    for nodes in NODES:
        model = chain(nodes)
        seconds, cpu_seconds = [], []
        for _ in range(repeats):
            started, cpu = time.perf_counter(), time.process_time()
            groups = find_channel_groups(model)
            seconds.append(time.perf_counter() - started)
            cpu_seconds.append(time.process_time() - cpu)
        found.append(
            {
                "nodes": model.graph.num_nodes(),
                "groups": len(groups.groups),
                "seconds_best": min(seconds),
                "seconds_median": statistics.median(seconds),
                "cpu_seconds_median": statistics.median(cpu_seconds),
            }
        )
    return found


def chain(nodes: int) -> ir.Model:
    """Blocks of Conv, BatchNormalization, Relu, Conv and Add with a residual stream running through all."""
    lines, declared, stream = [], [], "x"
    for i in range(nodes // 5):
        declared.append(f"float[8,4,3,3] a{i}, float[4,8,1,1] c{i}")
        declared.append(", ".join(f"float[8] {name}{i}" for name in ("scale", "bias", "mean", "var")))
        lines.append(
            f"h{i} = Conv<pads=[1,1,1,1]>({stream}, a{i}) "
            f"n{i} = BatchNormalization(h{i}, scale{i}, bias{i}, mean{i}, var{i}) "
            f"r{i} = Relu(n{i}) p{i} = Conv(r{i}, c{i}) s{i} = Add({stream}, p{i})"
        )
        stream = f"s{i}"
    head = f'<ir_version: 10, opset_import: ["": 20]> chain (float[N,4,8,8] x, {", ".join(declared)})'
    model = ir.from_onnx_text(f"{head} => (float[N,4,8,8] {stream}) {{ {' '.join(lines)} }}")
    for value in list(model.graph.inputs)[1:]:
        assert value.shape is not None
        value.const_value = ir.tensor(np.zeros(value.shape.numpy(), np.float32), name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


def summary(growing: dict[str, Any], groups: list[dict[str, float]]) -> str:
    base = statistics.median(run["seconds"] for run in growing["runs"]["onnx-ir"])
    grow = statistics.median(run["seconds"] for run in growing["runs"]["grow"])
    cpu = {
        what: statistics.median(run["cpu_seconds"] for run in runs) for what, runs in growing["runs"].items()
    }
    more = cpu["grow"] / cpu["onnx-ir"]
    where = ", all files in memory" if growing["in_memory"] else ""
    low, high = min(growing["ratios"]), max(growing["ratios"])
    rows = "\n".join(
        f"| {row['nodes']:,} | {row['groups']:,} | {row['seconds_best']:.2f} | {row['seconds_median']:.2f} "
        f"| {row['cpu_seconds_median']:.2f} |"
        for row in groups
    )
    return f"""
## Large graphs (`graph_scale.py`)

Growing 10 % of the channels of a model of {growing["model_bytes"] / 2**30:.2f} GiB with external data,
against onnx-ir loading and saving the same file, in pairs of fresh processes{where}:

| | onnx-ir load and save | growpipe load, grow and save | ratio | target |
|---|---|---|---|---|
| seconds (median) | {base:.2f} | {grow:.2f} | {growing["ratio_median"]:.2f} ({low:.2f} to {high:.2f}) | 2.0 |
| processor seconds (median) | {cpu["onnx-ir"]:.2f} | {cpu["grow"]:.2f} | {more:.2f} | |
| peak memory / model size | | {growing["peak_over_model"]:.2f} | | 1.5 |

Channel groups of chains of residual blocks (target: under 2 s at 5,000 nodes, linear):

| nodes | groups | best (s) | median (s) | processor (s) |
|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    run_command(main)
