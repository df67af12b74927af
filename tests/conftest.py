"""What makes all tests faster and changes none of them."""

from __future__ import annotations

import functools
import gc
import sys

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Called once per worker, when every test module is imported and no test has run."""
    if "torch" in sys.modules:
        _parse_the_operator_library_once()
    # Modules and tests stay until the end: no collection has to walk them again.
    gc.collect()
    gc.freeze()


def _parse_the_operator_library_once() -> None:
    """torch's exporter parses the source of its 500 operators at every export: a third of a small one."""
    from torch.onnx._internal.exporter import _registration

    apis = _registration.onnxscript_apis
    apis.get_torchlib_ops = functools.cache(apis.get_torchlib_ops)
