"""Channel groups of an ONNX graph, split plans, and the edits they make. Needs no torch.

Enters: an ONNX file. Leaves: its channel groups, a plan, a grown or a deployable file.

Example:
    A model grown by 30 % of its channels, with the same function::

        model = load_model("model.onnx")
        plan = random_plan(find_channel_groups(model), model, growth=0.3)
        save_model(grow_graph(model, plan), "grown.onnx")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from growpipe.graph_ops.axes.axis import Barrier
    from growpipe.graph_ops.edit.deploy import deploy_form
    from growpipe.graph_ops.edit.grow_graph import grow_graph
    from growpipe.graph_ops.files.load_save import load_model, save_model
    from growpipe.graph_ops.groups.channel_groups import ChannelGroups, find_channel_groups
    from growpipe.graph_ops.plan.data_free import net2net_plan, random_plan
    from growpipe.graph_ops.plan.split_plan import SplitPlan

__all__ = [
    "Barrier",
    "ChannelGroups",
    "SplitPlan",
    "deploy_form",
    "find_channel_groups",
    "grow_graph",
    "load_model",
    "net2net_plan",
    "random_plan",
    "save_model",
]

# Imported at the first use: `growpipe --help` must not wait for onnx.
_HOMES = {
    "Barrier": "axes.axis",
    "ChannelGroups": "groups.channel_groups",
    "SplitPlan": "plan.split_plan",
    "deploy_form": "edit.deploy",
    "find_channel_groups": "groups.channel_groups",
    "grow_graph": "edit.grow_graph",
    "load_model": "files.load_save",
    "net2net_plan": "plan.data_free",
    "random_plan": "plan.data_free",
    "save_model": "files.load_save",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
