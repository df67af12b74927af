"""Trials of growth: groups grow, integers of modules follow, and ``forward`` shows if all of it fits."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from growpipe.graph_ops.axes.layouts import TensorLayout
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import ChannelGroups
from growpipe.graph_ops.plan.data_free import net2net_plan
from growpipe.graph_ops.plan.joined_groups import JoinedGroups
from growpipe.graph_ops.plan.module_size import ModuleSize
from growpipe.torch_module.export import named_tensors
from growpipe.torch_module.grow_module import grow_into, plan_for_module, set_module_sizes
from growpipe.torch_module.outputs import output_tensors
from growpipe.torch_module.read_attributes import attributes_read

__all__ = ["SCALE", "Outcome", "Trials"]

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-3  # of the output's scale: rounding is far below, a wrong reshape far above
_MOMENTS_TOLERANCE = 1e-4  # a variance that divides by one less than the width changes by little


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial showed.

    Attributes:
        fault: what went wrong; None if the grown module computes what the module computes.
        steps: the number of torch's functions that were called.
        trace: a hash of the shapes that they gave and of the sum of the outputs: equal for two choices of
            integers that make no difference.
    """

    fault: str | None
    steps: int
    trace: int = 0


class Trials:
    """Trials of one module.

    Attributes:
        model: the module, in eval mode; it is not changed.
        groups: its channel groups.
        paths: the paths of its modules.
        reads: by path of a module what ``forward`` reads of it, see `attributes_read`.
        layouts: the layouts of all parameters and buffers that a splittable group touches.
        widths: the widths in the trial that was begun last.
        count: the number of trials so far.

    Raises:
        UsageError: no output of the module is finite.
    """

    def __init__(
        self, model: nn.Module, graph: ir.Model, groups: ChannelGroups, inputs: tuple[Any, ...]
    ) -> None:
        self.model = model
        self.groups = groups
        self.widths: Mapping[str, int] = {}
        self.count = 0
        self._tolerance = _TOLERANCE
        self.paths = [path for path, _ in model.named_modules()]
        self._graph = graph
        self._inputs = inputs
        self._grown = copy.deepcopy(model)
        with _StepCounter() as counter:
            self._expected = _floating(model(*inputs))
        given = [value for value in self._expected if value.numel()]
        if given and not any(value.isfinite().any() for value in given):
            raise UsageError(
                f"{type(model).__name__} gives no finite value on the example inputs, so no growth can be "
                "tried; check the parameters, the statistics of its norms, and the inputs"
            )
        self._numbers = counter.numbers
        self._pairs = False
        self.reads = attributes_read(self._grown, inputs)
        tensors = named_tensors(model)
        self.layouts: dict[str, TensorLayout] = {
            name: layout for name, layout in groups.layouts.items() if name in tensors
        }
        used = {tensors[name].data_ptr() for name in graph.graph.initializers if name in tensors}
        self._unused = {name for name, tensor in tensors.items() if tensor.data_ptr() not in used}

    def widths_of(self, bundle: JoinedGroups) -> dict[str, int]:
        """The widths after one step of these groups, with those of groups that are tied to them."""
        whole = (self.groups[name].whole_factor for name in bundle.names)
        tied = {name: 2 * self.groups[name].width for one in whole if one is not None for name in one.tied}
        return bundle.widths(1) | tied

    def begin(self, bundles: Iterable[JoinedGroups]) -> str | None:
        """Let all these groups grow by one step; those that split by whole factors are doubled.

        Returns:
            Why the module cannot take the plan; None if it can.
        """
        factors: dict[str, int] = {}
        growth: dict[str, int] = {}
        for bundle in bundles:
            if bundle.by_factor:
                factors |= dict.fromkeys(bundle.names, 2)
            else:
                growth |= bundle.channels(1)
        names = [*growth, *factors]
        plan = net2net_plan(self.groups, self._graph, growth=growth or 0.0, factors=factors or None)
        self._tolerance = _MOMENTS_TOLERANCE if factors else _TOLERANCE
        self.widths = plan.widths
        self._pairs = any(self.groups[name].of_pairs for name in names)
        try:
            grow_into(self._grown, self.model, plan_for_module(plan, self.model))
        except Exception as error:  # sizes that cannot grow, and whatever a user's parametrization raises
            return _one_line(error)
        return None

    def run(self, sizes: Iterable[ModuleSize] = ()) -> Outcome:
        """What the grown module computes once these integers follow the widths."""
        sizes = tuple(sizes)
        self.count += 1
        set_module_sizes(self._grown, self.model, sizes, self.widths)
        counter, total = _StepCounter(), 0.0
        try:
            with counter:
                found = _floating(self._grown(*self._inputs))
            fault = self._difference(found)
            if fault in {None, _CHANGES} and self._pairs and counter.numbers != self._numbers:
                # With small logits the output would hardly tell.
                fault = SCALE
            total = sum(float(value.nan_to_num().sum()) for value in found)
        except Exception as error:  # the user's forward may raise anything
            fault = _one_line(error) + self._place(error)
        if sizes:
            changes = ", ".join(f"{size.name} {size.size} to {size.grown(self.widths)}" for size in sizes)
            logger.debug("tried %s: %s", changes, fault or "follows")
        return Outcome(fault, counter.steps, hash((counter.trace, total)))

    def together(self, bundles: Iterable[JoinedGroups], sizes: Iterable[ModuleSize] = ()) -> str | None:
        """What goes wrong if all these groups grow at once; None if nothing does."""
        return self.begin(bundles) or self.run(sizes).fault

    def _place(self, error: Exception) -> str:
        """The innermost module whose code raised, in words."""
        inside, trace = None, error.__traceback__
        while trace is not None:
            owner = trace.tb_frame.f_locals.get("self")
            inside = owner if isinstance(owner, nn.Module) else inside
            trace = trace.tb_next
        path = next((path for path, module in self._grown.named_modules() if module is inside), "")
        if inside is None or not path:
            return ""
        own = {f"{path}.{name}" for name, _ in inside.named_parameters()}
        unused = ", which no output needs: remove its call" if own and own <= self._unused else ""
        return f" (in {path}, {type(inside).__name__}{unused})"

    def _difference(self, found: Sequence[torch.Tensor]) -> str | None:
        for value, reference in zip(found, self._expected, strict=True):
            if value.shape != reference.shape:
                return f"the output has shape {tuple(value.shape)}, not {tuple(reference.shape)}"
            # Masked logits are -inf in both; what is finite is compared by its own scale.
            finite = reference.isfinite()
            scale = reference[finite].abs().max() if finite.any() else 0.0
            near = (value - reference).abs() <= self._tolerance * scale
            same = (value == reference) | (value.isnan() & reference.isnan())
            if not torch.all(torch.where(finite, near, same)):
                return _CHANGES
        return None


