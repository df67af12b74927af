"""The split plan: which channels are copied, with which coefficients and displacements. Data, no behaviour.

Written by the analyser, by the random baseline and by Net2Net; read by the ONNX rewriter, the torch mirror
and the optimizer-state carrier. On disk a plan is a folder of ``plan.json`` and ``plan.safetensors``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.axes.dims import Offspring, atoms_of, dim_from_json, dim_to_json
from growpipe.graph_ops.axes.layouts import AxisLayout, TensorLayout
from growpipe.graph_ops.errors import MissingEnvironment, UsageError
from growpipe.graph_ops.files.atomic import check_folder_target, publish_folder
from growpipe.graph_ops.files.documents import read_json, validated
from growpipe.graph_ops.files.reading import MissingFile, reading
from growpipe.graph_ops.files.tensors import read_tensors
from growpipe.graph_ops.hashes import hash_contents, hash_parameters
from growpipe.graph_ops.notebook import html_table
from growpipe.graph_ops.plan.grow_tensor import Displacement, grow_tensor
from growpipe.graph_ops.plan.module_size import ModuleSize
from growpipe.graph_ops.plan.plan_document import DOCUMENT, TENSORS, PlanDocument, plan_files

__all__ = ["GroupSplit", "SplitPlan", "hash_parameters"]

FORMAT_VERSION = 1
_SHOWN = 6


@dataclass(frozen=True, eq=False, repr=False)
class GroupSplit:
    """What happens to the channels of one group.

    The first ``width`` grown channels are the original ones (their first copies), in order; the further
    copies follow.

    Attributes:
        group: the name of the channel group.
        width: the number of channels before the split.
        source: int64 [grown width]; entry i is the channel that grown channel i is a copy of.
        coefficient: float64 [grown width]; entry i is w_i. The copies of one channel sum to 1.
        displacements: by parameter name, δ_i at ε = 1.
        predicted_change: predicted change of loss at the plan's ε, (ε²/2) Σ w δᵀSδ over the channels; None
            if the plan was made without a prediction.
        evenly: whether the channels are normalised over, so that each must have equally many copies, with
            displacements that sum to 0.
    """

    group: str
    width: int
    source: npt.NDArray[np.int64]
    coefficient: npt.NDArray[np.float64]
    displacements: Mapping[str, Displacement] = field(default_factory=dict)
    predicted_change: float | None = None
    evenly: bool = False

    def __post_init__(self) -> None:
        source, coefficient = self.source, self.coefficient
        if source.ndim != 1 or source.shape != coefficient.shape or len(source) < self.width:
            raise UsageError(
                f"group {self.group!r}: source {source.shape} and coefficient {coefficient.shape} must be "
                f"vectors of one length, at least the width {self.width}"
            )
        if not np.array_equal(source[: self.width], np.arange(self.width)) or (
            len(source) and not 0 <= source.min() <= source.max() < self.width
        ):
            raise UsageError(
                f"group {self.group!r}: grown channels must begin with 0..{self.width - 1}, in order"
            )
        totals = np.bincount(source, weights=coefficient, minlength=self.width)
        if not np.allclose(totals, 1.0, rtol=0.0, atol=1e-9):
            worst = int(np.abs(totals - 1.0).argmax())
            raise UsageError(
                f"group {self.group!r}: the coefficients of channel {worst} sum to {totals[worst]}, not to 1"
            )
        for name, displacement in self.displacements.items():
            channels = displacement.channels
            if len(channels) != len(displacement.values) or (
                len(channels) and not 0 <= channels.min() <= channels.max() < len(source)
            ):
                raise UsageError(
                    f"group {self.group!r}: the displacement of {name!r} names channels that do not exist"
                )
        if self.evenly:
            self._check_evenly()

    def _check_evenly(self) -> None:
        if self.factor is None:
            raise UsageError(
                f"group {self.group!r} is normalised over: every channel must have equally many copies"
            )
        for name, displacement in self.displacements.items():
            total = np.zeros((self.width, *displacement.values.shape[1:]))
            np.add.at(total, self.source[displacement.channels], displacement.values)
            if not np.allclose(total, 0.0, rtol=0.0, atol=1e-5):
                raise UsageError(
                    f"group {self.group!r} is normalised over: the displacements of a channel's copies in "
                    f"{name!r} must sum to 0"
                )

    def __repr__(self) -> str:
        change = self.change and f", predicted change {self.change}"
        return f"GroupSplit({self.group!r}, {self.width} → {self.grown_width}{change})"

    @property
    def change(self) -> str:
        """The predicted change in words; empty without a prediction."""
        return "" if self.predicted_change is None else f"{self.predicted_change:.3g}"

    @property
    def grown_width(self) -> int:
        return len(self.source)

    @property
    def factor(self) -> int | None:
        """The number of copies of every channel; None if they differ."""
        copies = np.bincount(self.source, minlength=self.width)
        return int(copies[0]) if len(copies) and (copies == copies[0]).all() else None

    @property
    def offspring(self) -> Offspring:
        return Offspring(self.source, self.coefficient)


@dataclass(frozen=True, eq=False, repr=False)
class SplitPlan:
    """A signed split of some channel groups of one model.

    Attributes:
        groups: the groups that split, each once.
        layouts: by name, the axes of every parameter that a group of the plan touches.
        epsilon: the step ε. At 0 the function is preserved exactly.
        graph_hash: `ChannelGroups.graph_hash` of the graph that the plan was made for.
        parameters_hash: `hash_parameters` of the parameters in ``layouts``.
        scheme: what made the plan, e.g. ``"m4"`` or ``"random"``.
        c: the bound on Σ|w_i| of one channel; None if the scheme has no bound.
        metric: the norm in which ‖δ‖ ≤ 1: ``"euclidean"`` or ``"input"``.
        surrogate: the curvature that stood in for activations without a second derivative, e.g.
            ``"softplus(beta=3)"``; None if every second derivative was exact.
        predicted_change: predicted change of loss of the whole plan at its ε; None without a prediction.
        realised_change: change of loss at its ε, measured on unseen samples; None if it was not measured.
        notes: further facts about how the plan was made, as JSON values.
        module_sizes: the integers of a torch module that follow the widths, beyond those of torch's layers.
        unproved: the groups of queries and keys for which nobody has tried whether a torch module keeps its
            scale. A graph does; a module can compute the scale from their width.
    """

    groups: tuple[GroupSplit, ...]
    layouts: Mapping[str, TensorLayout]
    epsilon: float
    graph_hash: str
    parameters_hash: str
    scheme: str
    c: float | None = None
    metric: str = "euclidean"
    surrogate: str | None = None
    predicted_change: float | None = None
    realised_change: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    module_sizes: tuple[ModuleSize, ...] = ()
    unproved: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [group.group for group in self.groups]
        if len(set(names)) != len(names):
            raise UsageError(f"a plan splits a group twice: {sorted(names)}")
        if not np.isfinite(self.epsilon) or self.epsilon < 0:
            raise UsageError(f"epsilon must be finite and not negative, not {self.epsilon}")
        if self.c is not None and self.c < 1:
            raise UsageError(f"c bounds the sum of |w_i| and is at least 1, not {self.c}")
        for group in self.groups:
            for name, displacement in group.displacements.items():
                layout = self.layouts.get(name)
                if layout is None or not 0 <= displacement.axis < len(layout.axes):
                    raise UsageError(f"group {group.group!r} displaces {name!r}, whose layout the plan lacks")

    def __repr__(self) -> str:
        shown = [f"{g.group} {g.width} → {g.grown_width}" for g in self.groups[:_SHOWN]]
        if len(self.groups) > _SHOWN:
            shown.append(f"{len(self.groups) - _SHOWN} more")
        return f"SplitPlan({self._told()}: {', '.join(shown) or 'no groups'})"

    def _told(self) -> str:
        changes = {"predicted": self.predicted_change, "realised": self.realised_change}
        told = "".join(f", {what} change {c:.3g}" for what, c in changes.items() if c is not None)
        return f"{self.scheme}, ε = {self.epsilon:g}{told}"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html_table(
            f"split plan: {self._told()}",
            ("group", "width", "grown width", "predicted change"),
            [(g.group, g.width, g.grown_width, g.change) for g in self.groups],
        )

    @property
    def offspring(self) -> dict[str, Offspring]:
        return {group.group: group.offspring for group in self.groups}

    @property
    def widths(self) -> dict[str, int]:
        """The grown width of every group that splits."""
        return {group.group: group.grown_width for group in self.groups}

    @property
    def added_channels(self) -> int:
        return sum(group.grown_width - group.width for group in self.groups)

    def with_epsilon(self, epsilon: float) -> SplitPlan:
        """The same plan at another ε. Predictions scale with ε²; a measured change is dropped."""
        scale = (epsilon / self.epsilon) ** 2 if self.epsilon else None

        def scaled(change: float | None) -> float | None:
            if change is None:
                return None
            if epsilon == 0.0:
                return 0.0
            return None if scale is None else change * scale

        return replace(
            self,
            epsilon=epsilon,
            groups=tuple(replace(g, predicted_change=scaled(g.predicted_change)) for g in self.groups),
            predicted_change=scaled(self.predicted_change),
            realised_change=self.realised_change if epsilon == self.epsilon else None,
        )

    def grow_parameter(self, name: str, array: AnyArray) -> AnyArray:
        """The grown parameter. A parameter that the plan does not touch is returned as it is."""
        layout = self.layouts.get(name)
        if layout is None:
            return array
        displacements = {g.group: g.displacements[name] for g in self.groups if name in g.displacements}
        return grow_tensor(array, layout, self.offspring, displacements, self.epsilon)

    def check_belongs(self, read: Callable[[str], AnyArray], where: str) -> None:
        """Refuse a model that the plan was not made for.

        Args:
            read: gives the parameter of a name; raises KeyError if the model has no such parameter.
            where: the name of the model, for the message.

        Raises:
            UsageError: a parameter is missing, has another shape, or has other values.
        """
        for name, layout in self.layouts.items():
            try:
                shape = read(name).shape
            except KeyError:
                raise UsageError(f"the plan was not made for {where}: it has no parameter {name!r}") from None
            if tuple(shape) != layout.shape:
                raise UsageError(
                    f"the plan was not made for {where}: {name!r} is {tuple(shape)}, not {layout.shape}"
                )
        if hash_parameters(self.layouts, read) != self.parameters_hash:
            raise UsageError(
                f"the plan was not made for {where}: parameter values differ; analyse that model again"
            )

    @property
    def content_hash(self) -> str:
        """SHA-256 of everything the plan says."""
        document, tensors = self._serialise()
        digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
        digest.update(hash_contents(tensors, tensors.__getitem__).encode())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as the folder ``path``, whole or not at all. A plan that is there is replaced.

        Raises:
            UsageError: ``path`` is a file, a link or the working folder, or holds files that no plan wrote.
            OSError: the disk is full, read-only or otherwise not writable.
        """
        target = check_folder_target(path, plan_files)
        document, tensors = self._serialise()
        target.parent.mkdir(parents=True, exist_ok=True)
        with publish_folder(target, plan_files) as folder:
            try:
                save_file(tensors, folder / TENSORS)
            except SafetensorError as error:  # safetensors reports a full disk in this way
                raise MissingEnvironment(f"{target} cannot be written: {error}") from error
            (folder / DOCUMENT).write_text(json.dumps(document, indent=1) + "\n")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> SplitPlan:
        """Read a plan that `save` wrote.

        Raises:
            UsageError: there is no plan at ``path``, or it is damaged or of another format version.
        """
        folder = Path(path)
        with reading("the plan", folder):
            try:
                document = read_json(folder / DOCUMENT, "the plan", inside=folder)
                tensors = read_tensors(folder / TENSORS, "the plan", inside=folder)
            except MissingFile:
                raise UsageError(f"there is no plan at {folder}: expected {DOCUMENT} and {TENSORS}") from None
            version = document.get("format_version") if isinstance(document, dict) else None
            if version != FORMAT_VERSION:
                raise UsageError(f"it has format version {version!r}; this is {FORMAT_VERSION}")
            return _deserialise(validated(PlanDocument, document), tensors)

    def _serialise(self) -> tuple[dict[str, Any], dict[str, AnyArray]]:
        tensors: dict[str, AnyArray] = {}
        groups = []
        for group in self.groups:
            tensors[f"{group.group}/source"] = group.source
            tensors[f"{group.group}/coefficient"] = group.coefficient
            for name, displacement in group.displacements.items():
                tensors[f"{group.group}/channels/{name}"] = displacement.channels
                tensors[f"{group.group}/values/{name}"] = displacement.values
            groups.append(
                {
                    "group": group.group,
                    "width": group.width,
                    "grown_width": group.grown_width,
                    "displaced": {name: d.axis for name, d in group.displacements.items()},
                    "predicted_change": group.predicted_change,
                    "evenly": group.evenly,
                }
            )
        dims = [axis.dim for layout in self.layouts.values() for axis in layout.axes]
        dims += [dim for size in self.module_sizes for dim in (size.dim, *size.equals)]
        widths = {atom.name: atom.size for dim in dims for atom in atoms_of(dim)}
        document = {
            "format_version": FORMAT_VERSION,
            "scheme": self.scheme,
            "c": self.c,
            "metric": self.metric,
            "surrogate": self.surrogate,
            "epsilon": self.epsilon,
            "predicted_change": self.predicted_change,
            "realised_change": self.realised_change,
            "graph_hash": self.graph_hash,
            "parameters_hash": self.parameters_hash,
            "groups": groups,
            "widths": widths,
            "layouts": {
                name: [{"dim": dim_to_json(axis.dim), "role": axis.role} for axis in layout.axes]
                for name, layout in self.layouts.items()
            },
            "notes": dict(self.notes),
        }
        offsets = {name: layout.offset for name, layout in self.layouts.items() if layout.offset}
        if offsets:
            document["offsets"] = offsets
        if self.unproved:
            document["unproved"] = list(self.unproved)
        if self.module_sizes:
            document["module_sizes"] = [size.to_json() for size in self.module_sizes]
        return document, {name: np.ascontiguousarray(array) for name, array in tensors.items()}


