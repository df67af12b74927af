"""What the tests of growth share: random signed plans, and the comparison of two models in onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.split_plan import GroupSplit, SplitPlan, hash_parameters


def signed_plan(model: ir.Model, *, growth: float = 0.25, seed: int = 0, some: bool = False) -> SplitPlan:
    """Split ``growth`` of the channels of every splittable group at ε = 0, |w| up to 2.

    Groups that split by whole factors are doubled. With ``some``, only about two in three groups grow, and
    each by a number of channels, or a factor, of its own.
    """
    groups = find_channel_groups(model)
    rng = np.random.default_rng(seed)
    splits = []
    factors: dict[str, int] = {}
    for group in groups.groups:
        if group.barrier is not None:
            continue
        if group.whole_factor is not None:
            first = min(group.name, *group.whole_factor.tied)
            factor = factors.setdefault(first, int(rng.integers(1, 4)) if some else 2)
            if factor == 1:
                continue
            extra = np.concatenate([rng.permutation(group.width) for _ in range(factor - 1)])
        elif some and rng.random() < 0.3:
            continue
        else:
            count = rng.integers(1, 4) if some else max(1, round(growth * group.width))
            extra = rng.integers(0, group.width, count)
        source = np.concatenate([np.arange(group.width), extra])
        coefficient = rng.uniform(-2, 2, len(source))
        for channel in range(group.width):
            copies = np.flatnonzero(source == channel)
            coefficient[copies[0]] = 1.0 - coefficient[copies[1:]].sum()
        evenly = group.whole_factor is not None
        splits.append(GroupSplit(group.name, group.width, source, coefficient, evenly=evenly))
    layouts = groups.restricted(split.group for split in splits)
    return SplitPlan(
        groups=tuple(splits),
        layouts=layouts,
        epsilon=0.0,
        graph_hash=groups.graph_hash,
        parameters_hash=hash_parameters(layouts, groups.read),
        scheme="random",
    )


def parameters(graph: ir.Graph, path: str = "") -> dict[str, ir.TensorProtocol]:
    """Every initializer and every tensor of a Constant node, by name; those in bodies with their path."""
    found = {path + name: value.const_value for name, value in graph.initializers.items()}
    for node in graph:
        for name, attribute in node.attributes.items():
            if node.op_type == "Constant" and name == "value":
                found[path + node.outputs[0].name] = attribute.value
            elif attribute.type == ir.AttributeType.GRAPH:
                found |= parameters(attribute.as_graph(), f"{path}{node.outputs[0].name}/{name}/")
    return found


def session(model: ir.Model, *, optimised: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    return ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def assert_same_function(
    model: ir.Model,
    grown: ir.Model,
    batches: list[dict[str, np.ndarray]],
    tolerance: float = 1e-5,
    levels: tuple[bool, ...] = (False, True),
) -> None:
    """Both models give the same outputs to ``tolerance`` of their scale, at all optimisation levels."""
    for optimised in levels:
        original, wider = session(model, optimised=optimised), session(grown, optimised=optimised)
        for inputs in batches:
            for before, after in zip(original.run(None, inputs), wider.run(None, inputs), strict=True):
                assert before.shape == after.shape
                if before.size and np.issubdtype(before.dtype, np.floating):
                    scale = max(float(np.abs(before).max()), 1e-6)
                    assert float(np.abs(before - after).max()) <= tolerance * scale
                else:
                    np.testing.assert_array_equal(before, after)
