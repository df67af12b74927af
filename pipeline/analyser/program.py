"""The exported program as the analyser runs it: once in full, then only along the groups' own paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg

from growpipe.analyser.binding import BoundGroup, Edge, placeholders
from growpipe.analyser.curvature import OVERRIDES, Surrogate, is_kinked
from growpipe.graph_ops.errors import CheckFailed, UsageError

__all__ = ["Captured", "Loss", "Program", "inputs_of"]

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Captured:
    """What one batch leaves behind: everything that is held constant while θ moves.

    Attributes:
        samples: the number of samples.
        loss: the mean loss over them.
        constants: the values that the groups' paths read from outside.
        gradients: g_e = ∂L/∂(the consumer's input, along that edge only), by edge.
    """

    samples: int
    loss: float
    constants: Mapping[Node, Any]
    gradients: Mapping[Edge, Tensor]

    def stored(self, dtype: torch.dtype) -> Captured:
        """The same with floating tensors in another type, to save memory or to undo that."""
        return replace(
            self,
            constants={node: _cast(value, dtype) for node, value in self.constants.items()},
            gradients={edge: _cast(value, dtype) for edge, value in self.gradients.items()},
        )

    @property
    def nbytes(self) -> int:
        tensors = [*self.constants.values(), *self.gradients.values()]
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def inputs_of(inputs: Any) -> tuple[Any, ...]:
    """The positional inputs of a batch: a tuple or list as it is, anything else as the only one."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


class Program:
    """An exported program in functional ATen, its state, and the groups bound to it.

    Args:
        program: as `torch.export.export` makes it from the module in evaluation mode, run through
            ``run_decompositions({})`` so that no operator works in place.
        state: parameters, buffers and constants by name, on the device and in the type of the analysis.
        groups: the bound groups.
        surrogate: the curvature of kinked activations.
        aliases: the name under which the groups know a parameter, where it differs (tied parameters).
    """

    def __init__(
        self,
        program: ExportedProgram,
        state: Mapping[str, Any],
        groups: Sequence[BoundGroup],
        surrogate: Surrogate,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        graph = program.graph_module.graph
        self.groups = tuple(groups)
        self.surrogate = surrogate
        self._nodes = [node for node in graph.nodes if node.op in {"call_function", "get_attr"}]
        self._module = program.graph_module
        held = placeholders(program)
        self._state = {node: state[name] for node, name in held.items()}
        self._names = {node: (aliases or {}).get(name, name) for node, name in held.items()}
        inputs = set(program.graph_signature.user_inputs)
        self._inputs = [n for n in graph.nodes if n.op == "placeholder" and n.name in inputs]
        (output,) = (node for node in graph.nodes if node.op == "output")
        wanted = set(program.graph_signature.user_outputs)
        self._outputs = [n for n in output.args[0] if isinstance(n, Node) and n.name in wanted]
        if program.call_spec.out_spec is None:
            raise CheckFailed("the exported program does not say how its outputs are arranged")
        self._out_spec = program.call_spec.out_spec
        self._edges: dict[Edge, None] = {edge: None for group in groups for edge in group.edges}
        self._consumed: dict[Node, list[Node]] = {}
        for consumer, source in self._edges:
            self._consumed.setdefault(consumer, []).append(source)
        self._kept = self._constants_needed()
        self._last_use = self._last_uses()

    def _constants_needed(self) -> set[Node]:
        """The nodes whose values the paths read as constants."""
        needed: set[Node] = set()
        for group in self.groups:
            for node in group.path:
                if node.op == "call_function":
                    needed.update(s for s in node.all_input_nodes if not group.varies(s, node))
        return needed - self._names.keys()

    def _last_uses(self) -> dict[Node, list[Node]]:
        """The nodes whose values are no longer needed after each node."""
        last: dict[Node, Node] = {}
        for node in self._nodes:
            for source in node.all_input_nodes:
                last[source] = node
        keep = {*self._outputs, *self._names, *self._kept}
        result: dict[Node, list[Node]] = {}
        for source, node in last.items():
            if source not in keep:
                result.setdefault(node, []).append(source)
        return result

    def _arguments(self, inputs: Any) -> dict[Node, Any]:
        leaves = pytree.tree_leaves(inputs_of(inputs))
        if len(leaves) != len(self._inputs):
            raise UsageError(
                f"a batch has {len(leaves)} inputs, the model takes {len(self._inputs)}; batches must give "
                f"(inputs, target) pairs"
            )
        return dict(zip(self._inputs, leaves, strict=True))

    def _call(self, node: Node, read: Callable[[Node], Any]) -> Any:
        if node.op == "get_attr":
            return getattr(self._module, str(node.target))
        target: Callable[..., Any] = node.target  # type: ignore[assignment]
        return target(*map_arg(node.args, read), **map_arg(node.kwargs, read))

    def loss(self, inputs: Any, target: Any, loss_fn: Loss) -> float:
        """The mean loss of one batch."""
        with torch.no_grad():
            values: dict[Node, Any] = {**self._state, **self._arguments(inputs)}
            for node in self._nodes:
                values[node] = self._call(node, values.__getitem__)
                for dead in self._last_use.get(node, ()):
                    values.pop(dead, None)
            return float(loss_fn(self._output(values), target))

    def _output(self, values: Mapping[Node, Any]) -> Any:
        return pytree.tree_unflatten([values[node] for node in self._outputs], self._out_spec)

    def capture(self, inputs: Any, target: Any, loss_fn: Loss) -> Captured:
        """One forward and one backward pass: the edge gradients of every group, and all that is constant.

        Raises:
            CheckFailed: the loss or a gradient is not finite.
            UsageError: the loss is no scalar, or does not depend on a consumer edge.
        """
        values: dict[Node, Any] = {**self._state, **self._arguments(inputs)}
        along: dict[Edge, Tensor] = {}
        with torch.enable_grad():
            for node in self._nodes:
                aliases: dict[Node, Tensor] = {}
                for source in self._consumed.get(node, ()):
                    value = values[source]
                    # A leaf of its own per edge, so that the gradient is the one along that edge only.
                    alias = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
                    aliases[source] = along[node, source] = alias
                values[node] = self._call(node, lambda s, a=aliases: a[s] if s in a else values[s])  # type: ignore[misc]
                for dead in self._last_use.get(node, ()):
                    values.pop(dead, None)
            loss = loss_fn(self._output(values), target)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise UsageError("loss_fn must return one number, the mean loss over the samples of a batch")
            if not torch.isfinite(loss):
                raise CheckFailed(
                    f"the loss of an analysis batch is {float(loss)}; analyse a finite, trained model"
                )
            try:
                gradients = torch.autograd.grad(loss.reshape(()), list(along.values()), allow_unused=True)
            except RuntimeError as error:
                raise UsageError(f"the loss cannot be differentiated: {error}") from None
        g = {
            edge: torch.zeros_like(along[edge]) if gradient is None else gradient
            for edge, gradient in zip(along, gradients, strict=True)
        }
        for (consumer, _), gradient in g.items():
            if not torch.isfinite(gradient).all():
                raise CheckFailed(
                    f"the gradient of the loss at the input of {consumer.name!r} is not finite; "
                    f"check the data and the loss"
                )
        samples = _samples(self._arguments(inputs).values())
        constants = {
            node: values[node].detach() if isinstance(values[node], Tensor) else values[node]
            for node in self._kept
        }
        return Captured(samples, float(loss.detach()), constants, g)

    def reader(
        self, groups: Sequence[BoundGroup], captured: Captured, values: Mapping[Node, Any]
    ) -> Callable[[Node, Node], Any]:
        """``read(source, user)``: the value of ``source`` as ``user`` sees it on the groups' paths."""

        def read(source: Node, user: Node) -> Any:
            if any(group.varies(source, user) for group in groups):
                return values[source]
            return self._state[source] if source in self._state else captured.constants[source]

        return read

    def evaluate(self, node: Node, read: Callable[[Node, Node], Any]) -> Any:
        """The value of one node of a path, with the operators of `curvature` where they stand in."""
        override = OVERRIDES.get(node.target)
        if override is None:
            return self._call(node, lambda source: read(source, node))
        arguments = map_arg(node.args, lambda source: read(source, node))
        keywords = map_arg(node.kwargs, lambda source: read(source, node))
        return override(self.surrogate, *arguments, **keywords)

    def run_path(
        self, groups: Sequence[BoundGroup], captured: Captured, theta: Mapping[str, Tensor]
    ) -> dict[Node, Any]:
        """The values along the paths of ``groups``, as functions of ``theta``, their displaced tensors."""
        displaced = {block.tensor for group in groups for block in group.blocks}
        path = set().union(*(group.path for group in groups))
        values: dict[Node, Any] = {
            node: theta[name] for node, name in self._names.items() if name in displaced and node in path
        }
        read = self.reader(groups, captured, values)
        for node in self._nodes:
            if node in path:
                values[node] = self.evaluate(node, read)
        return values

    def values_on_demand(
        self, group: BoundGroup, captured: Captured, theta: Mapping[str, Tensor]
    ) -> Mapping[Node, Any]:
        """As `run_path`, but a value is computed when it is first asked for."""
        return _OnDemand(
            self, group, captured, {n: theta[name] for n, name in self._names.items() if name in theta}
        )

    def after(self, node: Node, group: BoundGroup) -> list[Node]:
        """The nodes of the group's path that depend on ``node``, in order."""
        found: dict[Node, None] = {node: None}
        for other in self._nodes:
            if other in group.path and any(
                s in found and group.varies(s, other) for s in other.all_input_nodes
            ):
                found[other] = None
        return [other for other in found if other is not node]

    def users(self, group: BoundGroup, tensor: str) -> list[tuple[Node, Node]]:
        """The nodes of the group's path that use a displaced tensor, each with the node it reads it from."""
        origins: dict[Node, set[str]] = {}
        found = []
        for node in [*self._names, *self._nodes]:
            if node not in group.path:
                continue
            if node.op == "placeholder":
                origins[node] = {self._names[node]}
            elif node in group.parameters:
                origins[node] = set().union(*(origins.get(s, set()) for s in node.all_input_nodes))
            else:
                found += [(node, s) for s in node.all_input_nodes if tensor in origins.get(s, ())]
        return found

    def scalar(self, groups: Sequence[BoundGroup], captured: Captured, theta: Mapping[str, Tensor]) -> Tensor:
        """``Σ_e ⟨g_e, e(θ)⟩`` over the consumer edges of ``groups``; g_e is that of the mean loss."""
        values = self.run_path(groups, captured, theta)
        edges = dict.fromkeys(edge for group in groups for edge in group.edges)
        terms = [(captured.gradients[edge] * values[edge[1]]).sum() for edge in edges]
        return torch.stack(terms).sum()

    def tensor(self, name: str) -> Tensor:
        """The parameter of a name, as the groups know it."""
        for node, known in self._names.items():
            if known == name:
                value: Tensor = self._state[node]
                return value
        raise KeyError(name)

    @property
    def surrogate_used(self) -> bool:
        """Whether a kinked activation lies on the path of a group."""
        return any(is_kinked(node.target) for group in self.groups for node in group.path)


class _OnDemand(dict[Node, Any]):
    """The values along one group's path; a missing one is computed from those before it."""

    def __init__(
        self, program: Program, group: BoundGroup, captured: Captured, known: Mapping[Node, Any]
    ) -> None:
        super().__init__(known)
        self._program, self._read = program, program.reader([group], captured, self)

    def __missing__(self, node: Node) -> Any:
        value = self[node] = self._program.evaluate(node, self._read)
        return value


def _samples(inputs: Iterable[Any]) -> int:
    sizes = [value.shape[0] for value in inputs if isinstance(value, Tensor) and value.ndim]
    if not sizes:
        raise UsageError("a batch has no tensor input with a batch axis")
    return int(sizes[0])
