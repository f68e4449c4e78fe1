"""Section III-B: failures by struck bit, without and with Ranger, out of the campaigns of figures 6 and 7."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl

from hoplon.campaign.results import Results
from hoplon.stats.intervals import wilson
from hoplon_studies.framework.figures import Figure, Series, lines
from hoplon_studies.framework.findings import Table
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context
from hoplon_studies.ranger.networks import Network
from hoplon_studies.ranger.runs import FIXED32, row_of

BY_BIT, HIGH, LOW = "failures by struck bit", "high bits", "low bits"
UNBOUNDED, BOUNDED = (f"{FIXED32.setting}, {arm}" for arm in ("none", "ranger"))
_ONE = 10  # the bit that is worth 1
_BITS = range(31)
_HIGH = 16  # worth 64 and more


def by_bit(
    context: Context, name: str, pairs: Sequence[tuple[Network, dict[str, Results]]]
) -> Iterator[Row | Table | Figure]:
    """Rows of the upper 15 and the lower 16 bits, a table and a chart of all; nothing where no network was struck."""
    shares: dict[str, dict[int, float]] = {}
    for arm, setting in {"none": UNBOUNDED, "ranger": BOUNDED}.items():
        for network, arms in pairs:
            found = arms[arm].by("bit")
            known = found.select("bit", "failure", "n_runs").rows()
            shares[f"{network.listing.label}, {arm}"] = {bit: 100 * failure for bit, failure, _ in known}
            for half, mine in {HIGH: pl.col("bit") >= _HIGH, LOW: pl.col("bit") < _HIGH}.items():
                part = found.filter(mine)
                n = int(part["n_runs"].sum())
                row = row_of("section III-B", network, BY_BIT, arm=half, setting=setting, failure=True, detail=True)
                if n:
                    failed = round(float((part["failure"] * part["n_runs"]).sum()))
                    yield row.found(wilson(failed, n), n=n, seed=context.seed)
    if pairs:
        yield Table(
            "Faults that fail by struck bit, in %",
            ("network", *(str(bit) for bit in _BITS)),
            tuple((label, *(_rounded(found.get(bit)) for bit in _BITS)) for label, found in shares.items()),
            f"Bit {_ONE} is worth 1. Failures by the first criterion of each network.",
            detail=True,
        )
        yield lines(
            f"{name}-bits",
            title="Share of faults that fail by struck bit, without and with Ranger",
            alt="Lines that rise with the bit, and flat ones with Ranger, per network",
            x=[float(bit) for bit in _BITS],
            series=[Series(label, tuple(found.get(bit) for bit in _BITS)) for label, found in shares.items()],
            x_title=f"struck bit of 21.10 fixed point; bit {_ONE} is worth 1",
            y_title="failures, %",
        )


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 3)
