"""``growpipe plan``: a split plan that needs no data."""

from __future__ import annotations

from collections.abc import Sequence

import click

from growpipe.commands.output import count, print_json, print_table, say
from growpipe.graph_ops.errors import UsageError

__all__ = ["plan"]


@click.command()
@click.argument("model", metavar="MODEL.onnx")
@click.option("--random", "scheme", flag_value="random", help="Random signed coefficients.")
@click.option("--net2net", "scheme", flag_value="net2net", help="Exact duplication, coefficients 1/m.")
@click.option("--growth", type=float, default=0.3, show_default=True, help="Share of channels to add.")
@click.option(
    "--factor",
    "factors",
    multiple=True,
    metavar="K | GROUP=K",
    help="Copies of every channel: K in all groups that split by whole factors, or in GROUP.",
)
@click.option("--epsilon", type=float, default=0.0, show_default=True, help="Random displacement of copies.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--freeze", multiple=True, metavar="NAME_OR_GLOB", help="Tensors to leave as they are.")
@click.option("-o", "--output", required=True, metavar="PLAN", help="The folder to write.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    model: str,
    scheme: str | None,
    growth: float,
    factors: Sequence[str],
    epsilon: float,
    seed: int,
    freeze: Sequence[str],
    output: str,
    as_json: bool,
) -> None:
    """Write a split plan that needs no data.

    At ε = 0, which is the default, the grown model computes the same function as MODEL.onnx.

    Groups that are normalised over, such as the residual stream of a transformer, grow by whole factors, if
    at all: --factor 2 doubles them. All other groups grow by --growth, or not at all if that is 0.
    """
    wanted = _factors(factors)
    if scheme is None:
        raise UsageError("say what kind of plan: --random or --net2net (plans from data: growpipe run)")
    if scheme == "net2net" and epsilon:
        raise UsageError("--net2net duplicates exactly; --epsilon goes with --random")
    if seed < 0:
        raise UsageError(f"--seed must not be negative, not {seed}")
    from growpipe.graph_ops.files.atomic import check_folder_target
    from growpipe.graph_ops.files.load_save import load_model
    from growpipe.graph_ops.groups.channel_groups import find_channel_groups
    from growpipe.graph_ops.plan.data_free import net2net_plan, random_plan
    from growpipe.graph_ops.plan.plan_document import plan_files

    check_folder_target(output, plan_files, inputs=[model])
    loaded = load_model(model)
    groups = find_channel_groups(loaded, freeze)
    if scheme == "random":
        made = random_plan(groups, loaded, growth=growth, epsilon=epsilon, seed=seed, factors=wanted)
    else:
        made = net2net_plan(groups, loaded, growth=growth, seed=seed, factors=wanted)
    made.save(output)
    for name, reason in made.notes.get("declined", {}).items():
        say(f"growpipe: {name} is left as it is: {reason}")
    cost = groups.cost
    if as_json:
        print_json(
            {
                "plan": output,
                "plan_hash": made.content_hash,
                "scheme": made.scheme,
                "epsilon": made.epsilon,
                "groups": [
                    {"name": split.group, "width": split.width, "grown_width": split.grown_width}
                    for split in made.groups
                ],
                "parameters": {"before": cost.parameters(), "after": cost.parameters(made.widths)},
                "macs": {"before": cost.macs(), "after": cost.macs(made.widths)},
            }
        )
        return
    print_table(
        f"{output}: {made.scheme}, ε = {made.epsilon:g}, {count(made.added_channels)} channels more; "
        f"parameters {count(cost.parameters())} → {count(cost.parameters(made.widths))}, "
        f"MACs {count(cost.macs())} → {count(cost.macs(made.widths))}",
        [("group", False), ("width", True), ("grown width", True)],
        [(split.group, split.width, split.grown_width) for split in made.groups],
    )


def _factors(stated: Sequence[str]) -> int | dict[str, int] | None:
    """A factor for all groups that split by whole factors, or one for each group that is named."""
    pairs = [text.rpartition("=") for text in stated]
    if not all(number.isdecimal() and bool(group) == bool(equals) for group, equals, number in pairs):
        raise UsageError(f"--factor is a whole number, or GROUP=NUMBER, not {' '.join(stated)}")
    numbers = {group: int(number) for group, _, number in pairs}
    if "" not in numbers:
        return numbers or None
    if len(stated) > 1:
        raise UsageError("--factor is given once for all groups, or as GROUP=NUMBER for each")
    return numbers[""]
