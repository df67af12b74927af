"""Output lengths of operators that slide a window: convolutions and pooling."""

from __future__ import annotations

import onnx_ir as ir

from growpipe.graph_ops.axes.axis import Axis, root
from growpipe.graph_ops.axes.rule_api import AxisInference
from growpipe.graph_ops.operators import attribute_of

__all__ = ["window_sizes"]


def window_sizes(
    inference: AxisInference, node: ir.Node, space: list[Axis], kernel: list[int | None]
) -> list[int | None]:
    """The spatial lengths after a convolution or pooling; None if they are not known.

    The axes that the window slides along are frozen: copies of an entry would be its own neighbours.
    """
    inference.freeze(node, space, None, "a window slides along this axis")
    rank = len(space)
    strides = attribute_of(node, "strides", [1] * rank)
    dilations = attribute_of(node, "dilations", [1] * rank)
    pads = attribute_of(node, "pads", [0] * 2 * rank)
    automatic = attribute_of(node, "auto_pad", "NOTSET")
    round_up = bool(attribute_of(node, "ceil_mode", 0))
    sizes: list[int | None] = []
    for i, axis in enumerate(space):
        size, width = root(axis).size, kernel[i]
        if size is None or width is None:
            sizes.append(None)
        elif automatic in ("SAME_UPPER", "SAME_LOWER"):
            sizes.append(-(-size // strides[i]))
        else:
            padding = 0 if automatic == "VALID" else pads[i] + pads[i + rank]
            span = size + padding - ((width - 1) * dilations[i] + 1)
            steps = -(-span // strides[i]) if round_up else span // strides[i]
            if round_up and steps * strides[i] >= size + (0 if automatic == "VALID" else pads[i]):
                steps -= 1  # the last window would start in the padding at the end
            sizes.append(steps + 1)
    return sizes