def _deserialise(document: PlanDocument, tensors: Mapping[str, AnyArray]) -> SplitPlan:
    def tensor(name: str, kind: type[np.generic]) -> AnyArray:
        if name not in tensors or not np.issubdtype(tensors[name].dtype, kind):
            raise UsageError(f"it has no tensor {name!r} of type {kind.__name__}")
        if kind is np.floating and not np.isfinite(tensors[name]).all():
            raise UsageError(f"its tensor {name!r} holds numbers that are not finite")
        return tensors[name]

    for entry in document.groups:
        if len(tensor(f"{entry.group}/source", np.int64)) != entry.grown_width:
            raise UsageError(f"group {entry.group!r} does not grow to its {entry.grown_width} channels")
    own = {"format_version", "groups", "layouts", "offsets", "widths", "module_sizes", "unproved"}
    facts = document.model_dump(exclude=own)
    return SplitPlan(
        groups=tuple(
            GroupSplit(
                group=entry.group,
                width=entry.width,
                source=tensor(f"{entry.group}/source", np.int64),
                coefficient=tensor(f"{entry.group}/coefficient", np.floating),
                displacements={
                    name: Displacement(
                        axis,
                        tensor(f"{entry.group}/channels/{name}", np.int64),
                        tensor(f"{entry.group}/values/{name}", np.floating),
                    )
                    for name, axis in entry.displaced.items()
                },
                predicted_change=entry.predicted_change,
                evenly=entry.evenly,
            )
            for entry in document.groups
        ),
        layouts={
            name: TensorLayout(
                tuple(AxisLayout(dim_from_json(a.dim, document.widths), a.role) for a in axes),
                document.offsets.get(name, 0.0),
            )
            for name, axes in document.layouts.items()
        },
        module_sizes=tuple(
            ModuleSize(
                s.module,
                s.attribute,
                dim_from_json(s.dim, document.widths),
                s.times,
                tuple(dim_from_json(dim, document.widths) for dim in s.equals),
            )
            for s in document.module_sizes
        ),
        unproved=tuple(document.unproved),
        **facts,
    )
