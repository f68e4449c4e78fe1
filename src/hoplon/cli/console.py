"""Printing and progress: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

Tell = Callable[[str, int, int], None]


def say(line: str) -> None:
    """One line on stderr, as it is."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def show_json(document: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def show(tables: Sequence[Table], paragraphs: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Tables, then titled sentences, on stdout."""
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=150)
    for table in tables:
        console.print(table)
        console.print()
    for title, sentences in paragraphs:
        console.print(f"[bold]{title}[/bold]")
        for sentence in sentences:
            console.print(f"  {sentence}", markup=False)
        console.print()


class _Rate(ProgressColumn):
    """Finished steps per second."""

    def render(self, task: Task) -> Text:
        """The rate; nothing before it is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s")


@contextmanager
def progress_bars() -> Iterator[Tell]:
    """A scope that shows how far each stage is, at which rate, and the time left, on stderr.

    The callable is told the stage, what is done and what there is in all; a new name of a stage with the same total
    goes on with the same bar.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            family = stage.partition(",")[0]
            if family not in tasks:
                tasks[family] = bars.add_task(stage, total=total)
                if not console.is_terminal:  # a log gets one line per stage, not a bar
                    say(f"{family}: {total:,} to do")
            bars.update(tasks[family], description=f"{stage:<24}", completed=done, total=total)

        yield tell
