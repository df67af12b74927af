"""The accuracy of a grown network that ships, in onnxruntime, on images that it was not trained on.

    GROWPIPE_DATA=FOLDER python -m benchmarks.growth.artifact cifar10

With ``cifar-10-binary.tar.gz`` in the folder the test set is the published one of 10,000 images; with
``cifar10-train.zip`` it is the last twentieth of the training images, which the recipe keeps out of training.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from benchmarks.common import record
from benchmarks.common.command import run_command
from growpipe.graph_ops.files.load_save import load_model
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.run.recipe import load_recipe
from growpipe.run.stages.score import score_on_test
from growpipe.run.store import Run
from growpipe.run.task import load_task

ARTIFACTS = Path(__file__).parents[2] / "models" / "artifacts"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="the shipped recipe that made it, e.g. cifar10")
    args = parser.parse_args()
    path = ARTIFACTS / f"{args.recipe}.onnx"
    model = load_model(path)
    recipe, folder = load_recipe(args.recipe)
    task = load_task(Run(Path(), recipe, folder, seed=0, device="cpu"))
    measured = score_on_test(task, path)
    cost = find_channel_groups(model).cost
    outcome = {
        "artifact": path.name,
        "parameters": cost.parameters(),
        "macs": cost.macs(),
        "bytes": path.stat().st_size,
        "test": asdict(measured),
    }
    record.append("artifact", {"command": f"python -m benchmarks.growth.artifact {args.recipe}", **outcome})
    print(
        f"{path.name}: {measured.quality.told(measured.value)} on {measured.samples:,} test images "
        f"({measured.low} to {measured.high}), {cost.parameters():,} parameters, {cost.macs():,} MACs"
    )


if __name__ == "__main__":
    run_command(main)
