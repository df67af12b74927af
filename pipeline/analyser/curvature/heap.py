"""Free memory that the C library holds on to."""

from __future__ import annotations

import contextlib
import ctypes

import torch

__all__ = ["give_back"]


def give_back(device: torch.device) -> None:
    """Give the system what is free between tensors on the CPU, if the C library can do so.

    A pass over a network frees most of what it takes. What is kept lies in between, and leaves no room there
    for larger tensors of the next pass: without this, every pass adds to the memory of the process.
    """
    if device.type == "cpu":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
