"""`torch.compile` for training steps: a wrapper beside the network, never in the place of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn

from growpipe.graph_ops.errors import MissingEnvironment, UsageError

__all__ = ["compiled", "compiler_errors"]


def compiled(model: nn.Module, device: str) -> nn.Module:
    """A compiled view of ``model``; it shares parameters and buffers, and is only to be called.

    What torch remembers of other networks is dropped first: a network that has grown is another one, and
    after a few of the same class torch would silently stop compiling.

    Raises:
        MissingEnvironment: torch finds no working compiler for ``device``.
    """
    torch.compiler.reset()
    with warnings.catch_warnings():
        # torch uses what it has deprecated itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        try:
            torch.compile(_probe)(torch.ones(4, device=device))
        except Exception as error:  # whatever a broken tool chain comes up with
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            need = "a C++ compiler (g++ or clang, or name one in CXX)" if device == "cpu" else "triton"
            raise MissingEnvironment(
                f"train.compile needs {need}, and torch found none that works ({reason}); "
                "install one or set train.compile = false"
            ) from None
        return cast(nn.Module, torch.compile(model))


def _probe(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x) + 1.0


@contextmanager
def compiler_errors(enabled: bool) -> Iterator[None]:
    """Say in one line that the network inside cannot be compiled.

    Raises:
        UsageError: torch's compiler gave up.
    """
    if not enabled:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except (TorchDynamoException, UsageError) as caught:
        # What was raised in the network itself has become one line already.
        error = caught.__cause__ if isinstance(caught, UsageError) else caught
        if not isinstance(error, TorchDynamoException):
            raise
        # The message begins with whose words follow.
        reason = " ".join((str(error).strip() or type(error).__name__).splitlines()[:2])
        raise UsageError(f"the network cannot be compiled: {reason}; set train.compile = false") from error
