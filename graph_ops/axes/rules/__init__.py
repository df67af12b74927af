"""What each operator does to the axes of its tensors: one module per family, collected in `RULES`.

A rule is a function of the `AxisInference` and a node. It states the axes of the outputs, unifies axes that
hold the same channels, freezes axes on which the operator does not treat channels separately, names the
weights that make or mix channels, and which attributes and integer inputs spell out lengths. It raises
`growpipe.graph_ops.axes.rule_api.UnknownShape` if it cannot tell. An operator without a rule is a barrier.
"""

from __future__ import annotations

from growpipe.graph_ops.axes.rule_api import Rule
from growpipe.graph_ops.axes.rules import (
    attention,
    constants,
    contraction,
    contributed,
    convolution,
    elementwise,
    indexing,
    joining,
    layout,
    normalisation,
    pooling,
    quantisation,
    recurrent,
    reduction,
    sampling,
)
from growpipe.graph_ops.axes.rules import shape_operators as shapes

__all__ = ["RULES"]

RULES: dict[tuple[str, str], Rule] = {
    **{
        ("", operator): rule
        for family in (
            attention,
            constants,
            contraction,
            convolution,
            elementwise,
            indexing,
            joining,
            layout,
            normalisation,
            pooling,
            quantisation,
            recurrent,
            reduction,
            sampling,
            shapes,
        )
        for operator, rule in family.RULES.items()
    },
    **{("com.microsoft", operator): rule for operator, rule in contributed.RULES.items()},
}
