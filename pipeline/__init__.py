"""growpipe: grow neural networks into deployable ONNX models by signed neuron splitting."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from growpipe.graph_ops.errors import GrowpipeError

if TYPE_CHECKING:
    from growpipe.analyser import analyse
    from growpipe.graph_ops.plan.split_plan import SplitPlan
    from growpipe.torch_module.grow_module import grow
    from growpipe.torch_module.recalibration import recalibrate

__all__ = ["GrowpipeError", "SplitPlan", "analyse", "grow", "recalibrate"]

# Resolved at first use: `import growpipe` stays cheap, and works where torch is not installed.
_HOMES = {
    "SplitPlan": "growpipe.graph_ops.plan.split_plan",
    "analyse": "growpipe.analyser",
    "grow": "growpipe.torch_module.grow_module",
    "recalibrate": "growpipe.torch_module.recalibration",
}
_NEED_TORCH = ("growpipe.analyser", "growpipe.torch_module")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from growpipe.environment import require

        if _HOMES[name].startswith(_NEED_TORCH):
            require("torch", "train", f"growpipe.{name}")
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
