"""Constants, and tensors filled with one value."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from growpipe.graph_ops.axes.rule_api import AxisInference, Rule, UnknownShape
from growpipe.graph_ops.axes.rules.shape_operators import axes_from

__all__ = ["RULES"]


def constant(inference: AxisInference, node: ir.Node) -> None:
    """A tensor in the graph: a weight like any initializer."""
    for name, attribute in node.attributes.items():
        match name:
            case "value":
                tensor = attribute.value
            case "value_int" | "value_ints":
                tensor = ir.tensor(np.array(attribute.value, np.int64))
            case "value_float" | "value_floats":
                tensor = ir.tensor(np.array(attribute.value, np.float32))
            case _:
                raise UnknownShape(f"a constant given as {name}")
        inference.tensor_of(node.outputs[0], tensor)
        return
    raise UnknownShape("a constant without a value")


def constant_of_shape(inference: AxisInference, node: ir.Node) -> None:
    """One value everywhere: the axes are as long as the input says."""
    inference.output(node, axes_from(inference, node, 0))


RULES: dict[str, Rule] = {"Constant": constant, "ConstantOfShape": constant_of_shape}
