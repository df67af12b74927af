"""The taps of a kernel that meet the input at all.

On a small map the outer taps of a padded or dilated kernel see nothing but the padding: on a map of one
position, eight of nine taps of a 3 x 3 kernel. Whatever such a tap holds changes no output, so S and Σ are 0
there, and nothing of it needs to be displaced. A convolution with the other taps alone gives the same output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor
from torch.fx import Node

from growpipe.analyser.program.aten import CONVOLUTIONS, per_axis

__all__ = ["KernelWindow", "fixed_sizes", "kernel_windows", "window_of"]


@dataclass(frozen=True, slots=True)
class KernelWindow:
    """A part of a convolution's kernel, and the padding with which it gives the same output.

    Attributes:
        taps: by spatial axis the first tap and the one behind the last.
        padding: by spatial axis.
    """

    taps: tuple[tuple[int, int], ...]
    padding: tuple[int, ...]

    @property
    def kernel(self) -> tuple[int, ...]:
        """The number of taps by spatial axis."""
        return tuple(stop - start for start, stop in self.taps)

    def of(self, filters: Tensor) -> Tensor:
        """The filters within the window, a view of [..., *kernel]."""
        for axis, (start, stop) in enumerate(self.taps, filters.ndim - len(self.taps)):
            filters = filters.narrow(axis, start, stop - start)
        return filters

    def filled(self, filters: Tensor, kernel: Sequence[int]) -> Tensor:
        """Filters of a whole ``kernel``, zero outside the window; the inverse of `of`."""
        whole = filters.new_zeros(*filters.shape[: -len(self.taps)], *kernel)
        self.of(whole).copy_(filters)
        return whole


def kernel_windows(nodes: Iterable[Node], names: Mapping[Node, str]) -> dict[str, KernelWindow]:
    """The windows of the kernels that have taps without input, by name of the weight.

    Args:
        nodes: of the program. The sizes with which it was traced count.
        names: the parameter behind every placeholder that is not a user input.
    """
    users: dict[str, list[tuple[Node, Node]]] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            if source in names:
                users.setdefault(names[source], []).append((node, source))
    found = {}
    for name, uses in users.items():
        windows = {_window(node) if _is_weight(source, node) else None for node, source in uses}
        if len(windows) == 1 and (window := windows.pop()) is not None:
            found[name] = window
    return found


def _is_weight(source: Node, user: Node) -> bool:
    return user.target in CONVOLUTIONS and user.args[1] is source and not user.kwargs


def fixed_sizes(node: Node) -> tuple[int, ...] | None:
    """The lengths of all axes of a value but the first; None if one of them is not fixed."""
    made = node.meta.get("val")
    if not isinstance(made, Tensor) or not all(isinstance(size, int) for size in made.shape[1:]):
        return None
    return tuple(made.shape[1:])


def _window(node: Node) -> KernelWindow | None:
    """The window of a convolution; None if all taps are needed, or the sizes are not fixed."""
    source, weight = node.args[0], node.args[1]
    assert isinstance(source, Node)
    assert isinstance(weight, Node)
    rank, sizes = CONVOLUTIONS[node.target], fixed_sizes(source)
    if sizes is None or len(sizes) != 1 + rank:
        return None
    kernel = tuple(weight.meta["val"].shape[2:])

    # Stride, padding and dilation.
    given = [node.args[k] if len(node.args) > k else default for k, default in ((3, 1), (4, 0), (5, 1))]
    return window_of(sizes[1:], kernel, *(per_axis(value, rank) for value in given))


@cache
def window_of(
    size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> KernelWindow | None:  # fmt: skip
    """The fewest neighbouring taps that give the output of a convolution on a map of a size; None for all.

    Args:
        size: of the map.
        kernel, stride, padding, dilation: of the convolution. As all arguments by spatial axis.
    """
    axes = [_axis(*one) for one in zip(size, kernel, stride, padding, dilation, strict=True)]
    window = KernelWindow(tuple(taps for taps, _ in axes), tuple(padding for _, padding in axes))
    return None if window.kernel == kernel else window


def _axis(size: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[tuple[int, int], int]:
    """The fewest neighbouring taps of one axis that give the same output with some padding, and that."""

    def positions(taps: int, padded: int) -> int:
        return (size + 2 * padded - dilation * (taps - 1) - 1) // stride + 1

    count = positions(kernel, padding)
    places = range(-padding, -padding + stride * count, stride)
    seen = [t for t in range(kernel) if any(0 <= place + t * dilation < size for place in places)]
    if not seen:
        return (0, kernel), padding
    fitting = [
        (stop - start, start, stop, padding - start * dilation)
        for start in range(seen[0] + 1)
        for stop in range(seen[-1] + 1, kernel + 1)
        if padding >= start * dilation and positions(stop - start, padding - start * dilation) == count
    ]
    _, start, stop, padded = min(fitting)
    return (start, stop), padded
