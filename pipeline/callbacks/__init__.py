"""Growth inside other people's trainers: when it is due, how it is done, and callbacks that do it.

The trainers are imported at the first use of their callback.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from growpipe.callbacks.schedule import Plateau, When
from growpipe.environment import require

if TYPE_CHECKING:
    from growpipe.callbacks.lightning import LightningGrowth
    from growpipe.callbacks.trainer import TrainerGrowth

__all__ = ["LightningGrowth", "Plateau", "TrainerGrowth", "When"]

_NEEDED = {
    "LightningGrowth": ("lightning", ("lightning",), "lightning"),
    "TrainerGrowth": ("trainer", ("transformers", "accelerate"), "transformers"),
}
"""By callback the module, what it imports, and the extra that brings that."""


def __getattr__(name: str) -> Any:
    if name not in _NEEDED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, libraries, extra = _NEEDED[name]
    for library in libraries:
        require(library, extra, f"growpipe.callbacks.{name}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
