"""Several processes under ``torchrun``: who writes, who speaks, and how training is divided among them.

Every process runs the same loop on the same run directory. Process 0 alone writes and talks to onnxruntime;
training and analysis are divided. The recipe's ``batch_size`` is that of the whole step: each batch is cut
into one piece per process, and gradients are averaged by the samples of the pieces, so that the number of
processes changes nothing but the order of summation (and the statistics of a batch norm that is not
synchronised).
"""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from growpipe.data.loader_items import length_of, pairs, samples_of
from growpipe.graph_ops.errors import GrowpipeError, MissingEnvironment, UsageError
from growpipe.parallel.processes import ALONE, Processes, no_torchrun
from growpipe.seeding import seed_everything

__all__ = [
    "Piece",
    "data_parallel",
    "launched",
    "pieces",
    "share_buffers",
    "weights_hash",
]

_FAILURE = "growpipe/failure"
# Process 0 may check and export for long while the others wait; one that dies is noticed at once.
_PATIENCE = datetime.timedelta(days=7)


@contextmanager
def launched(device: str) -> Iterator[Processes]:
    """The processes that ``torchrun`` started, or this one alone.

    An error in one process ends all of them, and one of them speaks: it raises the error, with a note of its
    rank; the others leave by `SystemExit`.

    Args:
        device: ``cpu`` (gloo) or ``cuda`` (nccl, one device per process).

    Raises:
        MissingEnvironment: the environment is not that of ``torchrun``, there are fewer CUDA devices than
            processes, or another process was lost.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        yield ALONE
        return
    if device == "cuda":
        local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= count:
            raise MissingEnvironment(
                f"process {local} of this machine finds {count} CUDA devices; start no more than "
                f"--nproc-per-node {count}, or use --device cpu"
            )
        torch.cuda.set_device(local)
    try:
        store, rank, world = next(dist.rendezvous("env://", timeout=_PATIENCE))
    except ValueError as error:
        raise no_torchrun(error) from None
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world,
        timeout=_PATIENCE,
    )
    peers = Processes(rank, world)
    try:
        yield peers
        dist.barrier()
    except BaseException as error:
        _end_together(error, store, peers)
        raise AssertionError("not reached") from error
    dist.destroy_process_group()


def _end_together(error: BaseException, store: dist.Store, peers: Processes) -> None:
    """Raise ``error`` if this process is the first to fail, and leave quietly otherwise."""
    code = error.exit_code if isinstance(error, GrowpipeError) else 1
    mine = json.dumps({"rank": peers.rank, "code": code})
    try:
        first = store.compare_set(_FAILURE, "", mine).decode()
    except (RuntimeError, ValueError):
        first = mine  # the store went with the process that held it
    if first != mine:
        raise SystemExit(json.loads(first)["code"]) from None
    if _lost_peers(error):
        error = MissingEnvironment(
            "another process was lost without a word (killed, or out of memory); run the same command again "
            "to go on where it stopped"
        )
    error.add_note(f"on rank {peers.rank} of {peers.world}")
    raise error from None


def _lost_peers(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in str(error) or "Connection" in str(error))
    )


@dataclass(frozen=True)
class Piece:
    """What one process does of one batch.

    Attributes:
        inputs, target: its samples.
        samples: how many it answers for; all processes together have the batch's number.
        weight: ``samples`` over the mean of all processes: what its mean loss is multiplied by, so that the
            average over processes is the mean over the batch.
        last: no batch follows.
    """

    inputs: Any
    target: Any
    samples: float
    weight: float = 1.0
    last: bool = False


def pieces(batches: Iterable[tuple[Any, Any]], peers: Processes, *seed: object) -> Iterator[Piece]:
    """The pieces of this process.

    A `DataLoader` with torch's own samplers loads this process's samples only; any other iterable is read
    whole in every process, and cut. A batch of fewer than two samples per process is not cut.

    Args:
        batches: gives ``(inputs, target)``.
        peers: the processes.
        seed: with several processes, the loader draws from a generator of its own that is seeded with this,
            so that all see the same batches, and whatever else is random differs between them.
    """
    if peers.world == 1:
        for inputs, target in pairs(batches):
            yield Piece(inputs, target, length_of(inputs))
        return
    seed_everything(*seed)
    drawing = torch.get_rng_state()
    seed_everything(*seed, "rank", peers.rank)
    lengths: deque[int] = deque()
    source = _own_samples(batches, peers, lengths)
    iterator: Iterator[tuple[Any, Any]] | None = None
    ahead: Piece | None = None
    while True:
        noise = torch.get_rng_state()
        torch.set_rng_state(drawing)
        try:
            iterator = pairs(source) if iterator is None else iterator
            batch = next(iterator, None)
            drawing = torch.get_rng_state()
        finally:
            torch.set_rng_state(noise)
        if batch is None:
            break
        if ahead is not None:
            yield ahead
        inputs, target = batch
        if source is not batches:
            ahead = _piece(inputs, target, lengths.popleft(), peers)
        else:
            count = length_of(inputs)
            bounds = _bounds(count, peers)
            own = (samples_of(inputs, *bounds, count), samples_of(target, *bounds, count))
            ahead = _piece(*own, count, peers)
    if ahead is not None:
        yield Piece(ahead.inputs, ahead.target, ahead.samples, ahead.weight, last=True)


def _bounds(count: int, peers: Processes) -> tuple[int, int]:
    if count < 2 * peers.world:
        return 0, count
    return count * peers.rank // peers.world, count * (peers.rank + 1) // peers.world


def _piece(inputs: Any, target: Any, count: int, peers: Processes) -> Piece:
    start, stop = _bounds(count, peers)
    samples = count / peers.world if count < 2 * peers.world else float(stop - start)
    return Piece(inputs, target, samples, samples * peers.world / count)


class _Share(BatchSampler):
    """Of every batch of indices the part of this process."""

    def __init__(self, whole: BatchSampler, peers: Processes, lengths: deque[int]) -> None:
        super().__init__(whole.sampler, whole.batch_size, whole.drop_last)
        self._peers, self._lengths = peers, lengths

    def __iter__(self) -> Iterator[list[int]]:
        for indices in super().__iter__():
            self._lengths.append(len(indices))
            yield indices[slice(*_bounds(len(indices), self._peers))]


def _own_samples(
    batches: Iterable[tuple[Any, Any]], peers: Processes, lengths: deque[int]
) -> Iterable[tuple[Any, Any]]:
    """A loader of this process's samples alone where torch's own samplers order them, else ``batches``."""
    if type(batches) is not DataLoader or type(batches.batch_sampler) is not BatchSampler:
        return batches
    if type(batches.sampler) not in (RandomSampler, SequentialSampler):
        return batches
    return DataLoader(
        batches.dataset,
        batch_sampler=_Share(batches.batch_sampler, peers, lengths),
        num_workers=batches.num_workers,
        collate_fn=batches.collate_fn,
        pin_memory=batches.pin_memory,
        timeout=batches.timeout,
        worker_init_fn=batches.worker_init_fn,
        multiprocessing_context=batches.multiprocessing_context,
        generator=batches.generator,
        prefetch_factor=batches.prefetch_factor,
    )


def data_parallel(model: nn.Module, peers: Processes, *, sync_batch_norm: bool) -> nn.Module:
    """A view of ``model`` whose gradients are averaged over the processes; it shares all tensors.

    Args:
        model: on its device; the processes' weights become those of process 0.
        peers: one process gets ``model`` itself.
        sync_batch_norm: let batch norm see the whole batch (CUDA only).

    Raises:
        MissingEnvironment: batch norm cannot be synchronised on the CPU.
        UsageError: nothing of the model is trained.
    """
    if peers.world == 1:
        return model
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise UsageError("the network has no parameter to train")
    device = parameters[0].device
    if sync_batch_norm:
        if device.type != "cuda":
            raise MissingEnvironment(
                "train.sync_batch_norm needs CUDA; on the CPU each process keeps statistics of its own"
            )
        # The conversion replaces modules: those of a copy that shares every tensor.
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        model = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model, shared))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the new name is not known to every torch we take
        return nn.parallel.DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,  # see share_buffers: once an epoch, and averaged
        )


@torch.no_grad()
def share_buffers(model: nn.Module, peers: Processes) -> None:
    """Give every process the same buffers: the mean of running statistics, of others those of process 0."""
    if peers.world == 1:
        return
    averaged = {
        id(statistic)
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        for statistic in (module.running_mean, module.running_var)
    }
    for buffer in model.buffers():
        if id(buffer) in averaged:
            buffer.copy_(peers.total(buffer) / peers.world)
        elif buffer.dtype != torch.bool:
            dist.broadcast(buffer, src=0)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + b"\0")
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
