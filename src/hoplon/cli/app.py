"""The ``hoplon`` command and what it makes of errors."""

from __future__ import annotations

import ast
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from hoplon.cli.console import print_status, warnings_on_one_line
from hoplon.cli.signals import stoppable
from hoplon.errors import DataError, HoplonError, StoreError, UserCodeError, failure_of

USAGE, ENVIRONMENT, BUG, INTERRUPTED, UNREAD = 2, 4, 70, 130, 141
_DEBUG = "--debug"
_COMMANDS = (
    *("demo", "inspect", "profile", "rank", "inject", "replay", "harden", "compare", "overhead", "report", "study"),
    *("fit", "gate", "evidence", "ls", "validate", "verify"),
)
_NOTHING_KEPT = "Interrupted. Nothing new was kept; give the same command again."


class _Later(TyperCommand):
    """A command by its name and help alone, as a list of commands shows it; called, it becomes the command itself."""

    def __init__(self, name: str) -> None:
        source = Path(__file__).with_name("commands") / f"{name}.py"
        parts = {part.name: part for part in ast.parse(source.read_bytes()).body if isinstance(part, ast.FunctionDef)}
        super().__init__(name, help=ast.get_docstring(parts["command"]))

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> Any:
        """The context of the command, with options for the components of all installed packages.

        Raises:
            HoplonError: components of another package that cannot be imported.
        """
        from hoplon.cli.options.command_line import checked_options

        one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        command = import_module(f"hoplon.cli.commands.{self.name}").command
        one.command(self.name)(checked_options(command))
        return typer.main.get_command(one).make_context(info_name, args, *more, **extra)


class _Commands(TyperGroup):
    """All commands, none of which is loaded before it is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": dict.fromkeys(_COMMANDS)})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of them, looked at now; None where there is no such command."""
        return _Later(cmd_name) if cmd_name in self.commands else None


def application() -> typer.Typer:
    """The application, with all commands."""
    app = typer.Typer(
        name="hoplon",
        cls=_Commands,
        help="What soft errors do to a trained network, where it is vulnerable, and what hardens it at which price.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def everywhere(
        debug: Annotated[bool, typer.Option(_DEBUG, help="Show the whole traceback of an error too.")] = False,
    ) -> None:
        """What soft errors do to a trained network, where it is vulnerable, and what hardens it at which price."""

    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status comes back.

    0: done or passed · 1: a gate failed · 2: usage, one line on stderr says what and the way out · 3: undecided ·
    4: data or environment, likewise: missing or unfit data, damaged runs, folders that cannot be written, a full disk
    or memory, a factory of the user's that fails · 70: a bug of hoplon · 128 + the number of a signal, likewise: 130
    interrupted (Ctrl-C, SIGINT), 143 SIGTERM, 129 SIGHUP, which all stop a command in the same way; 141 in silence,
    where nobody reads its output any more.

    With ``--debug``, anywhere on the line, the traceback of every error comes before its line.

    Args:
        arguments: of the command; None: those of this process, which ends after it.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if arguments is None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # what a terminal has no sign for
    with stoppable(for_good=arguments is None) as stopped_by, warnings_on_one_line():
        try:
            status = _run([one for one in given if one != _DEBUG])
            if sys.stdout is not None:
                sys.stdout.flush()
        except BaseException as error:  # noqa: BLE001 -- all are said; panics of polars are no Exceptions
            if _DEBUG in given:
                traceback.print_exception(error)
            status = _interrupted() if stopped_by and isinstance(error, Exception) else _said(error)
    return 128 + stopped_by[0] if stopped_by and status == INTERRUPTED else status


def _run(arguments: list[str]) -> int:
    try:
        application()(args=arguments, prog_name="hoplon")
    except SystemExit as done:  # typer ends every command this way
        for cause in _causes(done):
            if isinstance(cause, KeyboardInterrupt | BrokenPipeError):
                raise cause from None
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0


def _said(error: BaseException) -> int:
    """Say on stderr what went wrong, and return the exit status for it."""
    if isinstance(error, KeyboardInterrupt):
        print_status(str(error) or _NOTHING_KEPT)
        return INTERRUPTED
    if isinstance(error, HoplonError):
        for line in f"hoplon: {error}".split("\n"):
            print_status(line)
        return ENVIRONMENT if isinstance(error, DataError | StoreError | UserCodeError) else USAGE
    if isinstance(error, OSError | MemoryError):
        return _failed(error)
    print_status(
        f"hoplon: a bug of hoplon, {failure_of(error)}; hoplon --debug shows all of it: please report it with that"
    )
    return BUG


def _interrupted() -> int:
    """Say that an interrupt ends a command, where it came out as another error, as it does in the middle of imports."""
    print_status("Interrupted. Give the same command again, with --resume where there is a run.")
    return INTERRUPTED


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _failed(error: OSError | MemoryError) -> int:
    """Say in one line what the system did not give, if anybody reads what is printed."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
    if isinstance(error, BrokenPipeError):
        return UNREAD
    print_status(
        f"hoplon: expected files and memory as the command needs them, got {str(error) or 'no more memory'}; see to "
        "that, and try again"
    )
    return ENVIRONMENT


if __name__ == "__main__":
    sys.exit(main())
