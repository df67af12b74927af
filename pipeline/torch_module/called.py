"""A module that is called in another way for a while: by position, with another output."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

__all__ = ["called_as"]


@contextlib.contextmanager
def called_as(
    model: nn.Module, names: Sequence[str], call: Callable[[Callable[..., Any], dict[str, Any]], Any]
) -> Iterator[None]:
    """Let ``model(*values)`` do what ``call`` says while the block runs.

    Deep copies that are made inside are called in the same way. A ``forward`` that a trainer has put on the
    instance (for autocast) takes no part.

    Args:
        model: changed for a while; parameters and buffers keep their names.
        names: of the values, in order.
        call: gets the module's own ``forward``, bound, and the values by name; gives the output.
    """
    kind, instances = type(model), model.__dict__.pop("forward", None)

    def forward(self: nn.Module, *values: Any) -> Any:
        return call(kind.forward.__get__(self), dict(zip(names, values, strict=True)))

    # torch.export names the inputs of a graph after the parameters of forward.
    parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("self", *names)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    model.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    try:
        yield
    finally:
        model.__class__ = kind
        if instances is not None:
            model.__dict__["forward"] = instances
