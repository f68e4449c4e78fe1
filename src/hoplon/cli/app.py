"""The ``hoplon`` command and what it makes of errors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache

import typer

from hoplon.cli.console import print_status, warnings_on_one_line
from hoplon.errors import DataError, HoplonError, StoreError

USAGE, ENVIRONMENT, INTERRUPTED = 2, 4, 130


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
    130: interrupted.
    """
    try:
        with warnings_on_one_line():
            application()(args=None if arguments is None else list(arguments), prog_name="hoplon")
    except HoplonError as error:
        print_status(f"hoplon: {error}")
        return ENVIRONMENT if isinstance(error, DataError | StoreError) else USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as done:  # typer ends every command this way
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
