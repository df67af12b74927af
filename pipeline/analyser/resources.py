"""What the machine has for an analysis: memory, and units that multiply rounded factors."""

from __future__ import annotations

import math
import os
import statistics
from typing import Any

import torch

from growpipe.analyser.program.precision import has_rounding_units
from growpipe.analyser.program.program import Program
from growpipe.analyser.program.substitutes import PLAIN_ATTENTION
from growpipe.analyser.program.values import storage_of, tensors_in
from growpipe.analyser.samples import MicroBatch

__all__ = ["default_memory", "footprint", "gains_by_rounding", "trial_batch"]

KEPT = 0.5
"""How much an analysis keeps between products by default, in forward passes of one micro-batch.

With what a product takes on the way it then peaks at about two training steps of that size at most."""

ALWAYS_KEPT = 2**27
"""Bytes that are kept by default however small the network is: little is not worth computing again."""


def footprint(program: Program, inputs: Any) -> int:
    """The bytes of all that a forward pass makes: about what a training step on the batch holds."""
    total = 0
    with torch.no_grad():
        values = program.start(inputs)
        for node in program.forward(values):
            sources = {storage_of(leaf) for s in node.all_input_nodes for leaf in tensors_in(values[s])}
            # What shares its memory with an argument is a view.
            made = {storage_of(leaf): leaf.untyped_storage().nbytes() for leaf in tensors_in(values[node])}
            total += sum(size for place, size in made.items() if place not in sources)
    return total


def default_memory(program: Program, inputs: Any, device: torch.device) -> int:
    """The bytes to keep between products by default; never more than half of what is free.

    Args:
        program: the bound program.
        inputs: those of a micro-batch of the usual size.
        device: where it runs.
    """
    return min(max(int(KEPT * footprint(program, inputs)), ALWAYS_KEPT), spare_memory(device))


def trial_batch(program: Program, batch: MicroBatch) -> int:
    """How many samples are tried at once by a network with two copies of every channel.

    Half of a micro-batch, as that network holds twice as much; or all of it, if that is little anyway.

    Args:
        program: the bound program.
        batch: a micro-batch of the usual size.
    """
    little = footprint(program, batch.inputs) <= ALWAYS_KEPT
    return batch.samples if little else -(-batch.samples // 2)


def spare_memory(device: torch.device) -> int:
    """Half of the memory that is free on the device, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") // 2


WORTH_ROUNDING = 2**15
"""The entries of a displaced tensor from which on products of rounded factors pay.

With fewer the rounding takes as long as it saves."""


def gains_by_rounding(program: Program, device: torch.device) -> bool:
    """Whether rounded factors make spectra and trials faster, see `precision`.

    torch's fused attention on a CPU takes several times as long with rounded factors.

    Args:
        program: the bound program.
        device: where it runs.
    """
    blocks = [block for group in program.groups for block in group.blocks if block.mixing]
    entries = statistics.median([math.prod(block.shape) for block in blocks] or [0])
    is_fused = any(node.target in PLAIN_ATTENTION for node in program.nodes)
    fits = device.type != "cpu" or (entries >= WORTH_ROUNDING and not is_fused)
    return fits and has_rounding_units(device)
