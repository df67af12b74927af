"""Exported programs with some operators taken apart, and the others left as they are.

``ExportedProgram.run_decompositions`` traces the whole network once more, which takes longer than its export.
Here only the operators that it would replace are traced, each by itself, with the shapes that the export
noted; equal ones are traced once.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, ExportGraphSignature
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

__all__ = ["Decompositions", "LocallyDecomposed", "decomposed"]

Decompositions = Mapping[Any, Callable[..., Any]]
"""By operator a function of the same arguments, in simpler operators."""

_aten = torch.ops.aten
_SIZE = _aten.sym_size.int
_NUMBERS = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)
_ORIGIN = ("nn_module_stack", "stack_trace", "torch_fn", "from_node", "custom")
"""The notes of a node about where it comes from; those that stand for it take them over."""


class LocallyDecomposed(ExportedProgram):
    """A program whose `run_decompositions` traces only what it replaces, if that is enough."""

    @staticmethod
    def of(program: ExportedProgram) -> LocallyDecomposed:
        """The same program, which shares all with ``program``."""
        found = LocallyDecomposed.__new__(LocallyDecomposed)
        found.__dict__.update(program.__dict__)
        return found

    def run_decompositions(
        self, decomp_table: Decompositions | None = None, decompose_custom_triton_ops: bool = False
    ) -> ExportedProgram:
        """See `ExportedProgram`."""
        found = None if decomp_table is None else decomposed(self, decomp_table)
        if found is not None:
            return found
        table = None if decomp_table is None else dict(decomp_table)
        whole: ExportedProgram = super().run_decompositions(table, decompose_custom_triton_ops)
        return whole


def decomposed(program: ExportedProgram, table: Decompositions) -> ExportedProgram | None:
    """What ``program.run_decompositions(table)`` gives, in less time.

    Args:
        program: from `torch.export.export`, in evaluation mode; it is not changed.
        table: the operators that have to go, and what they become.

    Returns:
        The program; None if only a trace of the whole tells what it becomes: it has operators that work in
        place or are not torch's own, or bodies such as those of ``torch.cond``.
    """
    signature = copy.deepcopy(program.graph_signature)
    try:
        graph = _Rewriting(table).of(program.graph, signature)
    except _NeedsWholeTrace:
        return None
    return ExportedProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
    )


class _NeedsWholeTrace(Exception):
    """Something in the program is taken apart only by a trace of the whole."""


class _Rewriting:
    """Writes the graph of one program anew."""

    def __init__(self, table: Decompositions) -> None:
        self._graph = Graph()
        self._table = table
        self._pieces: dict[Any, GraphModule] = {}
        self._sizes: dict[str, Node] = {}
        self._inputs: list[Node] = []
        self._restrided: set[Node] = set()
        """Of the nodes that are written, those whose value got other strides."""

    def of(self, graph: Graph, signature: ExportGraphSignature) -> Graph:
        """The new graph.

        Args:
            graph: the program's.
            signature: the names of its outputs become those of the new graph.
        """
        inputs = set(signature.user_inputs)
        written: dict[Node, Any] = {}
        for node in graph.nodes:
            written[node] = self._step(node, written)
            if node.op == "placeholder" and node.name in inputs:
                self._inputs.append(written[node])
        self._graph.eliminate_dead_code()
        by_name = {node.name: new for node, new in written.items()}
        for spec in signature.output_specs:
            if not isinstance(spec.arg, ConstantArgument):
                spec.arg.name = by_name[spec.arg.name].name
        return self._graph

    def _step(self, node: Node, written: Mapping[Node, Any]) -> Any:
        """`_write`, with the strides of what is written noted."""
        made = self._write(node, written)
        if node.op != "call_function":
            return made
        copied = isinstance(made, Node) and made.target is node.target
        behind = not self._restrided.isdisjoint(node.all_input_nodes)
        if copied and behind:
            made.meta["val"] = _computed_again(node, written)
        if (behind or not copied) and _strides(_value(made)) != _strides(node.meta.get("val")):
            self._restrided.add(node)
        return made

    def _write(self, node: Node, written: Mapping[Node, Any]) -> Any:
        """What stands for ``node`` in the new graph: a node, or a tuple of them for several results."""
        if node.op in {"placeholder", "output"}:
            made = self._graph.node_copy(node, written.__getitem__)
            made.name = node.name  # also one that a graph would not choose, such as "input"
            return made
        target = node.target
        if node.op != "call_function":
            raise _NeedsWholeTrace
        if target is operator.getitem:
            results, position = node.args
            assert isinstance(results, Node)
            if not isinstance(written[results], Node):
                return written[results][position]
        if not isinstance(target, OpOverload):
            if target is not operator.getitem and not isinstance(node.meta.get("val"), _NUMBERS):
                raise _NeedsWholeTrace  # a body, or what switches a mode of torch
            return self._graph.node_copy(node, written.__getitem__)
        if target._schema.is_mutable or target.namespace != "aten":
            raise _NeedsWholeTrace
        if target is _SIZE:
            return self._size(node, written)
        if target is _aten.batch_norm.default:
            return self._normalised(node, written)
        if target in self._table or _is_never_kept(target):
            return self._inlined(node, written)
        return self._graph.node_copy(node, written.__getitem__)

    def _size(self, node: Node, written: Mapping[Node, Any]) -> Node:
        """The length that ``node`` takes from a tensor: of an input of the program if one has it."""
        length = str(node.meta["val"])
        if length not in self._sizes:
            made = self._length_of_input(length, node)
            self._sizes[length] = made or self._graph.node_copy(node, written.__getitem__)
        return self._sizes[length]

    def _length_of_input(self, length: str, node: Node) -> Node | None:
        for source in self._inputs:
            value = source.meta.get("val")
            for axis, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
                if str(size) == length:
                    with self._graph.inserting_after(self._inputs[-1]):
                        made = self._graph.call_function(_SIZE, (source, axis))
                    made.meta.update(node.meta)
                    return made
        return None

    def _normalised(self, node: Node, written: Mapping[Node, Any]) -> Node:
        """Batch normalisation by running statistics, in the plainest of torch's operators for it."""
        args, value = map_arg(node.args, written.__getitem__), node.meta["val"]
        if len(args) != 9 or args[5] is not False:
            raise _NeedsWholeTrace
        target = _aten._native_batch_norm_legit_no_training
        all_results = self._graph.create_node(
            "call_function", target.default, (*args[:5], *args[6:8]), {}, target.__name__
        )
        all_results.meta.update(node.meta, val=(value, value.new_empty(0), value.new_empty(0)))
        result = self._graph.call_function(operator.getitem, (all_results, 0))
        result.meta.update(node.meta)
        return result

    def _inlined(self, node: Node, written: Mapping[Node, Any]) -> Any:
        """The operators that ``node`` becomes."""
        piece = self._piece(node, written)
        arguments = iter(node.all_input_nodes)
        inner: dict[Node, Any] = {}
        for step in piece.graph.nodes:
            if step.op == "placeholder":
                inner[step] = written[next(arguments)]
            elif step.op == "output":
                return map_arg(step.args[0], inner.__getitem__)
            else:
                step.meta.update((key, node.meta[key]) for key in _ORIGIN if key in node.meta)
                inner[step] = self._step(step, inner)
        raise AssertionError("a graph ends with its output")

    def _piece(self, node: Node, written: Mapping[Node, Any]) -> GraphModule:
        """The operator of ``node`` taken apart by one step, as a graph of its input nodes."""
        values = {source: _value(written[source]) for source in node.all_input_nodes}
        known = {source: f"{k}: {_described(value)}" for k, (source, value) in enumerate(values.items())}
        key = node.target, repr(map_arg((node.args, node.kwargs), known.__getitem__))
        if key not in self._pieces:
            self._pieces[key] = self._traced(node, list(values.values()))
        return self._pieces[key]

    def _traced(self, node: Node, values: list[Any]) -> GraphModule:
        target: Any = node.target
        function = self._table.get(target, target.decompose)

        def call(*given: Any) -> Any:
            by_source = dict(zip(node.all_input_nodes, given, strict=True))
            args, kwargs = map_arg((node.args, node.kwargs), by_source.__getitem__)
            return function(*args, **kwargs)

        # Composite operators within a function of the table are seen before torch takes them apart.
        if target in self._table:
            with _fake_mode(values), torch.enable_grad():
                piece = make_fx(call, pre_dispatch=True)(*map(_differentiable, values))
            if _is_free_of(piece, target):
                return piece
        with _fake_mode(values), torch.no_grad():
            piece = make_fx(call)(*values)
        if _is_free_of(piece, target):
            return piece
        raise _NeedsWholeTrace


