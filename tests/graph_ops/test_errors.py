"""What every error of growpipe has in common."""

from __future__ import annotations

import pytest

from growpipe.graph_ops.errors import CheckFailed, MissingEnvironment, UnsafeModel, UsageError


@pytest.mark.parametrize("kind", [CheckFailed, MissingEnvironment, UnsafeModel, UsageError])
def test_a_message_that_quotes_a_long_name_keeps_its_beginning_and_its_end(kind):
    message = str(kind(f"unknown key 'a.{'9' * 100_000}'; remove it"))
    assert len(message) <= 2000
    assert message.startswith("unknown key 'a.999")
    assert message.endswith("999'; remove it")


def test_a_message_of_usual_length_is_whole():
    message = "x" * 2000
    assert str(UsageError(message)) == message
