"""The analyser: signed splits of every channel group of a torch module.

The options load no torch; everything else is imported at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from growpipe.analyser.options import GrowthOptions, SpectraOptions, TrialOptions

if TYPE_CHECKING:
    from growpipe.analyser.analysis import analysis_of
    from growpipe.analyser.api import analyse, analyze
    from growpipe.analyser.curvature.splitting_operator import SplittingOperator
    from growpipe.analyser.report import Analysis, AnalysisReport
    from growpipe.budgets.budget import GrowthBudget, NetworkCost

__all__ = [
    "Analysis",
    "AnalysisReport",
    "GrowthBudget",
    "GrowthOptions",
    "NetworkCost",
    "SpectraOptions",
    "SplittingOperator",
    "TrialOptions",
    "analyse",
    "analysis_of",
    "analyze",
]

_HOMES = {
    "Analysis": "growpipe.analyser.report",
    "AnalysisReport": "growpipe.analyser.report",
    "GrowthBudget": "growpipe.budgets.budget",
    "NetworkCost": "growpipe.budgets.budget",
    "SplittingOperator": "growpipe.analyser.curvature.splitting_operator",
    "analyse": "growpipe.analyser.api",
    "analysis_of": "growpipe.analyser.analysis",
    "analyze": "growpipe.analyser.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
