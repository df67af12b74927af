"""From a module to a program with its channel groups bound to it, on the device of the analysis."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.fx import Node

from growpipe.analyser.options import GrowthOptions
from growpipe.analyser.program.activations import Surrogate
from growpipe.analyser.program.aten import RECURRENT, aten
from growpipe.analyser.program.binding import bind_groups
from growpipe.analyser.program.program import Program
from growpipe.analyser.program.substitutes import PLAIN_ATTENTION
from growpipe.data.loader_items import to_device
from growpipe.graph_ops.errors import MissingEnvironment, NothingToSplit, UsageError
from growpipe.graph_ops.groups.channel_groups import ChannelGroups
from growpipe.graph_ops.plan.joined_groups import joined_factors
from growpipe.graph_ops.plan.whole_factors import growth_by_factors, resolve_factors
from growpipe.parallel.processes import Processes
from growpipe.torch_module.decompositions import LocallyDecomposed
from growpipe.torch_module.export import GrowthExport, export_growth_form, named_tensors
from growpipe.torch_module.module_fit import ModuleFit, fit_module
from growpipe.torch_module.outputs import LossFunction

__all__ = ["Prepared", "Subject", "device_of", "functional", "prepare"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A module, ready to be analysed.

    Attributes:
        program: its exported program, with the groups that may split bound to it.
        groups: all its channel groups.
        dtype: the floating type of its parameters.
        fit: which groups the module cannot follow, and which of its integers follow the others.
        factors: by group the number of copies that every channel gets, as the options ask.
    """

    program: Program
    groups: ChannelGroups
    dtype: torch.dtype
    fit: ModuleFit
    factors: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Subject:
    """The module under analysis, and where it is analysed.

    Attributes:
        model: the module, in evaluation mode.
        loss_fn: the mean loss.
        prepared: the module's program and groups.
        peers: the processes that share the data.
        device: where to run.
    """

    model: nn.Module
    loss_fn: LossFunction
    prepared: Prepared
    peers: Processes
    device: torch.device


def prepare(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | GrowthExport,
    options: GrowthOptions,
    device: torch.device,
) -> Prepared:
    """Export the module, find its channel groups, and bind them to the program.

    Args:
        model: the module, in evaluation mode.
        example_inputs: positional inputs of it, for the export; or an export of it, whose solved groups are
            taken.
        options: freeze, factors, displace and surrogate_beta are used.
        device: where the program is to run.

    Raises:
        NothingToSplit: no group is splittable, and no factors are asked for.
        UsageError: the model cannot be exported or differentiated, is of less than single precision, is not
            the one that was exported, or cannot follow a factor.
        CheckFailed: a group is not found in the program.
    """
    dtype = _precision(model)
    here = _on_cpu(model)
    if isinstance(example_inputs, GrowthExport):
        export = example_inputs
        _check_exported(export, here)
        inputs = export.program.example_inputs[0]
    else:
        inputs = to_device(example_inputs, "cpu")
        export = export_growth_form(here, inputs)
    groups = export.groups(options.freeze)
    factors = resolve_factors(groups, options.factors)
    fit = fit_module(here, export.graph, groups, inputs, factors)
    factors = joined_factors(factors, fit.joined)
    for name in factors.keys() & fit.rigid.keys():
        raise UsageError(f"{type(model).__name__} cannot follow a factor of {name!r}: {fit.rigid[name]}")
    taken = fit.rigid.keys() | factors.keys()
    splittable = [group for group in groups.groups if group.splittable and group.name not in taken]
    if not splittable and not factors:
        raise NothingToSplit(_why_nothing_splits(model, groups, fit.rigid))
    pairs = any(group.of_pairs for group in splittable)
    program = functional(export.program, pairs=pairs)
    aliases = _aliases(program.state_dict, groups)  # once moved, tied tensors are two
    program, state = _placed(program, model, device)
    bound = bind_groups(program, splittable, groups.layouts, aliases, options.displace)
    if not bound and not factors:
        raise NothingToSplit(
            f"{type(model).__name__} gives the products of queries and keys, which alone could split, as "
            "an output, so no analysis tells what a split is worth"
        )
    surrogate = Surrogate(options.surrogate_beta)
    return Prepared(Program(program, state, bound, surrogate, aliases), groups, dtype, fit, factors)


def _precision(model: nn.Module) -> torch.dtype:
    """The floating type of the parameters.

    Raises:
        UsageError: a parameter is of less than single precision, or nothing can be differentiated by it.
    """
    for name, tensor in named_tensors(model).items():
        if tensor.is_inference():
            raise UsageError(
                f"{name!r} was made in torch.inference_mode, which forbids gradients; build the model outside"
            )
    floating = {name: p.dtype for name, p in model.named_parameters() if p.is_floating_point()}
    for name, dtype in floating.items():
        if dtype.itemsize < 4:
            raise UsageError(
                f"parameter {name!r} is {str(dtype).removeprefix('torch.')}, too coarse for second "
                "derivatives; analyse and grow the network as model.float()"
            )
    return next(iter(floating.values()), torch.float32)


