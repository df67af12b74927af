"""growpipe: grow neural networks into deployable ONNX models by signed neuron splitting."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from growpipe.graph_ops.errors import GrowpipeError

if TYPE_CHECKING:
    from growpipe.analyser.api import analyse, analyze
    from growpipe.analyser.curvature.splitting_operator import SplittingOperator
    from growpipe.analyser.options import GrowthOptions, SpectraOptions, TrialOptions
    from growpipe.budgets.budget import GrowthBudget, NetworkCost
    from growpipe.budgets.measured_latency import MeasuredLatency
    from growpipe.checks import run_checks
    from growpipe.data import Loaders
    from growpipe.graph_ops.cost.cost_table import CostTable
    from growpipe.graph_ops.plan.split_plan import SplitPlan
    from growpipe.torch_module.export import export_growth_form
    from growpipe.torch_module.grow_module import grow, grow_in_place, load_grown, save_grown
    from growpipe.torch_module.recalibration import recalibrate

__all__ = [
    "CostTable",
    "GrowpipeError",
    "GrowthBudget",
    "GrowthOptions",
    "Loaders",
    "MeasuredLatency",
    "NetworkCost",
    "SpectraOptions",
    "SplitPlan",
    "SplittingOperator",
    "TrialOptions",
    "analyse",
    "analyze",
    "export_growth_form",
    "grow",
    "grow_in_place",
    "load_grown",
    "recalibrate",
    "run_checks",
    "save_grown",
]

# Resolved at first use: `import growpipe` stays cheap, and works where torch is not installed.
_HOMES = {
    "CostTable": "growpipe.graph_ops.cost.cost_table",
    "GrowthBudget": "growpipe.budgets.budget",
    "GrowthOptions": "growpipe.analyser.options",
    "Loaders": "growpipe.data",
    "MeasuredLatency": "growpipe.budgets.measured_latency",
    "NetworkCost": "growpipe.budgets.budget",
    "SpectraOptions": "growpipe.analyser.options",
    "SplitPlan": "growpipe.graph_ops.plan.split_plan",
    "SplittingOperator": "growpipe.analyser.curvature.splitting_operator",
    "TrialOptions": "growpipe.analyser.options",
    "analyse": "growpipe.analyser.api",
    "analyze": "growpipe.analyser.api",
    "export_growth_form": "growpipe.torch_module.export",
    "grow": "growpipe.torch_module.grow_module",
    "grow_in_place": "growpipe.torch_module.grow_module",
    "load_grown": "growpipe.torch_module.grow_module",
    "recalibrate": "growpipe.torch_module.recalibration",
    "run_checks": "growpipe.checks",
    "save_grown": "growpipe.torch_module.grow_module",
}
_NEED_TORCH = ("growpipe.analyser.api", "growpipe.analyser.curvature", "growpipe.torch_module")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from growpipe.environment import require

        if _HOMES[name].startswith(_NEED_TORCH):
            require("torch", "train", f"growpipe.{name}")
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
