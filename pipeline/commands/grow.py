"""``growpipe grow``: rewrite a model by a plan."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from growpipe.commands.output import count, print_json, say, tell
from growpipe.graph_ops.errors import CheckFailed

if TYPE_CHECKING:
    import onnx_ir as ir

    from growpipe.checks.equivalence import Equivalence
    from growpipe.graph_ops.groups.channel_groups import Solution
    from growpipe.graph_ops.plan.split_plan import SplitPlan

__all__ = ["grow"]


@click.command()
@click.argument("model", metavar="MODEL.onnx")
@click.option("--plan", "plan_path", required=True, metavar="PLAN", help="A plan made for this model.")
@click.option("-o", "--output", required=True, metavar="OUT.onnx", help="The file to write.")
@click.option(
    "--verify/--no-verify",
    default=True,
    help="Run the model and its growth at ε = 0 in onnxruntime; a difference is an error.  [default: verify, "
    "if onnxruntime is installed]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def grow(model: str, plan_path: str, output: str, verify: bool, as_json: bool) -> None:
    """Grow an ONNX file by a plan.

    A plan that was made for another model is refused. At ε = 0 the grown model computes what the model
    computes, which is tried on random inputs before anything is written.
    """
    from growpipe.graph_ops.files.atomic import check_file_target, check_not_read

    check_file_target(output)
    check_not_read(output, [model, plan_path])

    # What takes a second to import comes after what can be refused at once.
    from growpipe.checks.equivalence import Equivalence
    from growpipe.graph_ops.edit.grow_graph import grow_graph
    from growpipe.graph_ops.files.load_save import external_files, load_model, save_model
    from growpipe.graph_ops.groups.channel_groups import find_channel_groups, solve
    from growpipe.graph_ops.onnx_tools.width_check import check_structure
    from growpipe.graph_ops.plan.split_plan import SplitPlan

    plan = SplitPlan.load(plan_path)
    loaded = load_model(model)
    check_not_read(output, external_files(loaded))
    solution = solve(loaded)
    grown = grow_graph(loaded, plan, solution)
    problems = check_structure(grown)
    if problems:
        # A model may come with contradictions of its own; growth must not have added any.
        present = check_structure(loaded)
        if len(problems) > len(present):
            raise CheckFailed(f"the grown model is not sound, nothing was written: {problems[0]}")
        say(f"growpipe: the model is not sound to begin with: {present[0]}")
    proof = _verified(Path(model), loaded, plan, solution) if verify else Equivalence(False, "not asked for")
    save_model(grown, output)
    before, after = solution.groups.cost, find_channel_groups(grown).cost
    if as_json:
        print_json(
            {
                "model": output,
                "plan_hash": plan.content_hash,
                "epsilon": plan.epsilon,
                "groups": {split.group: [split.width, split.grown_width] for split in plan.groups},
                "parameters": {"before": before.parameters(), "after": after.parameters()},
                "macs": {"before": before.macs(), "after": after.macs()},
                "verification": proof.to_json(),
            }
        )
        return
    tell(
        f"{output}: {len(plan.groups)} channel groups grown by {count(plan.added_channels)} channels "
        f"({plan.scheme}, ε = {plan.epsilon:g})"
    )
    tell(f"parameters {count(before.parameters())} → {count(after.parameters())}")
    tell(f"MACs per sample {count(before.macs())} → {count(after.macs())}")
    tell(f"parity at ε = 0 {proof}")


def _verified(model: Path, loaded: ir.Model, plan: SplitPlan, solution: Solution) -> Equivalence:
    """Compare the model with its growth at ε = 0."""
    from growpipe.checks.equivalence import compare_forms
    from growpipe.graph_ops.edit.grow_graph import grow_graph
    from growpipe.graph_ops.files.load_save import save_model

    with tempfile.TemporaryDirectory(prefix="growpipe-grow-") as folder:
        undisplaced = Path(folder) / "grown.onnx"
        save_model(grow_graph(loaded, plan.with_epsilon(0.0), solution), undisplaced)
        return compare_forms(model, undisplaced, "the model grown at ε = 0")
