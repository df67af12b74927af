"""Numerics: are the numbers finite, the same every time, and the same as those of the reference?"""

from __future__ import annotations

from growpipe.checks.areas.numerics import finite, repeated, same_as_reference

__all__ = ["finite", "repeated", "same_as_reference"]
