"""What changed between two models: widths, costs, operators, inputs, outputs, parameters, growth history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from growpipe.graph_ops.edit.history import GrowthStep, read_history
from growpipe.graph_ops.groups.channel_groups import ChannelGroups, find_channel_groups
from growpipe.graph_ops.operators import plain_domain

__all__ = ["Change", "ModelDifference", "TensorChange", "WidthChange", "difference_of"]


@dataclass(frozen=True)
class WidthChange:
    """The width of a channel group in both models.

    Attributes:
        group: its name.
        before: in the parent; None if the parent has no such group.
        after: in the child; None if the child has no such group.
    """

    group: str
    before: int | None
    after: int | None


@dataclass(frozen=True)
class Change:
    """Anything that is not the same in both models.

    Attributes:
        name: of what changed.
        before: in the parent; empty if the parent has none.
        after: in the child; empty if the child has none.
    """

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class TensorChange:
    """A parameter that is not the same in both models.

    Attributes:
        name: of the parameter.
        kind: ``added``, ``removed``, ``type``, ``shape`` or ``values``: the first of these that holds.
        before: type and shape in the parent; empty if the parent has no such parameter.
        after: type and shape in the child; empty if the child has no such parameter.
        largest: the largest difference of two values, if the shape is the same and the values are numbers.
    """

    name: str
    kind: Literal["added", "removed", "type", "shape", "values"]
    before: str
    after: str
    largest: float | None = None


@dataclass(frozen=True)
class ModelDifference:
    """What changed from a parent to a child.

    Attributes:
        parameters: of parent and child.
        macs: multiply-accumulates per sample of parent and child.
        widths: every channel group of either model that can grow, in graph order of the parent, those of the
            child alone last.
        operators: operators whose number changed.
        values: inputs, outputs and operator sets that changed.
        tensors: parameters that changed.
        unchanged: the number of parameters that did not change.
        growth: the steps of growth that the child has beyond those of the parent.
    """

    parameters: tuple[int, int]
    macs: tuple[int, int]
    widths: tuple[WidthChange, ...]
    operators: tuple[Change, ...]
    values: tuple[Change, ...]
    tensors: tuple[TensorChange, ...]
    unchanged: int
    growth: tuple[GrowthStep, ...]

    @property
    def is_empty(self) -> bool:
        """Whether the models are the same in all of this."""
        grown = any(change.before != change.after for change in self.widths)
        return not (grown or self.operators or self.values or self.tensors or self.growth)

    @property
    def summary(self) -> str:
        """What changed, in one sentence."""
        if self.is_empty:
            return "Nothing changed."
        told = [*self._widths_told(), *self._costs_told()]
        told.append(
            f"{len(self.tensors):,} of {len(self.tensors) + self.unchanged:,} parameter tensors changed"
        )
        sentence = ", ".join(told)
        return f"{sentence[0].upper()}{sentence[1:]}."

    def _widths_told(self) -> list[str]:
        kinds: Counter[str] = Counter()
        for change in self.widths:
            if change.before is None:
                kinds["new"] += 1
            elif change.after is None:
                kinds["gone"] += 1
            elif change.before != change.after:
                kinds["wider" if change.after > change.before else "narrower"] += 1
        return [
            _counted(kinds[kind], kind) for kind in ("wider", "narrower", "new", "gone") if kinds[kind]
        ] or ["all widths are the same"]

    def _costs_told(self) -> list[str]:
        costs = {"parameters": self.parameters, "MACs": self.macs}
        return [
            f"{what} {before:,} → {after:,}" for what, (before, after) in costs.items() if before != after
        ]


def _counted(count: int, kind: str) -> str:
    return f"{count:,} channel group is {kind}" if count == 1 else f"{count:,} channel groups are {kind}"


def difference_of(parent: ir.Model, child: ir.Model) -> ModelDifference:
    """Compare two models by the names of their channel groups, parameters, inputs and outputs.

    Nothing is run. Parameters are compared bit by bit, so that a child of the same function may differ in all
    of them.

    Raises:
        UnsafeModel: a growth history is damaged.
    """
    groups = find_channel_groups(parent), find_channel_groups(child)
    tensors, unchanged = _tensors(groups[0].tensors, groups[1].tensors)
    return ModelDifference(
        parameters=(groups[0].cost.parameters(), groups[1].cost.parameters()),
        macs=(groups[0].cost.macs(), groups[1].cost.macs()),
        widths=_widths(*groups),
        operators=_changes(_operators(parent), _operators(child)),
        values=_changes(_values(parent), _values(child)),
        tensors=tensors,
        unchanged=unchanged,
        growth=_growth(read_history(parent), read_history(child)),
    )


def _widths(parent: ChannelGroups, child: ChannelGroups) -> tuple[WidthChange, ...]:
    before, after = (
        {group.name: group.width for group in groups.groups if group.barrier is None}
        for groups in (parent, child)
    )
    return tuple(WidthChange(name, before.get(name), after.get(name)) for name in _either(before, after))


def _either(before: Iterable[str], after: Iterable[str]) -> list[str]:
    """The names of either model, those of the parent first."""
    return list(dict.fromkeys([*before, *after]))


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[Change, ...]:
    names = [name for name in _either(before, after) if before.get(name) != after.get(name)]
    return tuple(Change(name, before.get(name, ""), after.get(name, "")) for name in names)


def _operators(model: ir.Model) -> dict[str, str]:
    """How often each operator stands in the graph, in alphabetical order."""
    counts = Counter(
        f"{domain}.{node.op_type}" if (domain := plain_domain(node.domain)) else node.op_type
        for node in model.graph.all_nodes()
    )
    return {name: str(counts[name]) for name in sorted(counts)}


def _values(model: ir.Model) -> dict[str, str]:
    described = {
        **{f"input {value.name}": _described(value) for value in model.graph.inputs},
        **{f"output {value.name}": _described(value) for value in model.graph.outputs},
    }
    sets = {f"operator set {domain or 'ai.onnx'}": str(v) for domain, v in model.graph.opset_imports.items()}
    return {**described, **sets}


def _described(value: ir.Value) -> str:
    kind = "unknown type" if value.dtype is None else value.dtype.name.lower()
    if value.shape is None:
        return kind
    return f"{kind} {_shape([d if isinstance(d, int) else d.value or '?' for d in value.shape])}"


def _shape(lengths: Sequence[object]) -> str:
    return "[" + ", ".join(map(str, lengths)) + "]"


def _tensors(
    before: Mapping[str, ir.TensorProtocol], after: Mapping[str, ir.TensorProtocol]
) -> tuple[tuple[TensorChange, ...], int]:
    """The parameters that changed, and how many did not."""
    changes: list[TensorChange] = []
    unchanged = 0
    for name in _either(before, after):
        change = _compared(name, before.get(name), after.get(name))
        if change is None:
            unchanged += 1
        else:
            changes.append(change)
    return tuple(changes), unchanged


def _compared(
    name: str, before: ir.TensorProtocol | None, after: ir.TensorProtocol | None
) -> TensorChange | None:
    if before is None:
        return TensorChange(name, "added", "", _told(after))
    if after is None:
        return TensorChange(name, "removed", _told(before), "")
    if before.dtype != after.dtype:
        return TensorChange(name, "type", _told(before), _told(after))
    first, second = before.numpy(), after.numpy()
    if first.shape != second.shape:
        return TensorChange(name, "shape", _told(before), _told(after))
    if first.tobytes() == second.tobytes():
        return None
    largest = None
    if np.issubdtype(first.dtype, np.number):
        gap = np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64))
        largest = float(np.nanmax(gap, initial=0.0))
    return TensorChange(name, "values", _told(before), _told(after), largest)


def _told(tensor: ir.TensorProtocol | None) -> str:
    return "" if tensor is None else f"{tensor.dtype.name.lower()} {_shape(list(tensor.shape))}"


def _growth(before: Sequence[GrowthStep], after: Sequence[GrowthStep]) -> tuple[GrowthStep, ...]:
    """The steps of the child that follow those of the parent; all of them if the histories part."""
    same = len(before) <= len(after) and tuple(after[: len(before)]) == tuple(before)
    return tuple(after[len(before) :]) if same else tuple(after)
