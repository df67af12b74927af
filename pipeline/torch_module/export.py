"""From an ``nn.Module`` to its two views: the ExportedProgram and the ONNX graph in growth form.

Growth form keeps every parameter under its torch name, leaves batch normalisation unfused and folds all
that does not depend on a parameter's value, so that a channel group found on the graph names the torch
parameters.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
import torch.utils._pytree as pytree
from onnxscript.optimizer import fold_constants_ir
from torch import nn
from torch.nn.parameter import is_lazy

from growpipe.graph_ops.errors import CheckFailed, UsageError
from growpipe.graph_ops.groups.channel_groups import ChannelGroups, Solution, solve
from growpipe.torch_module.decompositions import LocallyDecomposed
from growpipe.torch_module.outputs import own_precision, to_autograd, to_numpy

__all__ = ["GrowthExport", "export_growth_form", "named_tensors", "wrapped_in"]

_FOLDED_SIZE_LIMIT = 1 << 20  # entries: shape arithmetic and zero biases are far below
_TORCH_METADATA = ("pkg.torch.onnx.stack_trace", "pkg.torch.export.graph_signature", "pkg.torch.onnx.fx_node")


@dataclass(frozen=True, eq=False)
class GrowthExport:
    """The two views of one network.

    Attributes:
        program: torch's exported program, in eval mode, with the module's own operators.
        graph: the ONNX graph in growth form; initializers carry the names of `named_tensors`.
    """

    program: torch.export.ExportedProgram
    graph: ir.Model

    @cached_property
    def solution(self) -> Solution:
        """The channel groups of ``graph`` with the axes that they come from; solved at the first use.

        Those within a body are left out: the analysis does not look into the branches of ``torch.cond``.
        """
        return solve(self.graph, within_bodies=False)

    def groups(self, freeze: Sequence[str] = ()) -> ChannelGroups:
        """The channel groups of ``graph``.

        Args:
            freeze: names or globs of tensors that keep all their axes; see `find_channel_groups`.

        Raises:
            UsageError: an entry of ``freeze`` matches no tensor.
        """
        return solve(self.graph, freeze, within_bodies=False).groups if freeze else self.solution.groups


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, detached; a tensor registered under two names is there twice.

    Raises:
        UsageError: a lazy module has not seen an input yet.
    """
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise UsageError(
                f"{name!r} of a lazy module has no shape yet; call the model once on example inputs"
            )
    return {name: tensor.detach() for name, tensor in tensors.items()}


def wrapped_in(model: nn.Module) -> str | None:
    """Where DistributedDataParallel, torch.compile and the like keep the network; None if it is itself."""
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return "module"
    return "_orig_mod" if hasattr(model, "_orig_mod") else None


def export_growth_form(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
) -> GrowthExport:
    """Export ``model`` through ``torch.export`` to an ONNX graph in growth form.

    Args:
        model: in eval mode; it is not changed.
        example_inputs: the positional inputs of ``forward``; tensors, in any nest of containers, have the
            batch on axis 0.
        input_names: names of the graph's inputs; by default those of ``forward``.
        output_names: names of the graph's outputs.
        dynamic_batch: leave axis 0 of every tensor input free (named ``batch``).

    Raises:
        UsageError: the model is wrapped, lazy, in train mode, or cannot be exported.
        CheckFailed: the exporter changed or lost a parameter.
    """
    inside = wrapped_in(model)
    if inside is not None:
        raise UsageError(f"{type(model).__name__} wraps the network; give what is inside, its .{inside}")
    training = next((name or "the model" for name, module in model.named_modules() if module.training), None)
    if training is not None:
        raise UsageError(
            f"{training} is in train mode, which exports batch norm and dropout wrongly; call model.eval()"
        )
    _check_recurrent(model)
    named_tensors(model)  # refuses a lazy module
    example_inputs = pytree.tree_map(to_autograd, example_inputs)
    shapes = None
    if dynamic_batch:
        # torch.export takes a batch of 1 for a constant.
        example_inputs = pytree.tree_map(_at_least_two, example_inputs)
        free = {0: torch.export.Dim("batch", min=1)}
        shapes = pytree.tree_map(lambda v: free if isinstance(v, torch.Tensor) else None, example_inputs)
    with _quiet_exporter(), own_precision():
        try:
            with torch.no_grad():
                program = torch.export.export(model, example_inputs, dynamic_shapes=shapes)
            exported = _to_onnx(LocallyDecomposed.of(program), input_names, output_names)
        except Exception as error:  # torch raises what its passes raise: many classes, no common base
            reason = next(
                (line.strip() for line in str(error).splitlines() if line.strip()), "no reason given"
            )
            raise UsageError(
                f"{type(model).__name__} cannot be exported: {type(error).__name__}: {reason[:300]}; "
                f"{_advice(model)}"
            ) from error
    graph = _growth_form(exported)
    if dynamic_batch:
        _name_batch(graph)
    _assert_parameters_equal(program, graph)
    return GrowthExport(program, graph)


