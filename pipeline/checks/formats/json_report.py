"""JSON, as ``result.schema.json`` describes it."""

from __future__ import annotations

from collections.abc import Sequence

from growpipe.checks.report import CheckReport
from growpipe.printing import json_text

__all__ = ["to_json"]


def to_json(reports: Sequence[CheckReport]) -> str:
    """One object for one model, a list of such objects for several."""
    forms = [report.to_json() for report in reports]
    return json_text(forms[0] if len(forms) == 1 else forms)
