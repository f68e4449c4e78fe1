"""A study of two parts, one of which has run; the one place that knows where the frame of studies lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

# The frame of studies has no flat names: this path changes when its modules move.
from hoplon_studies import (
    Context,
    Findings,
    Part,
    Row,
    Source,
    Study,
    StudyResult,
    Table,
    profile_named,
    run_study,
    write_pages,
)
from tests.pins.campaigns import SEED, campaign
from tests.pins.renames import OUTCOMES, pinned_name

FOLDER = Path("study-runs") / "pins"
RUN = FOLDER / "runs" / "found" / "values"
ROW = Row("Table 1", "convolutional", "multiples", "failure", "%", paper=12.5)

__all__ = ["FOLDER", "RUN", "Findings", "found", "refuses", "run", "write_pages"]


def found(context: Context) -> Findings:
    """What a small campaign gives: a row, a table, a text and a source."""
    results = context.campaign("values", campaign(), count=40)
    rate = results.summary()[0]
    row = ROW.found(rate.failure, n=rate.n_runs, seed=context.seed)
    counts = {pinned_name(OUTCOMES, outcome): count for outcome, count in rate.counts.items()}
    table = Table("outcomes", ("outcome", "runs"), tuple(counts.items()))
    number = context.kept("number", lambda: 3)
    source = Source("the row", "bits 16 to 31", context.seed, ("runs/found/values",), context.command)
    return Findings(rows=(row, ROW.missing("not here")), tables=(table,), text=(f"Kept: {number}.",), sources=(source,))


def refuses(_context: Context) -> Findings:
    """A part that must not run."""
    raise AssertionError("expected a finished part not to run again")


def run(out: Path, part: Callable[[Context], Findings]) -> StudyResult:
    """Run the first part in a folder, or find it finished there."""
    parts = (Part("found", "What is found", part), Part("open", "What is open", refuses))
    study = Study("pins", "A study", ("Of a tiny network.",), parts)
    command = ["hoplon", "study", "pins"]
    return run_study(study, out=out, profile=profile_named("quick"), seed=SEED, command=command, only=["found"])
