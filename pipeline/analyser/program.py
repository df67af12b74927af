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
from growpipe.analyser.curvature import Surrogate, is_kinked
from growpipe.analyser.overrides import OVERRIDES, RESHAPES
from growpipe.batches import as_tuple
from growpipe.graph_ops.errors import CheckFailed, UsageError

__all__ = ["Captured", "Loss", "Program", "Recording"]

aten = torch.ops.aten

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Recording:
    """What `Program.capture` takes down of a batch.

    Attributes:
        edges: the consumer edges whose gradients g_e are taken; in order, so that every run sums alike.
        slopes: the nodes at whose outputs the gradient of the loss is taken.
        inner: further nodes whose values are taken down.
        constants: the nodes whose values the groups' paths read as constants.
    """

    edges: tuple[Edge, ...]
    slopes: frozenset[Node]
    inner: frozenset[Node]
    constants: frozenset[Node]


@dataclass(frozen=True, eq=False)
class Captured:
    """What one batch leaves behind: everything that is held constant while θ moves.

    Attributes:
        samples: the number of samples.
        loss: the mean loss over them.
        constants: the values that the groups' paths read from outside.
        gradients: g_e = ∂L/∂(the consumer's input, along that edge only), by edge.
        slopes: ∂L/∂(the node's output), by node.
        inner: values on the paths, by node.
    """

    samples: int
    loss: float
    constants: Mapping[Node, Any]
    gradients: Mapping[Edge, Tensor]
    slopes: dict[Node, Tensor]
    inner: dict[Node, Tensor]

    def cast(self, dtype: torch.dtype) -> Captured:
        """The same with floating constants and edge gradients in the given type."""

        def converted(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return replace(
            self,
            constants={node: converted(value) for node, value in self.constants.items()},
            gradients={edge: converted(value) for edge, value in self.gradients.items()},
        )

    @property
    def nbytes(self) -> int:
        """The memory of constants and edge gradients."""
        tensors = [*self.constants.values(), *self.gradients.values()]
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


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
        self._channels_last = _takes_channels_last(self._nodes)

    def recording(
        self, groups: Sequence[BoundGroup], slopes: Iterable[Node] = (), inner: Iterable[Node] = (),
        constants: Iterable[Node] = (),
    ) -> Recording:  # fmt: skip
        """All that the paths of ``groups`` need of a batch, and the given nodes besides."""
        needed = set(constants)
        for group in groups:
            for node in group.path:
                if node.op == "call_function":
                    needed.update(s for s in node.all_input_nodes if not group.varies(s, node))
        return Recording(
            tuple(dict.fromkeys(edge for group in groups for edge in group.edges)),
            frozenset(slopes),
            frozenset(inner),
            frozenset(needed - self._names.keys()),
        )

    def _last_uses(self, kept: Iterable[Node] = ()) -> dict[Node, list[Node]]:
        """The nodes whose values are no longer needed after each node."""
        last: dict[Node, Node] = {}
        for node in self._nodes:
            for source in node.all_input_nodes:
                last[source] = node
        keep = {*self._outputs, *self._names, *kept}
        result: dict[Node, list[Node]] = {}
        for source, node in last.items():
            if source not in keep:
                result.setdefault(node, []).append(source)
        return result

    def _arguments(self, inputs: Any) -> dict[Node, Any]:
        leaves = pytree.tree_leaves(as_tuple(inputs))
        if len(leaves) != len(self._inputs):
            raise UsageError(
                f"a batch has {len(leaves)} inputs, the model takes {len(self._inputs)}; batches must give "
                f"(inputs, target) pairs"
            )
        if self._channels_last:
            leaves = [_channels_last(leaf) for leaf in leaves]
        return dict(zip(self._inputs, leaves, strict=True))

    def _call(self, node: Node, read: Callable[[Node], Any]) -> Any:
        if node.op == "get_attr":
            return getattr(self._module, str(node.target))
        target: Callable[..., Any] = RESHAPES.get(node.target, node.target)  # type: ignore[arg-type]
        return target(*map_arg(node.args, read), **map_arg(node.kwargs, read))

    def loss(self, inputs: Any, target: Any, loss_fn: Loss) -> float:
        """The mean loss of one batch.

        Raises:
            UsageError: the loss is no scalar.
        """
        with torch.no_grad():
            values: dict[Node, Any] = {**self._state, **self._arguments(inputs)}
            last_use = self._last_uses()
            for node in self._nodes:
                values[node] = self._call(node, values.__getitem__)
                for dead in last_use.get(node, ()):
                    values.pop(dead, None)
            return float(_scalar(loss_fn(self._output(values), target)))

    def _output(self, values: Mapping[Node, Any]) -> Any:
        return pytree.tree_unflatten([values[node] for node in self._outputs], self._out_spec)

    def capture(self, inputs: Any, target: Any, loss_fn: Loss, recording: Recording) -> Captured:
        """One forward and one backward pass: the gradients of the recording, and all that is constant.

        Raises:
            CheckFailed: the loss or a gradient is not finite.
            UsageError: the loss is no scalar, or cannot be differentiated.
        """
        values: dict[Node, Any] = {**self._state, **self._arguments(inputs)}
        consumed: dict[Node, list[Node]] = {}
        for consumer, source in recording.edges:
            consumed.setdefault(consumer, []).append(source)
        last_use = self._last_uses(recording.constants | recording.inner)
        along: dict[Edge | Node, Tensor] = {}
        with torch.enable_grad():
            for node in self._nodes:
                aliases: dict[Node, Tensor] = {}
                for source in consumed.get(node, ()):
                    # A leaf of its own per edge, so that the gradient is the one along that edge only.
                    aliases[source] = along[node, source] = _leaf(values[source])
                values[node] = self._call(node, lambda s, a=aliases: a[s] if s in a else values[s])  # type: ignore[misc]
                if node in recording.slopes:
                    values[node] = along[node] = _leaf(values[node])
                for dead in last_use.get(node, ()):
                    values.pop(dead, None)
            loss = _scalar(loss_fn(self._output(values), target))
            if not torch.isfinite(loss):
                raise CheckFailed(
                    f"the loss of an analysis batch is {float(loss)}; analyse a finite, trained model"
                )
            try:
                gradients = torch.autograd.grad(loss.reshape(()), list(along.values()), allow_unused=True)
            except RuntimeError as error:
                raise UsageError(f"the loss cannot be differentiated: {error}") from None
        found = {
            place: torch.zeros_like(along[place]) if gradient is None else gradient
            for place, gradient in zip(along, gradients, strict=True)
        }
        for place, gradient in found.items():
            if not torch.isfinite(gradient.sum()) and not torch.isfinite(gradient).all():
                where = (
                    f"output of {place.name!r}" if isinstance(place, Node) else f"input of {place[0].name!r}"
                )
                raise CheckFailed(
                    f"the gradient of the loss at the {where} is not finite; check the data and the loss"
                )

        def recorded(nodes: Iterable[Node]) -> dict[Node, Any]:
            return {n: v.detach() if isinstance(v := values[n], Tensor) else v for n in nodes}

        return Captured(
            _samples(self._arguments(inputs).values()),
            float(loss.detach()),
            recorded(recording.constants),
            {place: g for place, g in found.items() if isinstance(place, tuple)},
            {place: g for place, g in found.items() if isinstance(place, Node)},
            recorded(recording.inner),
        )

    def value(self, node: Node, captured: Captured) -> Any:
        """The value of a node that no path varies."""
        return self._state[node] if node in self._state else captured.constants[node]

    def reader(
        self, groups: Sequence[BoundGroup], captured: Captured, values: Mapping[Node, Any]
    ) -> Callable[[Node, Node], Any]:
        """``read(source, user)``: the value of ``source`` as ``user`` sees it on the groups' paths."""

        def read(source: Node, user: Node) -> Any:
            if any(group.varies(source, user) for group in groups):
                return values[source]
            return self.value(source, captured)

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


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UsageError(
            f"loss_fn must return a tensor with one number, the mean loss over a batch, not {found}"
        )
    return loss


def _leaf(value: Tensor) -> Tensor:
    """The value, to be differentiated by."""
    return value.view_as(value) if value.requires_grad else value.detach().requires_grad_()


# Operators whose results depend on the strides of what they are given.
_STRIDED = {
    aten.as_strided.default,
    aten._reshape_alias.default,
    aten.view_as_complex.default,
    aten.view.dtype,
}


def _takes_channels_last(nodes: Iterable[Node]) -> bool:
    """Whether a program of 2-D convolutions may be run with the channels as the innermost axis.

    On a CPU depthwise and pointwise convolutions are then two to twenty times faster.
    """
    targets = {node.target for node in nodes}
    return aten.conv2d.default in targets and not targets & _STRIDED


def _channels_last(leaf: Any) -> Any:
    if not (isinstance(leaf, Tensor) and leaf.ndim == 4 and leaf.device.type == "cpu"):
        return leaf
    return leaf.contiguous(memory_format=torch.channels_last) if leaf.is_floating_point() else leaf


def _samples(inputs: Iterable[Any]) -> int:
    sizes = [value.shape[0] for value in inputs if isinstance(value, Tensor) and value.ndim]
    if not sizes:
        raise UsageError("a batch has no tensor input with a batch axis")
    return int(sizes[0])
