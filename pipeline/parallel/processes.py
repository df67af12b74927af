"""The processes of a job under ``torchrun``: who this one is, sums, agreement. Loads torch only if needed."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from growpipe.graph_ops.errors import CheckFailed, MissingEnvironment

if TYPE_CHECKING:
    import torch

__all__ = ["ALONE", "Processes", "no_torchrun", "processes"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among its peers.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    def broadcast(self, value: T) -> T:
        """What process 0 has, in every process."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, the same bits on each."""
        if self.world == 1:
            return tensor
        import torch.distributed as dist

        result = tensor.detach().clone()
        dist.all_reduce(result)
        return result

    def totals(self, *numbers: float, device: torch.device) -> list[float]:
        """Sums of numbers over all processes."""
        import torch

        values: list[float] = self.total(torch.tensor(numbers, dtype=torch.float64, device=device)).tolist()
        return values

    def agree(self, what: str, value: str) -> None:
        """Refuse to go on when the processes do not hold the same value.

        Raises:
            CheckFailed: they do not.
        """
        if self.world == 1:
            return
        import torch.distributed as dist

        held: list[str | None] = [None] * self.world
        dist.all_gather_object(held, value)
        if len(set(held)) > 1:
            raise CheckFailed(
                f"the processes do not agree on {what}: rank {self.rank} of {self.world} has {value[:16]}; "
                f"give every process the same model, batches and options"
            )


ALONE = Processes()
"""No other process."""


def processes(device: torch.device) -> Processes:
    """The process group that is there, or that ``torchrun`` asks for; none of either is one process.

    A group that is opened here (nccl for CUDA, gloo otherwise) stays open until the process ends: processes
    that close their group and open another wait for each other forever.

    Raises:
        MissingEnvironment: several processes are asked for, but not in torchrun's way.
    """
    import torch.distributed as dist

    if not dist.is_available():
        return Processes()
    if not dist.is_initialized() and os.environ.get("WORLD_SIZE", "1") != "1":
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        except ValueError as error:
            raise no_torchrun(error) from None
        atexit.register(_close)
    return Processes(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Processes()


def no_torchrun(error: Exception) -> MissingEnvironment:
    """What to say if WORLD_SIZE is set and the rest of torchrun's environment is not."""
    return MissingEnvironment(
        f"WORLD_SIZE is set but this is not torchrun's environment ({error}); start with torchrun, or unset "
        "WORLD_SIZE"
    )


def _close() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
