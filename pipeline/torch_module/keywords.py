"""Networks whose batches are dicts: their forward takes names, and the rest of growpipe gives positions."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

__all__ = ["take_positions"]


def take_positions(model: nn.Module, names: Sequence[str]) -> None:
    """Let ``model(*values)`` do what ``model(**{name: value})`` did, in place.

    Args:
        model: gets a subclass of its class, of the same name, whose ``forward`` takes the values in order.
            Parameters and buffers keep their names.
        names: the arguments of ``forward``, in the order of the values.
    """
    kind = type(model)

    def forward(self: nn.Module, *values: Any) -> Any:
        return kind.forward(self, **dict(zip(names, values, strict=True)))

    # torch.export names the inputs of a graph after the parameters of forward.
    own = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    given = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    forward.__signature__ = inspect.Signature([*own, *given])  # type: ignore[attr-defined]
    model.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