_CHANGES = "the output changes"

SCALE = (
    "a number that it computes with follows the width of queries and keys, such as the scale of "
    "F.scaled_dot_product_attention without scale=; keep it as a number of the module"
)


class _StepCounter(TorchFunctionMode):
    """Counts calls of functions of torch and hashes the shapes they give: how far ``forward`` came.

    Attributes:
        steps: the number of calls.
        trace: the hash.
        numbers: the fractional numbers that the functions were given, those that became tensors, and the
            width of queries where it is their scale.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps = self.trace = 0
        self.numbers: list[float] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.steps += 1
        self.numbers += _numbers(func, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        values = result if isinstance(result, (list, tuple)) else (result,)
        shapes = tuple(tuple(value.shape) for value in values if isinstance(value, torch.Tensor))
        self.trace = hash((self.trace, shapes))
        return result


def _numbers(func: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> list[float]:
    """The numbers that a function of torch computes with, beside its tensors and shapes."""
    if func is torch.nn.functional.scaled_dot_product_attention and keywords.get("scale") is None:
        queries = args[0] if args else keywords["query"]
        return [float(queries.shape[-1])]
    given = [*args, *keywords.values()]
    if func in _MAKING_TENSORS:
        return [float(value) for value in given if isinstance(value, (int, float))]
    if func in _ARITHMETIC:
        return [float(value) for value in given[1:] if isinstance(value, (int, float))]
    return [value for value in given if isinstance(value, float)]


_MAKING_TENSORS = {torch.tensor, torch.as_tensor, torch.scalar_tensor, torch.full}
_PRODUCTS = """
div mul pow true_divide div_ mul_
__imul__ __itruediv__ __mul__ __pow__ __rmul__ __rpow__ __rtruediv__ __truediv__
"""
_ARITHMETIC = {getattr(o, n) for o in (torch, torch.Tensor) for n in _PRODUCTS.split() if hasattr(o, n)}


def _floating(output: Any) -> list[torch.Tensor]:
    return [tensor.float() for tensor in output_tensors(output) if tensor.is_floating_point()]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
