"""A module that is called by position, and gives what its caller wants: for a while, or for good."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

__all__ = ["called_as", "take_positions"]

Call = Callable[[Callable[..., Any], dict[str, Any]], Any]
"""Gets a module's own ``forward``, bound, and the values by name; gives the output."""


def take_positions(model: nn.Module, names: Sequence[str]) -> None:
    """Let ``model(*values)`` do what ``model(**{name: value})`` did, in place.

    Batches that are dicts have names, and the rest of growpipe gives positions.

    Args:
        model: gets a subclass of its class, of the same name. Parameters and buffers keep their names.
        names: the arguments of ``forward``, in the order of the values.
    """
    model.__class__ = _positional(type(model), names, lambda forward, values: forward(**values))


@contextlib.contextmanager
def called_as(model: nn.Module, names: Sequence[str], call: Call) -> Iterator[None]:
    """Let ``model(*values)`` do what ``call`` says while the block runs.

    Deep copies that are made inside are called in the same way. A ``forward`` that a trainer has put on the
    instance (for autocast) takes no part.

    Args:
        model: changed for a while; parameters and buffers keep their names.
        names: of the values, in order.
        call: see `Call`.
    """
    kind, of_trainer = type(model), model.__dict__.pop("forward", None)
    model.__class__ = _positional(kind, names, call)
    try:
        yield
    finally:
        model.__class__ = kind
        if of_trainer is not None:
            model.__dict__["forward"] = of_trainer


def _positional(kind: type[nn.Module], names: Sequence[str], call: Call) -> type[nn.Module]:
    """A subclass of the same name whose ``forward`` takes the values by position."""

    def forward(self: nn.Module, *values: Any) -> Any:
        return call(kind.forward.__get__(self), dict(zip(names, values, strict=True)))

    # torch.export names the inputs of a graph after the parameters of forward.
    parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("self", *names)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
