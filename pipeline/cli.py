"""The ``growpipe`` command: finds the command asked for, and turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from growpipe.environment import is_follower
from growpipe.graph_ops.errors import GrowpipeError
from growpipe.printing import one_line
from growpipe.signals import Stopped, stoppable

SECTIONS = {
    "Commands for an ONNX file": {
        "inspect": "growpipe.commands.inspect:inspect",
        "plan": "growpipe.commands.plan:plan",
        "grow": "growpipe.commands.grow:grow",
        "diff": "growpipe.commands.diff:diff",
        "check": "growpipe.commands.check:check",
        "deploy": "growpipe.commands.deploy:deploy",
    },
    "Commands for a run directory": {
        "run": "growpipe.commands.run:run",
        "train": "growpipe.commands.stage_commands:train",
        "export": "growpipe.commands.stage_commands:export",
        "analyse": "growpipe.commands.stage_commands:analyse",
        "rewrite": "growpipe.commands.stage_commands:rewrite",
        "check-round": "growpipe.commands.stage_commands:check_round",
        "report": "growpipe.commands.stage_commands:report",
    },
}
"""Heading, command, and the place of the command's function; in the order of the help text.

The module of a command is imported when the command is asked for. It declares options, and imports onnx,
torch and the rest of growpipe inside the function: help and usage errors need none of them.
"""

COMMANDS = {name: place for section in SECTIONS.values() for name, place in section.items()}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        limit = formatter.width - 6 - max(map(len, COMMANDS))
        for heading, names in SECTIONS.items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(heading):
                formatter.write_dl([(n, c.get_short_help_str(limit)) for n, c in commands if c is not None])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="growpipe")
def cli() -> None:
    """Grow neural networks into deployable ONNX models by signed neuron splitting.

    Exit codes: 0 done or passed, 1 a check failed, 2 usage, 3 environment or provider missing,
    4 unsafe or unreadable model, 5 inconclusive measurement.
    """


def main(args: list[str] | None = None) -> Any:
    """The entry point: runs `cli`, prints a `GrowpipeError` as one line and exits with its code.

    Under ``torchrun`` only one process prints the error: the one that failed first (see
    `growpipe.parallel.distributed.launched`), or rank 0 if all fail identically before the process group
    exists.
    """
    try:
        with stoppable():
            code = cli.main(args=args, standalone_mode=False)
    except Stopped as stop:
        _say(str(stop), stop)
        sys.exit(stop.exit_code)
    except click.exceptions.Abort as error:
        _say("stopped", error)
        sys.exit(130)
    except click.ClickException as error:
        if not is_follower():
            error.message = one_line(error.message)  # type: ignore[misc]  # it names what was typed
            error.show()
        sys.exit(error.exit_code)
    except GrowpipeError as error:
        _say(str(error), error)
        sys.exit(error.exit_code)
    except OSError as error:
        # A full disk, a missing permission: the user's to mend, and no artifact is half-written.
        place = f": {error.filename}" if error.filename else ""
        _say(f"{error.strerror or error}{place}", error)
        sys.exit(3)
    sys.exit(code if isinstance(code, int) else 0)


def _say(message: str, error: BaseException) -> None:
    """One line on stderr; a follower speaks only where the error is noted to be its own."""
    notes = getattr(error, "__notes__", [])
    if notes or not is_follower():
        click.echo(one_line(f"growpipe: {message}" + "".join(f" ({note})" for note in notes)), err=True)
