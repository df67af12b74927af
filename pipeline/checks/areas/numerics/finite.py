"""No NaN and no infinity: in the weights, and in the outputs."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from growpipe.checks.areas.numerics.places import where
from growpipe.checks.context import Context
from growpipe.checks.registry import register
from growpipe.checks.report import Finding, Outcome, failed, passed

__all__: list[str] = []


@register(
    "numerics/weights",
    "no NaN and no overflow among the weights",
    "look for an overflow in the conversion, or in the training that made the weights",
)
def weights(context: Context) -> Outcome:
    """A NaN among the weights, or an infinity such as a conversion to float16 leaves where a weight was too
    large. Minus infinity alone is allowed: masks are made of it; and so are scalars, as limits of a Clip.
    """
    findings = []
    for name, tensor in _tensors(context.model):
        if tensor.dtype.is_floating_point():
            values = tensor.numpy()
            if values.dtype.itemsize < 4 or values.dtype.kind == "V":
                values = values.astype(np.float32)
            nans = int(np.isnan(values).sum())
            infinite = int(np.isposinf(values).sum()) if values.size > 1 else 0
            if nans or infinite:
                findings.append(
                    Finding(f"{nans} NaN and {infinite} infinite of {values.size} values", tensor=name)
                )
    if findings:
        return failed(f"{len(findings)} tensors are not finite", *findings)
    return passed("all weights are finite")


@register(
    "numerics/finite",
    "no NaN and no infinity in the outputs",
    "look at the node that is named; if such inputs never occur give real ones with --data",
    runs=True,
)
def finite(context: Context) -> Outcome:
    """The outputs on random inputs and on those of --data. The first node that makes a NaN or an infinity is
    named. An output that is a mask of minus infinities is allowed.
    """
    for given in context.runs.ran:
        bad = {
            name: count
            for name, value in context.runs.outputs[given.label].items()
            if value.dtype.kind == "f"
            and (count := int(np.count_nonzero(np.isnan(value) | np.isposinf(value))))
        }
        if bad:
            return failed(
                f"outputs on {given.label} are not finite: "
                + ", ".join(f"{count} values of {name!r}" for name, count in bad.items()),
                *where(
                    "the first node that is not finite",
                    partial(context.process.first_not_finite, context.path, given.inputs, context.device),
                ),
            )
    return passed(f"all outputs on {len(context.runs.ran)} sets of inputs are finite")


def _tensors(model: ir.Model) -> list[tuple[str, ir.TensorProtocol]]:
    found = []
    for graph in model.graphs():
        found += [(str(n), v.const_value) for n, v in graph.initializers.items() if v.const_value is not None]
    for node in model.graph.all_nodes():
        if node.op_type == "Constant" and "value" in node.attributes:
            found.append((str(node.outputs[0].name), node.attributes["value"].as_tensor()))
    return found
