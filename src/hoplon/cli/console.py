"""Printing and progress: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hoplon.errors import HoplonWarning, StoreError, one_line
from hoplon.report.text_table import TextTable

ProgressCallback = Callable[[str, int, int | None], None]
"""Told a stage, what is done of it, and all there is to do (None: unknown)."""

_LOG_SECONDS = 30.0


def print_status(line: str) -> None:
    """Print one line on stderr; control characters in it are shown, not obeyed."""
    sys.stderr.write(one_line(line) + "\n")
    sys.stderr.flush()


@contextmanager
def warnings_on_one_line() -> Iterator[None]:
    """A scope in which warnings of hoplon are printed without the place in the code that gives them."""
    before = warnings.formatwarning

    def plainly(message: Any, category: type[Warning], *where: Any, **more: Any) -> str:
        own = issubclass(category, HoplonWarning)
        return f"hoplon: {message}\n" if own else before(message, category, *where, **more)

    warnings.formatwarning = plainly
    try:
        yield
    finally:
        warnings.formatwarning = before


def report_training(done: int, total: int, loss: float) -> None:
    """Print the progress of a training that a command has to wait for, once: the weights are kept."""
    print_status(f"training: epoch {done} of {total}, loss {loss:.3g}")


def show(
    document: Mapping[str, Any],
    tables: Sequence[TextTable],
    paragraphs: Sequence[tuple[str, Sequence[str]]] = (),
    *,
    as_json: bool,
) -> None:
    """Print on stdout the document as one JSON object, or else its tables, then titled sentences.

    Raises:
        BrokenPipeError: nobody reads stdout any more.
    """
    if as_json:
        sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")
        return
    console = _Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = _Console(file=sys.stdout, highlight=False, width=150)
    for table in tables:
        console.print(_drawn(table))
        console.print()
    for title, sentences in paragraphs:
        console.print(Text(one_line(title), style="bold"))
        for sentence in sentences:
            console.print(_plain(f"  {sentence}"))
        console.print()


class _Console(Console):
    """A console that leaves it to the command what becomes of a reader that is gone."""

    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704 -- rich calls this where it caught the error


def _drawn(table: TextTable) -> Table:
    """The table with borders; numbers are never wrapped."""
    caption = None if table.caption is None else _plain(table.caption, lines=True)
    drawn = Table(title=_plain(table.title), caption=caption, title_justify="left", caption_justify="left")
    for column in table.columns:
        left = table.is_left(column)
        drawn.add_column(_plain(column), justify="left" if left else "right", no_wrap=not left)
    for cells in table.rows:
        drawn.add_row(*map(_plain, cells))
    return drawn


def _plain(text: str, *, lines: bool = False) -> Text:
    """A text that others may have written: no markup, and control characters shown instead of obeyed."""
    return Text("\n".join(map(one_line, text.split("\n"))) if lines else one_line(text))


class _Rate(ProgressColumn):
    """Finished steps per second."""

    def render(self, task: Task) -> Text:
        """The rate; nothing before it is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s")


@contextmanager
def interruptible(saved: Callable[[], str]) -> Iterator[None]:
    """A scope in which an interrupt, or an environment that fails, says what is saved and how to go on.

    Raises:
        KeyboardInterrupt: with that for the user.
        StoreError: with that at its end.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"Interrupted. Saved: {saved()}") from stop
    except StoreError as error:
        if error.__cause__ is None:  # what was asked for, and nothing that happened
            raise
        raise StoreError(f"{error}. Saved: {saved()}") from error


@contextmanager
def progress_bars() -> Iterator[ProgressCallback]:
    """Show on stderr how far each stage is, at which rate, and the time left.

    Stages whose names are alike up to a comma share a bar.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}
        log = _Log()

        def report_progress(stage: str, done: int, total: int | None) -> None:
            family = stage.partition(",")[0]
            if family not in tasks:  # what a resumed run has already is no work of this one
                tasks[family] = bars.add_task(one_line(stage), total=total, completed=done)
            bars.update(tasks[family], description=f"{one_line(stage):<24}", completed=done, total=total)
            if not console.is_terminal:
                log.report(family, done, total)

        yield report_progress


class _Log:
    """Lines in the place of bars, where nobody watches: one at the start of a stage, then one every half minute."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[float, int]] = {}
        self._last = 0.0

    def report(self, stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if stage not in self._begun:
            self._begun[stage] = now, done
            print_status(f"{stage}: {'total unknown' if total is None else f'{total:,} to do'}")
        elif now - self._last < _LOG_SECONDS:
            return
        else:
            started, before = self._begun[stage]
            rate = (done - before) / max(now - started, 1e-9)
            left = "" if total is None or not rate else f", {duration((total - done) / rate)} left"
            print_status(f"{stage}: {done:,}{'' if total is None else f' of {total:,}'}, {rate:,.0f}/s{left}")
        self._last = now


def duration(seconds: float) -> str:
    """A time in words, to two digits or so.

    Example:
        >>> duration(7.21), duration(150), duration(5400), duration(200_000)
        ('7.2 s', '2.5 min', '1.5 h', '2.3 days')
    """
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size or (unit == "h" and seconds >= size):
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
