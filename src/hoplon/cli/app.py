"""The ``hoplon`` command and what it makes of errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from functools import cache

import typer

from hoplon.cli.console import print_status, warnings_on_one_line
from hoplon.cli.signals import stoppable
from hoplon.errors import DataError, HoplonError, StoreError

USAGE, ENVIRONMENT, INTERRUPTED, UNREAD = 2, 4, 130, 141
_NOTHING_KEPT = "Interrupted. Nothing new was kept; give the same command again."


@cache
def application() -> typer.Typer:
    """Put the commands together, with options for the components of all installed packages.

    Raises:
        HoplonError: components of another package that cannot be imported.
    """
    from hoplon.cli.commands import (
        compare,
        demo,
        harden,
        inject,
        inspect,
        ls,
        overhead,
        profile,
        rank,
        replay,
        report,
        study,
        validate,
        verify,
    )

    app = typer.Typer(
        name="hoplon",
        help="What soft errors do to a trained network, where it is vulnerable, and what hardens it at which price.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for module in (
        demo,
        inspect,
        profile,
        rank,
        inject,
        replay,
        harden,
        compare,
        overhead,
        report,
        study,
        ls,
        validate,
        verify,
    ):
        app.command(module.__name__.rpartition(".")[2])(module.command)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status comes back.

    0: done or passed · 1: a gate failed · 2: usage, one line on stderr says what and the way out · 3: undecided ·
    4: data or environment, likewise: missing or unfit data, damaged runs, folders that cannot be written ·
    128 + the number of a signal, likewise: 130 interrupted (Ctrl-C, SIGINT), 143 SIGTERM, 129 SIGHUP, which all stop a
    command in the same way; 141 in silence, where nobody reads its output any more.

    Args:
        arguments: of the command; None: those of this process, which ends after it.
    """
    with stoppable(for_good=arguments is None) as stopped_by, warnings_on_one_line():
        try:
            status = _run(None if arguments is None else list(arguments), stopped_by)
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError as error:
            status = _failed(error)
        except Exception:
            if not stopped_by:
                raise
            status = _interrupted()
    return 128 + stopped_by[0] if stopped_by and status == INTERRUPTED else status


def _run(arguments: list[str] | None, stopped_by: list[int]) -> int:
    try:
        application()(args=arguments, prog_name="hoplon")
    except HoplonError as error:
        if stopped_by:
            return _interrupted()
        print_status(f"hoplon: {error}")
        return ENVIRONMENT if isinstance(error, DataError | StoreError) else USAGE
    except KeyboardInterrupt as stop:
        print_status(str(stop) or _NOTHING_KEPT)
        return INTERRUPTED
    except SystemExit as done:  # typer ends every command this way
        for cause in _causes(done):
            if isinstance(cause, KeyboardInterrupt):
                print_status(str(cause) or _NOTHING_KEPT)
                return INTERRUPTED
            if isinstance(cause, BrokenPipeError):
                return UNREAD
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0


def _interrupted() -> int:
    """Say that an interrupt ends a command, where it came out as another error, as it does in the middle of imports."""
    print_status("Interrupted. Give the same command again, with --resume where there is a run.")
    return INTERRUPTED


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _failed(error: OSError) -> int:
    """Say in one line what the system did not give, if anybody reads what is printed."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
    if isinstance(error, BrokenPipeError):
        return UNREAD
    print_status(
        f"hoplon: expected files and memory as the command needs them, got {error}; see to that, and try again"
    )
    return ENVIRONMENT


if __name__ == "__main__":
    sys.exit(main())
