"""The analyser: signed splits of every channel group of a torch module."""

from __future__ import annotations

from growpipe.analyser.api import RANKING_SAMPLES, analyse
from growpipe.budgets.budget import GrowthBudget, NetworkCost

__all__ = ["RANKING_SAMPLES", "GrowthBudget", "NetworkCost", "analyse"]
