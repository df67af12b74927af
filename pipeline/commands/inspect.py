"""``growpipe inspect``: the channel groups of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from growpipe.commands.output import count, print_json, print_table, say

if TYPE_CHECKING:
    from growpipe.graph_ops.groups.channel_groups import ChannelGroup, ChannelGroups

__all__ = ["inspect"]


@click.command()
@click.argument("model", metavar="MODEL.onnx")
@click.option("--freeze", multiple=True, metavar="NAME_OR_GLOB", help="Tensors to leave as they are.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(model: str, freeze: Sequence[str], as_json: bool) -> None:
    """Show the channel groups of an ONNX file.

    A line for every group: its width, its members, the cost of a channel, and whether it splits or why not.
    """
    from growpipe.graph_ops.edit.history import read_history
    from growpipe.graph_ops.files.load_save import load_model
    from growpipe.graph_ops.groups.channel_groups import find_channel_groups

    loaded = load_model(model)
    groups = find_channel_groups(loaded, freeze)
    history = read_history(loaded)
    described = describe_groups(groups)
    if as_json:
        print_json(
            {
                "model": model,
                "graph_hash": groups.graph_hash,
                "parameters": groups.cost.parameters(),
                "macs": groups.cost.macs(),
                "uncounted": list(groups.cost.uncounted),
                "alternatives": list(groups.cost.alternatives),
                "barriers": [asdict(barrier) for barrier in groups.barriers],
                "contradictions": list(groups.contradictions),
                "groups": described,
                "history": [asdict(step) for step in history],
            }
        )
        return
    splittable = sum(group.splittable for group in groups.groups)
    whole = sum(group.whole_factor is not None for group in groups.groups)
    title = (
        f"{model}: {count(groups.cost.parameters())} parameters, "
        f"{'at least ' if groups.cost.uncounted else ''}{count(groups.cost.macs())} MACs per sample, "
        f"{splittable} of {len(groups.groups)} channel groups splittable"
        + (f", {whole} more by whole factors" if whole else "")
        + (f", grown {len(history)} time(s)" if history else "")
    )
    print_table(
        title,
        [
            ("group", False),
            ("width", True),
            ("members", False),
            ("parameters per channel", True),
            ("MACs per channel", True),
            ("splittable", False),
        ],
        [
            (
                group.name,
                group.width,
                "\n".join(f"{m.tensor}[{m.axis}] {m.role}" for m in group.members),
                count(facts["parameters_per_channel"]),
                count(facts["macs_per_channel"]),
                str(group.whole_factor or "yes") if group.barrier is None else f"no: {group.barrier}",
            )
            for group, facts in zip(groups.groups, described, strict=True)
        ],
    )
    _print_notes(groups)


_MOST_NOTES = 5  # of a kind; the JSON form has them all


def _print_notes(groups: ChannelGroups) -> None:
    """What the table does not show, on stderr."""
    notes = [
        *([] if groups.nothing_found is None else [groups.nothing_found]),
        *_shortened("no channel passes ", [str(barrier) for barrier in groups.barriers]),
        *_shortened("not counted among the MACs: ", groups.cost.uncounted),
        *_shortened("all branches are counted, though one runs: ", groups.cost.alternatives),
        *_shortened("the file contradicts itself: ", groups.contradictions),
    ]
    for note in notes:
        say(f"note: {note}")


def _shortened(what: str, texts: Sequence[str]) -> list[str]:
    shown = [f"{what}{text}" for text in texts[:_MOST_NOTES]]
    return shown + [f"{what}{len(texts) - _MOST_NOTES} more"] * (len(texts) > _MOST_NOTES)


def describe_groups(groups: ChannelGroups) -> list[dict[str, Any]]:
    """Every group as JSON values; the cost of a channel is what one more would add."""
    from growpipe.graph_ops.axes.dims import atoms_of

    added: dict[str, dict[str, int]] = {}
    for term in groups.cost.terms:
        for atom in {atom for dim in term.dims for atom in atoms_of(dim)}:
            more = term.value({atom.name: atom.size + 1}) - term.value({})
            cost = added.setdefault(atom.name, {"parameters": 0, "macs": 0})
            cost[term.kind] += more
    return [_describe(group, added.get(group.name, {"parameters": 0, "macs": 0})) for group in groups.groups]


def _describe(group: ChannelGroup, added: dict[str, int]) -> dict[str, Any]:
    return {
        "name": group.name,
        "width": group.width,
        "splittable": group.splittable,
        "barrier": None if group.barrier is None else asdict(group.barrier),
        "whole_factor": None if group.whole_factor is None else asdict(group.whole_factor),
        "parameters_per_channel": added["parameters"],
        "macs_per_channel": added["macs"],
        "members": [asdict(member) for member in group.members],
    }