def _value(made: Any) -> Any:
    """The value of a node of the new graph, or those of several."""
    return map_arg(made, lambda node: node.meta.get("val"))


def _strides(value: Any) -> str:
    """Of one tensor or several; as text, since a comparison of symbols would bind them."""
    return str(pytree.tree_map_only(Tensor, Tensor.stride, value))


def _fake_mode(values: Any) -> Any:
    """What torch traced ``values`` with."""
    fake = next((value for value in pytree.tree_leaves(values) if isinstance(value, FakeTensor)), None)
    if fake is None:
        raise _NeedsWholeTrace
    return fake.fake_mode


def _computed_again(node: Node, written: Mapping[Node, Any]) -> Any:
    """The value of ``node`` from the values that its arguments have now."""
    target: Any = node.target
    args, kwargs = map_arg((node.args, node.kwargs), lambda source: _value(written[source]))
    try:
        with _fake_mode((args, kwargs)), torch.no_grad():
            return target(*args, **kwargs)
    except RuntimeError:  # a view that these strides do not allow
        raise _NeedsWholeTrace from None


def _differentiable(value: Any) -> Any:
    """Recurrent layers are taken apart into plain operators only if their input needs a gradient."""
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().requires_grad_() if floating else value


def _is_free_of(piece: GraphModule, target: Any) -> bool:
    return all(step.target is not target for step in piece.graph.nodes)


def _described(value: Any) -> str:
    """Equal for values that an operator treats alike."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} {value.stride()} {value.device}"
    if isinstance(value, _NUMBERS):
        return str(value)
    raise _NeedsWholeTrace


@functools.cache
def _is_never_kept(target: OpOverload) -> bool:
    """Whether every trace takes the operator apart: a composite one whose result may be its argument."""
    composite = target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    aliases = any(argument.alias_info is not None for argument in target._schema.arguments)
    return composite and (aliases or torch.Tag.maybe_aliasing_or_mutating in target.tags)
