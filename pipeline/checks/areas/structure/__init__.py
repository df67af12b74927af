"""Structure: is this a model that every runtime will read the same way, and does it run?"""

from __future__ import annotations

from growpipe.checks.areas.structure import graph, running, training

__all__ = ["graph", "running", "training"]
