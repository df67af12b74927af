"""The inputs of a batch, as the placeholders of an exported program take them."""

from __future__ import annotations

from typing import Any

import torch.utils._pytree as pytree
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.fx import Node

from growpipe.analyser.program.kernel_window import fixed_sizes
from growpipe.analyser.program.values import innermost
from growpipe.data.loader_items import as_tuple
from growpipe.graph_ops.errors import UsageError

__all__ = ["UserInputs"]


class UserInputs:
    """The inputs of ``forward`` in a program.

    ``torch.export`` takes numbers, flags and None for constants of the program.

    Args:
        program: the exported program.
        channels_last: whether images are given with the channels innermost.
    """

    def __init__(self, program: ExportedProgram, *, channels_last: bool = False) -> None:
        nodes = {node.name: node for node in program.graph_module.graph.nodes if node.op == "placeholder"}
        arguments = [
            spec.arg
            for spec in program.graph_signature.input_specs
            if spec.kind is InputKind.USER_INPUT and spec.arg.name in nodes
        ]
        self._channels_last = channels_last
        self._nodes = [nodes[argument.name] for argument in arguments]
        self._constants = {
            nodes[argument.name]: argument.value
            for argument in arguments
            if isinstance(argument, ConstantArgument)
        }

    def of(self, inputs: Any) -> dict[Node, Any]:
        """By placeholder its value in a batch.

        Args:
            inputs: of the batch: one input, or a tuple of them, each in any nest of containers.

        Raises:
            UsageError: the program takes another number of inputs, or was exported with another constant.
        """
        leaves = pytree.tree_leaves(as_tuple(inputs))
        if len(leaves) != len(self._nodes):
            raise UsageError(
                f"a batch has {len(leaves)} inputs, the model takes {len(self._nodes)}; batches must give "
                f"(inputs, target) pairs"
            )
        values = dict(zip(self._nodes, leaves, strict=True))
        for node, constant in self._constants.items():
            if type(values[node]) is not type(constant) or values[node] != constant:
                raise UsageError(
                    f"a batch has {node.name} = {values[node]!r}, and the example inputs {constant!r}; what "
                    "is not a tensor must be the same in both"
                )
        return innermost(values) if self._channels_last else values

    def have_traced_sizes(self, inputs: Any) -> bool:
        """Whether the inputs of a batch have the sizes with which the program was traced, but for axis 0."""
        traced = {node: fixed_sizes(node) for node in self._nodes}
        values = self.of(inputs)
        return all(sizes is None or values[node].shape[1:] == sizes for node, sizes in traced.items())
