"""The errors of growpipe: one base class, one line each, and the exit code the command line gives them."""

from __future__ import annotations

__all__ = [
    "CheckFailed",
    "GrowpipeError",
    "InconclusiveMeasurement",
    "MissingEnvironment",
    "NothingToSplit",
    "UnsafeModel",
    "UsageError",
]

_LONGEST, _BEGINNING, _END = 2000, 1200, 700
"""The characters of a message that are shown, and of a longer one those of its beginning and of its end."""


class GrowpipeError(Exception):
    """What a user can mend. The message is one line: what is wrong, where, and what to do.

    A message that quotes a file's own names may be of any length: its middle is left out beyond 2,000
    characters. ``exit_code`` is the exit code of the command line when the error ends a command.
    """

    exit_code = 1

    def __str__(self) -> str:
        message = super().__str__()
        return message if len(message) <= _LONGEST else f"{message[:_BEGINNING]} … {message[-_END:]}"


class CheckFailed(GrowpipeError):
    """A check of a model, of a plan or of a stage did not hold."""

    exit_code = 1


class UsageError(GrowpipeError):
    """A wrong argument, recipe, policy, plan or piece of user code."""

    exit_code = 2


class NothingToSplit(UsageError):
    """No split lowers the loss, or none fits what may still be spent: growth ends here."""


class MissingEnvironment(GrowpipeError):
    """A package, an extra, a device or an execution provider that is not there."""

    exit_code = 3


class UnsafeModel(GrowpipeError):
    """A model file that cannot be read, or that must not be."""

    exit_code = 4


class InconclusiveMeasurement(GrowpipeError):
    """The machine is too noisy to decide."""

    exit_code = 5
