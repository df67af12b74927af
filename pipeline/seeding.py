"""Seeds: everything random in a run follows from its seed and from what is being done."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["seed_everything"]


def seed_everything(*parts: object) -> None:
    """Seed torch's generators from a hash of ``parts``."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "big"))
