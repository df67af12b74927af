"""Signals that end the command: each unwinds it, so that nothing is half-written and no child stays."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

__all__ = ["Stopped", "stoppable"]

_owner = 0  # the process that is stopped by unwinding
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asks the process to end. Not an `Exception`, so that nothing swallows it.

    Attributes:
        exit_code: 128 and the number of the signal, as shells count.
    """

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}; nothing is half-written; to go on, run the same command again")
        self.exit_code = 128 + number


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within, SIGINT, SIGTERM and SIGHUP raise `Stopped`; a second one ends the process at once.

    A signal that is ignored stays ignored, as ``nohup`` wants it. Outside of the main thread nothing changes.
    """
    global _owner
    _owner = os.getpid()
    ours = (signal.default_int_handler, signal.SIG_DFL)
    before = {}
    try:
        for number in _SIGNALS:
            if signal.getsignal(number) in ours:
                before[number] = signal.signal(number, _stop)
    except ValueError:  # not the main thread
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        if signal.getsignal(each) is _stop:
            signal.signal(each, signal.SIG_DFL)
    if os.getpid() != _owner:  # a loader's process, forked from ours, which only has to end
        os.kill(os.getpid(), number)
    raise Stopped(number)
