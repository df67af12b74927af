"""The splitting matrices of a network as a SciPy linear operator, for use outside an analysis."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from growpipe.analyser.curvature.operator import SplittingProducts
from growpipe.analyser.options import AnalysisOptions, GrowthOptions, SpectraOptions
from growpipe.analyser.preparation import device_of, prepare
from growpipe.analyser.program.precision import own_settings
from growpipe.analyser.resources import default_memory
from growpipe.analyser.samples import check_mean_loss, collect
from growpipe.data.loader_items import as_tuple
from growpipe.graph_ops.arrays import FloatArray
from growpipe.graph_ops.errors import UsageError
from growpipe.suggestions import did_you_mean
from growpipe.torch_module.export import GrowthExport
from growpipe.torch_module.outputs import LossFunction, to_numpy

__all__ = ["SplittingOperator"]


class SplittingOperator(LinearOperator):
    """``S = ∇²_θθ Σ_e ⟨g_e, e(θ; x)⟩`` of every channel of every splittable group, as one symmetric operator.

    S is block diagonal: one block [d, d] per channel, channel after channel, group after group. A vector has
    ``n = Σ width · d`` entries in this order; `split` and `join` turn it into arrays [width, d] by group and
    back. The displaced entries θ of a channel are those of its producers' weights, or what ``displace`` of
    `GrowthOptions` says. For a neuron ``σ(θ, x)`` S is ``E[Φ'(σ) ∇²_θθ σ(θ, x)]`` (arXiv 1910.02366 and
    2003.10392, the definition of the splitting matrix).

    The parameters are copied: S stays what it is while the model trains on.

    Attributes:
        shapes: by group (width, d), in the order of the entries.

    Args:
        model: the module. It is taken in evaluation mode and not changed.
        loss_fn: ``loss_fn(output, target)``, the mean loss over the samples of a batch.
        batches: gives ``(inputs, target)`` pairs. S is that of the mean loss over their samples, the first
            ``max_samples`` of `SpectraOptions`.
        example_inputs: positional inputs of ``model`` as a tuple, a single input, or a `GrowthExport` of it.
        growth: what is displaced, frozen, and the curvature of kinked activations.
        spectra: samples, memory and device.
        options: single options of both by name.

    Raises:
        UsageError: a wrong option, too few samples, or a model that cannot be exported.
        NothingToSplit: no group is splittable.
        CheckFailed: the loss or a gradient is not finite.

    Example:
        >>> import torch
        >>> from scipy.sparse.linalg import eigsh
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
        >>> x, y = torch.randn(64, 4), torch.randint(0, 2, (64,))
        >>> S = SplittingOperator(model, torch.nn.functional.cross_entropy, [(x, y)], (x[:2],))
        >>> S.shapes
        {'0.weight': (3, 4)}
        >>> (S @ torch.ones(12).numpy()).shape
        (12,)
        >>> S.channel("0.weight", 1).shape
        (4, 4)
        >>> lowest, direction = eigsh(S.channel("0.weight", 1), k=1, which="SA")
    """

    shapes: dict[str, tuple[int, int]]

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Iterable[Any],
        example_inputs: Any,
        *,
        growth: GrowthOptions | None = None,
        spectra: SpectraOptions | None = None,
        **options: Any,
    ) -> None:
        chosen = AnalysisOptions.of(growth, spectra, None, options)
        device = device_of(model, chosen.spectra.device)
        model = copy.deepcopy(model).eval()
        inputs = example_inputs if isinstance(example_inputs, GrowthExport) else as_tuple(example_inputs)
        with own_settings():
            prepared = prepare(model, inputs, chosen.growth, device)
            data, _ = collect(
                batches,
                max_samples=chosen.spectra.max_samples,
                micro_batch=chosen.spectra.micro_batch,
                device=device,
                dtype=prepared.dtype,
            )
            program, limit = prepared.program.with_whole_kernels(), chosen.spectra.memory_limit
            check_mean_loss(lambda x, y: program.loss(x, y, loss_fn), data[0])
            limit = default_memory(program, data[0].inputs, device) if limit is None else limit
            self._products = SplittingProducts(program, limit)
            for batch in data:
                self._products.add(batch.inputs, batch.target, loss_fn)
        self.shapes = {group.name: (group.width, group.dimension) for group in program.groups}
        total = sum(width * d for width, d in self.shapes.values())
        super().__init__(dtype=to_numpy(torch.empty(0, dtype=prepared.dtype)).dtype, shape=(total, total))

    def split(self, vectors: FloatArray) -> dict[str, FloatArray]:
        """By group [width, d] of one vector [n], or [k, width, d] of the columns of [n, k]."""
        parts, start = {}, 0
        for name, (width, d) in self.shapes.items():
            rows = vectors[start : start + width * d]
            parts[name] = rows.reshape(width, d) if rows.ndim == 1 else rows.T.reshape(-1, width, d)
            start += width * d
        return parts

    def join(self, parts: Mapping[str, FloatArray]) -> FloatArray:
        """The inverse of `split`."""
        rows = [parts[name].reshape(*parts[name].shape[:-2], -1).T for name in self.shapes]
        return np.concatenate(rows)

    def group(self, name: str) -> LinearOperator:
        """S of one group's channels, [width · d, width · d]; other groups cost nothing.

        Raises:
            UsageError: there is no splittable group of this name.
        """
        width, d = self._shape(name)
        return self._linear(
            width * d, lambda columns: self._apply({name: columns.T.reshape(-1, width, d)})[name]
        )

    def channel(self, name: str, channel: int) -> LinearOperator:
        """S of one channel, [d, d].

        Raises:
            UsageError: there is no splittable group of this name, or no such channel in it.
        """
        width, d = self._shape(name)
        if not 0 <= channel < width:
            raise UsageError(f"group {name!r} has the channels 0 to {width - 1}, and no channel {channel}")

        def products(columns: FloatArray) -> FloatArray:
            vectors = np.zeros((columns.shape[1], width, d), dtype=self.dtype)
            vectors[:, channel] = columns.T
            return self._apply({name: vectors})[name][:, channel : channel + 1]

        return self._linear(d, products)

    def matrices(self, name: str) -> FloatArray:
        """S of every channel of a group, dense: [width, d, d], from d products.

        Raises:
            UsageError: there is no splittable group of this name.
        """
        width, d = self._shape(name)
        units = np.broadcast_to(np.eye(d, dtype=self.dtype)[:, None], (d, width, d))
        return np.moveaxis(self._apply({name: units})[name], 0, 2)

    def _shape(self, name: str) -> tuple[int, int]:
        if name not in self.shapes:
            raise UsageError(f"there is no splittable group {name!r}{did_you_mean(name, self.shapes)}")
        return self.shapes[name]

    def _linear(self, size: int, products: Callable[[FloatArray], FloatArray]) -> LinearOperator:
        """An operator from products of columns [size, k] to blocks [k, …]."""

        def apply(columns: FloatArray) -> FloatArray:
            return products(columns.reshape(size, -1)).reshape(-1, size).T

        return LinearOperator(
            (size, size), dtype=self.dtype, matmat=apply, rmatmat=apply,
            matvec=lambda v: apply(v)[:, 0], rmatvec=lambda v: apply(v)[:, 0],
        )  # fmt: skip

    def _apply(self, blocks: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """S·v of some groups: [k, width, d] to the same."""
        positions = {name: position for position, name in enumerate(self.shapes)}
        vectors: dict[int, Tensor] = {
            positions[name]: torch.from_numpy(np.array(block, dtype=self.dtype)).to(self._products.device)
            for name, block in blocks.items()
        }
        with own_settings():
            whole, _ = self._products.apply_halves(vectors)
        return {name: whole[positions[name]].cpu().numpy() for name in blocks}

    def _matmat(self, columns: FloatArray) -> FloatArray:
        return self.join(self._apply(self.split(columns.reshape(self.shape[0], -1))))

    def _matvec(self, vector: FloatArray) -> FloatArray:
        return self._matmat(vector.reshape(-1, 1))[:, 0]

    def _adjoint(self) -> SplittingOperator:
        return self
