"""The exported program as the analyser runs it: once in full, then only along the groups' own paths."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg

from growpipe.analyser.program.activations import Surrogate, is_kinked
from growpipe.analyser.program.aten import RESHAPES
from growpipe.analyser.program.binding import BoundGroup, Edge, placeholders
from growpipe.analyser.program.captured import Captured, Recording
from growpipe.analyser.program.fold_norms import FROZEN, FoldedNorm, FoldedNorms
from growpipe.analyser.program.lifetimes import Schedule, last_uses
from growpipe.analyser.program.precision import rounded_factors
from growpipe.analyser.program.substitutes import DIFFERENTIABLE, OVERRIDES
from growpipe.analyser.program.user_inputs import UserInputs
from growpipe.analyser.program.values import (
    contiguous,
    leaf_of,
    sample_count,
    scalar_loss,
    takes_channels_last,
)
from growpipe.graph_ops.errors import CheckFailed, UsageError
from growpipe.torch_module.outputs import LossFunction

__all__ = ["Program"]


class Program:
    """An exported program in functional ATen, its state, and the groups bound to it.

    Args:
        program: as `torch.export.export` makes it from the module in evaluation mode, without operators that
            work in place: see `functional`.
        state: parameters, buffers and constants by name, on the device and in the type of the analysis.
        groups: the bound groups.
        surrogate: the curvature of kinked activations.
        aliases: the name under which the groups know a parameter, where it differs (tied parameters).

    Attributes:
        rounds: whether products of float32 tensors round their factors, see `precision`.
    """

    rounds = False

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
        self.nodes = [node for node in graph.nodes if node.op in {"call_function", "get_attr"}]
        self._module = program.graph_module
        held = placeholders(program)
        self._state = {node: state[name] for node, name in held.items()}
        self.names = {node: (aliases or {}).get(name, name) for node, name in held.items()}
        (output,) = (node for node in graph.nodes if node.op == "output")
        wanted = set(program.graph_signature.user_outputs)
        self._outputs = [n for n in output.args[0] if isinstance(n, Node) and n.name in wanted]
        if program.call_spec.out_spec is None:
            raise CheckFailed("the exported program does not say how its outputs are arranged")
        self._out_spec = program.call_spec.out_spec
        self.lasting = {*self._outputs, *self.names}
        self._channels_last = takes_channels_last(self.nodes)
        self._inputs = UserInputs(program, channels_last=self._channels_last)
        self._norms = FoldedNorms(self.nodes, self._state)
        self._schedules: WeakKeyDictionary[Recording, Schedule] = WeakKeyDictionary()

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
            frozenset(needed - self.names.keys()),
        )

    def call(self, node: Node, read: Callable[[Node], Any]) -> Any:
        """The value of a node, from those of its arguments."""
        if node.op == "get_attr":
            return getattr(self._module, str(node.target))
        return self.apply(node, *map_arg(node.args, read), **map_arg(node.kwargs, read))

    def apply(self, node: Node, *arguments: Any, **keywords: Any) -> Any:
        """The operator of a node on other arguments; differentiable where autograd is on."""
        table = {**RESHAPES, **DIFFERENTIABLE} if torch.is_grad_enabled() else RESHAPES
        target: Callable[..., Any] = table.get(node.target, node.target)  # type: ignore[arg-type]
        return target(*arguments, **keywords)

    def start(self, inputs: Any) -> dict[Node, Any]:
        """What every run begins with: parameters, buffers and constants, and the inputs of a batch."""
        return {**self._state, **self._inputs.of(inputs)}

    def forward(self, values: dict[Node, Any]) -> Iterator[Node]:
        """Compute node after node into ``values``, which begin with state and inputs.

        What a node is the last to read goes after the node was handed out.
        """
        last_use = last_uses(self.nodes, self.lasting)
        for node in self.nodes:
            values[node] = self.call(node, values.__getitem__)
            yield node
            for dead in last_use.get(node, ()):
                values.pop(dead, None)

    def loss(self, inputs: Any, target: Any, loss_fn: LossFunction) -> float:
        """The mean loss of one batch.

        Raises:
            UsageError: the loss is not a scalar.
        """
        with torch.no_grad():
            values: dict[Node, Any] = self.start(inputs)
            for _ in self.forward(values):
                pass
            return float(scalar_loss(loss_fn(self.output(values), target)))

    def output(self, values: Mapping[Node, Any]) -> Any:
        """The model's output, from the values of all nodes; a loss may ask it for views."""
        found = [values[node] for node in self._outputs]
        return pytree.tree_unflatten(contiguous(found) if self._channels_last else found, self._out_spec)

    def observe(self, inputs: Any, target: Any, loss_fn: LossFunction, recording: Recording) -> Captured:
        """One forward pass: what is constant, without gradients and inner values.

        Raises:
            CheckFailed: the loss is not finite.
            UsageError: the loss is not a scalar.
        """
        with torch.no_grad():
            return self._run(inputs, target, loss_fn, replace(recording, inner=frozenset()), {})[0]

    def capture(
        self,
        inputs: Any,
        target: Any,
        loss_fn: LossFunction,
        recording: Recording,
        arrived: Callable[[Captured, Edge | Node], None] | None = None,
    ) -> Captured:
        """One forward and one backward pass: the gradients of the recording, and all that is constant.

        Args:
            inputs: those of the batch.
            target: its target.
            loss_fn: the mean loss.
            recording: what to take down.
            arrived: called for every edge and every slope as soon as the backward pass has its gradient,
                without autograd, so that what is no longer needed can be taken out before the pass goes on.
                It must not write into a gradient.

        Raises:
            CheckFailed: the loss or a gradient is not finite.
            UsageError: the loss is not a scalar, or cannot be differentiated.
        """
        along: dict[Edge | Node, Tensor] = {}
        with torch.enable_grad():
            captured, loss = self._run(inputs, target, loss_fn, recording, along)
        waiting = {place: (t.shape, t.dtype, t.device) for place, t in along.items()}

        def arrive(place: Edge | Node, gradient: Tensor) -> None:
            del waiting[place]
            if not math.isfinite(float(gradient.sum())) and not torch.isfinite(gradient).all():
                where = (
                    f"output of {place.name!r}" if isinstance(place, Node) else f"input of {place[0].name!r}"
                )
                raise CheckFailed(
                    f"the gradient of the loss at the {where} is not finite; check the data and the loss"
                )
            if isinstance(place, Node):
                captured.slopes[place] = gradient
            else:
                captured.gradients[place] = gradient
            if arrived is not None:
                arrived(captured, place)

        def hook(place: Edge | Node) -> Callable[[Tensor], None]:
            def run(gradient: Tensor) -> None:
                with torch.no_grad():
                    arrive(place, gradient.detach())

            return run

        for place, tensor in along.items():
            tensor.register_hook(hook(place))
        # Every way back ends in a leaf. What only the pass itself needs is to go as it goes on.
        leaves = [tensor for tensor in along.values() if tensor.is_leaf]
        along.clear()
        del tensor
        try:
            torch.autograd.grad(loss.reshape(()), leaves, allow_unused=True)
        except RuntimeError as error:
            raise UsageError(f"the loss cannot be differentiated: {error}") from None
        for place, (shape, dtype, device) in list(waiting.items()):
            arrive(place, torch.zeros(shape, dtype=dtype, device=device))
        return captured

    def _run(
        self,
        inputs: Any,
        target: Any,
        loss_fn: LossFunction,
        recording: Recording,
        along: dict[Edge | Node, Tensor],
    ) -> tuple[Captured, Tensor]:
        """The forward pass of a recording; ``along`` gets what gradients are to be taken by."""
        arguments = self._inputs.of(inputs)
        values: dict[Node, Any] = {**self._state, **arguments}
        schedule = self._schedules.get(recording)
        if schedule is None:
            schedule = self._schedules[recording] = Schedule.of(recording, self._norms, self.lasting)
        sizes: dict[Node, int] = {}
        for node in self.nodes:
            aliases: dict[Node, Tensor] = {}
            for source in schedule.consumed.get(node, ()):
                sizes[source] = values[source].numel()
                if torch.is_grad_enabled():
                    # A leaf of its own per edge, so that the gradient is the one along that edge only.
                    aliases[source] = along[node, source] = leaf_of(values[source])

            def read(source: Node, node: Node = node, aliases: Mapping[Node, Tensor] = aliases) -> Any:
                if source in aliases:
                    return aliases[source]
                return values[source]

            if node in schedule.folded:
                values[node] = schedule.folded[node](read)
            elif node in schedule.passed:
                values[node] = schedule.passed[node].passed(values[node.args[0]])
            elif node in schedule.frozen:
                values[node] = FROZEN[node.target](*map_arg(node.args, read), **map_arg(node.kwargs, read))
            else:
                values[node] = self.call(node, read)
            if node in recording.slopes:
                sizes[node] = values[node].numel()
                if torch.is_grad_enabled():
                    values[node] = along[node] = leaf_of(values[node])
            for dead in schedule.last_use.get(node, ()):
                values.pop(dead, None)
        loss = scalar_loss(loss_fn(self.output(values), target))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise CheckFailed(f"the loss of an analysis batch is {value}; analyse a finite, trained model")

        def recorded(nodes: Iterable[Node]) -> dict[Node, Any]:
            return {n: v.detach() if isinstance(v := values[n], Tensor) else v for n in nodes}

        captured = Captured(
            sample_count(arguments.values()),
            value,
            recorded(recording.constants),
            {},
            {},
            recorded(recording.inner),
            sizes,
        )
        return captured, loss

    def have_traced_sizes(self, inputs: Any) -> bool:
        """Whether the inputs of a batch have the sizes of the example inputs, but for axis 0."""
        return self._inputs.have_traced_sizes(inputs)

    def with_rounded_factors(self) -> Program:
        """The same program that `rounds`."""
        other = copy.copy(self)
        other.rounds = True
        return other

    def multiplying(self) -> AbstractContextManager[None]:
        """Passes over this program, and products S·v of it, are to be computed inside."""
        return rounded_factors() if self.rounds else nullcontext()

    def with_whole_kernels(self) -> Program:
        """The same program with all taps of its kernels displaced, whatever the sizes of the inputs."""
        other = copy.copy(self)
        other.groups = tuple(group.whole() for group in self.groups)
        return other

    def samples(self, inputs: Any) -> int:
        """The number of samples of a batch."""
        return sample_count(self._inputs.of(inputs).values())

    def folded_norms(self, wanted: Callable[[Node, Node], bool]) -> list[FoldedNorm]:
        """The normalisations in one with their producers, of those pairs that are wanted."""
        return [one for one in self._norms.without(frozenset()).values() if wanted(one.made, one.norm)]

    def is_state(self, nodes: Iterable[Node]) -> bool:
        """Whether all of them are parameters, buffers or constants, the same for every batch."""
        return all(node in self._state for node in nodes)

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
            return self.call(node, lambda source: read(source, node))
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
            node: theta[name] for node, name in self.names.items() if name in displaced and node in path
        }
        read = self.reader(groups, captured, values)
        for node in self.nodes:
            if node in path:
                values[node] = self.evaluate(node, read)
        return values

    def values_on_demand(
        self, group: BoundGroup, captured: Captured, theta: Mapping[str, Tensor]
    ) -> Mapping[Node, Any]:
        """As `run_path`, but a value is computed when it is first asked for."""
        return _OnDemand(
            self, group, captured, {n: theta[name] for n, name in self.names.items() if name in theta}
        )

    def users(self, group: BoundGroup, tensor: str) -> list[tuple[Node, Node]]:
        """The nodes of the group's path that use a displaced tensor, each with the node it reads it from."""
        origins: dict[Node, set[str]] = {}
        found = []
        for node in [*self.names, *self.nodes]:
            if node not in group.path:
                continue
            if node.op == "placeholder":
                origins[node] = {self.names[node]}
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

    def parameter(self, node: Node) -> Any:
        """The parameter, buffer or constant behind a node."""
        return self._state[node]

    def tensor(self, name: str) -> Tensor:
        """The parameter of a name, as the groups know it."""
        for node, known in self.names.items():
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