def _check_exported(export: GrowthExport, model: nn.Module) -> None:
    """Refuse an export of other parameters than the model has now."""
    own = named_tensors(model)
    for name, value in export.program.state_dict.items():
        if name not in own or not torch.equal(value.detach().cpu(), own[name]):
            raise UsageError(
                f"the export is not of this {type(model).__name__} as it is now: {name!r} differs; export it "
                "again"
            )


def _why_nothing_splits(model: nn.Module, groups: ChannelGroups, rigid: Mapping[str, str]) -> str:
    by_factors = growth_by_factors(groups)
    reason = _why_no_channel_splits(model, groups, rigid)
    return reason if by_factors is None else f"{reason}; {by_factors}"


def _why_no_channel_splits(model: nn.Module, groups: ChannelGroups, rigid: Mapping[str, str]) -> str:
    if rigid:
        name, fault = next(iter(rigid.items()))
        return (
            f"forward() of {type(model).__name__} works with the present channel count alone, of every group "
            f"that could split, such as {name!r}: {fault}; take lengths from the tensors or from the modules"
        )
    barrier = next((g.barrier for g in groups.groups if g.barrier is not None), None)
    reason = f": {barrier.operator} at {barrier.node!r}, {barrier.reason}" if barrier else ""
    return f"{type(model).__name__} has no splittable channel group{reason}; see growpipe inspect"


def _placed(
    program: ExportedProgram, model: nn.Module, device: torch.device
) -> tuple[ExportedProgram, dict[str, Any]]:
    """The program on the device, and its parameters, buffers and constants by name, detached."""
    state: dict[str, Any] = {**program.state_dict, **program.constants}
    if any(isinstance(value, Tensor) and value.device != device for value in state.values()):
        # The pass moves its argument, which may be the caller's.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, about copies of its tree specs
            program = copy.deepcopy(program)
        program = move_to_device_pass(program, str(device))
        own = {name: value for name, value in named_tensors(model).items() if value.device == device}
        state = {**program.state_dict, **program.constants, **own}
    return program, {name: v.detach() if isinstance(v, Tensor) else v for name, v in state.items()}


def _on_cpu(model: nn.Module) -> nn.Module:
    """The module where it can be exported beside inputs of any origin; a copy of one that is elsewhere."""
    elsewhere = any(tensor.device.type != "cpu" for tensor in named_tensors(model).values())
    return copy.deepcopy(model).cpu() if elsewhere else model


_FUNCTIONAL = {
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default, aten.relu.default,
    aten.silu.default, aten.gelu.default, aten.tanh.default, aten.sigmoid.default, aten.hardswish.default,
    aten.hardsigmoid.default, aten.hardtanh.default, aten.leaky_relu.default, aten.add.Tensor,
    aten.mul.Tensor, aten.mean.dim, aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default,
    aten.max_pool2d.default, aten.flatten.using_ints, aten.cat.default,
}  # fmt: skip


def functional(program: ExportedProgram, *, pairs: bool = False) -> ExportedProgram:
    """The program without operators that work in place, so that a captured value stays what it was.

    Recurrent layers are unrolled: one matrix product and the gates for every step.

    Args:
        program: the program.
        pairs: whether channels of queries and keys are analysed. Fused attention is then taken apart, so that
            the sum over these channels is a value of its own.

    A program of nothing but operators that are known to be functional, and that the analyser knows by these
    names, is left as it is. One with operators that work in place is traced once more as a whole.
    """

    def is_known(node: Node) -> bool:
        if node.op != "call_function":
            return node.op in {"placeholder", "output"}
        if node.target is aten.batch_norm.default:
            return not node.kwargs and node.args[5] is False  # by the running statistics
        return node.target in _FUNCTIONAL

    if all(is_known(node) for node in program.graph.nodes):
        return program
    table = {**get_decompositions(RECURRENT), **(PLAIN_ATTENTION if pairs else {})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own use of its own deprecated class
        return LocallyDecomposed.of(program).run_decompositions(table)


def _aliases(state: Mapping[str, Any], groups: ChannelGroups) -> dict[str, str]:
    """For tied parameters, registered under several names, the one the graph keeps."""
    kept = {id(state[name]): name for name in groups.layouts if name in state}
    pointers = {
        (state[name].data_ptr(), state[name].shape): name
        for name in groups.layouts
        if name in state and isinstance(state[name], Tensor)
    }
    aliases = {}
    for name, value in state.items():
        if name in groups.layouts or not isinstance(value, Tensor):
            continue
        known = kept.get(id(value)) or pointers.get((value.data_ptr(), value.shape))
        if known is not None and value.numel():
            aliases[name] = known
    return aliases


def device_of(model: nn.Module, device: str | torch.device | None) -> torch.device:
    """The device of a name; the model's own for None, that of the local rank for ``"cuda"`` under torchrun.

    Raises:
        UsageError: there is no such kind of device.
        MissingEnvironment: CUDA was asked for and is not there.
    """
    if device is None:
        return next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise UsageError(f"there is no device {device!r}; use cpu, cuda or cuda:N") from None
    if wanted.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if wanted.index is None and "LOCAL_RANK" in os.environ:
            wanted = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if count <= (wanted.index or 0):
            raise MissingEnvironment(
                f"device {str(device)!r} was asked for and {count} CUDA devices are there; use device='cpu'"
            )
    return wanted
