"""growpipe: grow neural networks into deployable ONNX models by signed neuron splitting."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from growpipe.graph_ops.errors import GrowpipeError

if TYPE_CHECKING:
    from growpipe.analyser import analyse
    from growpipe.graph_ops.plan import SplitPlan
    from growpipe.mirror import grow
    from growpipe.recalibration import recalibrate

__all__ = ["GrowpipeError", "SplitPlan", "analyse", "grow", "recalibrate"]

# Resolved at first use: `import growpipe` stays cheap, and works where torch is not installed.
_HOMES = {
    "SplitPlan": "growpipe.graph_ops.plan",
    "analyse": "growpipe.analyser",
    "grow": "growpipe.mirror",
    "recalibrate": "growpipe.recalibration",
}
_NEED_TORCH = ("growpipe.analyser", "growpipe.mirror", "growpipe.recalibration")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from growpipe.environment import require

        if _HOMES[name] in _NEED_TORCH:
            require("torch", "train", f"growpipe.{name}")
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
