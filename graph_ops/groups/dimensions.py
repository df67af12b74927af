"""The immutable dimensions of solved axes."""

from __future__ import annotations

from collections.abc import Mapping

from growpipe.graph_ops.axes.axis import Axis, root
from growpipe.graph_ops.axes.dims import Atom, Concat, Dim, Fixed, Product

__all__ = ["Dimensions"]


class Dimensions:
    """The dimension of a solved axis; what no splittable group owns is `Fixed`.

    Args:
        atoms: by leaf the name of its channel group.
    """

    def __init__(self, atoms: Mapping[Axis, str]) -> None:
        self._atoms = atoms
        self._known: dict[Axis, Dim] = {}

    def __call__(self, axis: Axis) -> Dim:
        # Without recursion: concatenations of concatenations can be thousands deep.
        stack = [root(axis)]
        while stack:
            top = stack[-1]
            missing = [child for child in map(root, top.children) if child not in self._known]
            if top not in self._known and missing and top.kind != "leaf":
                stack.extend(missing)
                continue
            stack.pop()
            if top not in self._known:
                self._known[top] = self._leaf(top) if top.kind == "leaf" else self._compound(top)
        return self._known[root(axis)]

    def _leaf(self, axis: Axis) -> Dim:
        size = 1 if axis.size is None else axis.size
        return Atom(self._atoms[axis], size) if axis in self._atoms else Fixed(size)

    def _compound(self, axis: Axis) -> Dim:
        simple: list[Dim] = []
        for child in axis.children:
            dim = self._known[root(child)]
            nested: tuple[Dim, ...] = (dim,)
            if axis.kind == "product" and isinstance(dim, Product):
                nested = dim.factors
            elif axis.kind == "concat" and isinstance(dim, Concat):
                nested = dim.parts
            for part in nested:
                last = simple[-1] if simple else None
                if isinstance(part, Fixed) and isinstance(last, Fixed):
                    size = last.size * part.size if axis.kind == "product" else last.size + part.size
                    simple[-1] = Fixed(size)
                elif not (isinstance(part, Fixed) and part.size == (1 if axis.kind == "product" else 0)):
                    simple.append(part)
        if not simple:
            return Fixed(1 if axis.kind == "product" else 0)
        if len(simple) == 1:
            return simple[0]
        return Product(tuple(simple)) if axis.kind == "product" else Concat(tuple(simple))