def _to_onnx(
    program: torch.export.ExportedProgram,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> ir.Model:
    """What ``torch.onnx.export`` gives."""
    public: Callable[..., Any] = partial(torch.onnx.export, dynamo=True)
    export = _exporter("torchvision" in sys.modules) or public
    exported = export(
        program, input_names=input_names, output_names=output_names, optimize=False, verbose=False
    )
    model: ir.Model = exported.model
    return model


@cache
def _exporter(with_torchvision: bool) -> Callable[..., Any] | None:
    """What ``torch.onnx.export`` calls, with a registry of operators that is built once.

    ``torch.onnx.export`` itself builds one of hundreds of operators at every call.

    Args:
        with_torchvision: whether torchvision is loaded, whose operators are then in the registry.

    Returns:
        The function; None if this version of torch has none that takes a registry.
    """
    try:
        from torch.onnx import _constants
        from torch.onnx._internal.exporter import _core, _registration

        opset = _constants.ONNX_DEFAULT_OPSET
        registry = _registration.ONNXRegistry.from_torchlib(opset_version=opset)
        takes = inspect.signature(_core.export).parameters.keys()
    except (ImportError, AttributeError, TypeError):
        return None
    if not {"registry", "opset_version", "input_names", "output_names", "optimize", "verbose"} <= takes:
        return None
    return partial(_core.export, registry=registry, opset_version=opset)


def _check_recurrent(model: nn.Module) -> None:
    """Refuse recurrent modules that torch's exporter writes wrongly."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LSTM) and module.proj_size > 0:
            raise UsageError(
                f"{name or 'the model'} is an LSTM with proj_size={module.proj_size}, and torch.onnx.export "
                "drops its projection; use proj_size=0 and put an nn.Linear behind it"
            )


def _advice(model: nn.Module) -> str:
    """What to do about a model that cannot be exported."""
    steps_first = next(
        (n for n, m in model.named_modules() if isinstance(m, nn.RNNBase) and not m.batch_first), None
    )
    if steps_first is None:
        return "try torch.export.export(model, example_inputs) on it"
    return (
        f"{steps_first or 'the model'} has batch_first=False: axis 0 of the inputs must be the batch, so let "
        "forward take (batch, time, features) and transpose, or set batch_first=True"
    )


def _growth_form(model: ir.Model) -> ir.Model:
    """Fold what no parameter's value enters, make names unique, drop what leaks source paths."""
    model = passes.NameFixPass()(model).model
    names = set(model.graph.initializers)

    def guard(node: ir.Node) -> bool | None:
        # Also a parameter's shape is a constant: the exporter makes zero biases from it.
        reads_value = node.op_type != "Shape" and any(v is not None and v.name in names for v in node.inputs)
        return False if reads_value else None

    fold_constants_ir(
        model,
        onnx_shape_inference=True,
        input_size_limit=_FOLDED_SIZE_LIMIT,
        output_size_limit=_FOLDED_SIZE_LIMIT,
        should_fold=guard,
    )
    for apply in (
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.RemoveUnusedOpsetsPass(),
    ):
        model = apply(model).model
    _drop_zero_biases(model, names)
    model = passes.RemoveUnusedNodesPass()(model).model
    _strip(model)
    return model


def _drop_zero_biases(model: ir.Model, parameters: set[str]) -> None:
    """A convolution without bias is exported with one of zeros, which the module has no name for."""
    for node in model.graph.all_nodes():
        if node.op_type not in ("Conv", "ConvTranspose") or len(node.inputs) != 3:
            continue
        bias = node.inputs[2]
        if bias is None or bias.name in parameters or bias.const_value is None:
            continue
        if not bias.const_value.numpy().any():
            node.resize_inputs(2)


def _strip(model: ir.Model) -> None:
    """Remove the exporter's private notes: they hold source code and paths of the exporting machine."""
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        values.extend(node.outputs)
        for key in [key for key in node.metadata_props if key.startswith(_TORCH_METADATA)]:
            del node.metadata_props[key]
    for value in values:
        for key in [key for key in value.metadata_props if key.startswith("pkg.torch.")]:
            del value.metadata_props[key]


def _name_batch(model: ir.Model) -> None:
    """Call the free axis ``batch`` wherever the exporter's symbol for it stands."""
    symbols = {
        value.shape[0].value
        for value in model.graph.inputs
        if value.shape is not None and len(value.shape) and isinstance(value.shape[0], ir.SymbolicDim)
    }
    symbols.discard(None)
    values = [*model.graph.inputs, *(out for node in model.graph.all_nodes() for out in node.outputs)]
    for value in values:
        if value.shape is None:
            continue
        value.shape = ir.Shape(
            [
                "batch" if isinstance(dim, ir.SymbolicDim) and dim.value in symbols else dim
                for dim in value.shape
            ]
        )


def _assert_parameters_equal(program: torch.export.ExportedProgram, graph: ir.Model) -> None:
    """Every parameter and buffer that an output depends on is an initializer of the same name and bits."""
    signature = program.graph_signature
    named = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
    }
    tensors: Mapping[str, torch.Tensor] = {**program.state_dict, **program.constants}
    live: set[torch.fx.Node] = set()
    for node in reversed(program.graph.nodes):
        if node.op == "output" or not live.isdisjoint(node.users):
            live.add(node)
    used = [
        named[node.name]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in named and node in live
    ]
    for name in used:
        value = graph.graph.initializers.get(name)
        if value is None or value.const_value is None:
            tied = [other for other in used if other != name and tensors[other] is tensors[name]]
            if any(other in graph.graph.initializers for other in tied):
                continue
            raise CheckFailed(
                f"the exporter lost parameter {name!r}: the graph has no initializer of that name"
            )
        held = to_numpy(tensors[name])
        if not np.array_equal(value.const_value.numpy(), held, equal_nan=held.dtype.kind in "fc"):
            raise CheckFailed(f"the exporter changed parameter {name!r}: graph and module differ")


def _at_least_two(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == 1:
        return torch.cat([value, value])
    return value


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter talks of optional packages, deprecations and user code; what matters it raises."""
    said = io.StringIO()
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
