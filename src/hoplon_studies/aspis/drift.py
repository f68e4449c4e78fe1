"""Aspis under drift: is the top 1 % of today that of tomorrow, and what does a guard of stale weights leave?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import polars as pl
import torch

from hoplon.campaign.campaign import Campaign
from hoplon.comparison.protected_fraction import exposed
from hoplon.importance.analysis import by_layer, overlap
from hoplon.stats.intervals import clustered, paired_clustered, wilson
from hoplon_studies.aspis.attacks import CHANGES, WORST, ordered, struck
from hoplon_studies.aspis.changes import BATCH, EPOCHS, SAMPLED, SCORED, STEP, Change, NoChange, changes_of, right
from hoplon_studies.aspis.maps import TOP
from hoplon_studies.aspis.subjects import CONVOLUTIONS, Subject, of_each
from hoplon_studies.framework.figures import Figure, Series, bars
from hoplon_studies.framework.findings import Finding
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context

WHERE = "section IV-A"
KEPT, ALIKE = "of the same weights", "of the same share of each layer"
SHARES, ANEW = "top 1 % by score, before and after", "top 1 % of networks trained anew"
STRUCK = f"top 1 % struck after the change, {WORST}, images misclassified"
STALE, FRESH, MORE = "stale 1 %", "fresh 1 %", "stale − fresh"
_UNPROTECTED, _RIGHT = "none", "test images right"


def under_drift(context: Context) -> Iterator[Finding]:
    """Shares of the top 1 % that stay, and what a guard of stale weights leaves beside one of fresh ones."""
    differences: dict[str, dict[str, Row]] = {}
    for found in of_each(context, _of, lambda subject: [subject.row(WHERE, KEPT, arm=SAMPLED, setting=SHARES)]):
        if isinstance(found, Row) and found.arm == MORE:
            differences.setdefault(found.model, {})[found.what] = found
        yield found
    if differences:
        yield _chart(differences)
    yield _TEXT


def _of(subject: Subject, context: Context) -> Iterator[Finding]:
    runs: dict[str, None] = {}
    for change in changes_of(subject, context):
        setting = ANEW if change.is_new else SHARES
        row = subject.row(WHERE, KEPT, arm=change.name, setting=setting)
        if isinstance(change, NoChange):
            yield replace(row.missing(change.why), detail=True)
            continue
        run = f"{subject.name}/{change.now.name}"
        kept = float(overlap({"stale": change.stale, "fresh": change.fresh}, TOP)["share"][0])
        yield replace(row, here=100 * kept, detail=change.is_new)
        yield replace(row, what=ALIKE, here=100 * _alike(change), detail=True)
        if run not in runs:
            yield _right(change, row, context)
        aside = change.name in (SAMPLED, *SCORED.values())  # the chart has them
        yield from _left(change, replace(row, what=change.name, setting=STRUCK, detail=aside), run, context)
        runs[run] = None
    yield context.source(
        subject.title,
        fault_model=f"{WORST} of one float32 convolution weight out of the top 1 % that the network as it is after the "
        "change has on calibration images which no guard was chosen on, as many as one was; each meets all "
        f"eligible ones of {len(subject.met):,} held-out images. Tuned: {EPOCHS} passes over up to "
        f"{context.profile.aspis.tuning:,} calibration images in batches of {BATCH}, AdamW, steps of at most {STEP:g}",
        runs=tuple(runs),
        seed=context.seed,
    )


def _alike(change: Change) -> float:
    """What two splits of the top 1 % over the layers have in common."""
    stale, fresh = (torch.tensor(by_layer(one, TOP)["top_share"].to_list()) for one in (change.stale, change.fresh))
    return float(torch.minimum(stale, fresh).sum())


def _right(change: Change, row: Row, context: Context) -> Row:
    """Held-out images that the network gets right as it is now."""
    images = change.now.held_out.sample(context.profile.aspis.calibration, seed=context.seed)
    share = wilson(right(change.now.module, images), len(images))
    return replace(row, what=_RIGHT, detail=True).found(share, n=len(images), seed=context.seed)


def _left(change: Change, row: Row, run: str, context: Context) -> Iterator[Row]:
    """What guards of stale and of fresh weights leave of the same faults, and the paired difference."""
    now, seed = change.now, context.seed
    ranked = now.scores(change.others)
    places = ordered(ranked, ranked.count(TOP), seed=seed)[: context.profile.aspis.compared_faults]
    sampling = struck(WORST, places, seed=seed)
    plan = Campaign(now.program, now.met, sites=CONVOLUTIONS, fault_model=CHANGES[WORST], sampling=sampling)
    results = context.campaign(run, plan, count=len(places))
    per_fault = results.per_fault()
    shares, sizes = per_fault["failure"].to_numpy(), per_fault["n_inputs"].to_numpy()
    sites = per_fault.select(pl.col("site").cast(pl.String), "element")
    left = {_UNPROTECTED: shares}
    left |= {
        name: shares * exposed(scores, TOP, sites) for name, scores in ((STALE, change.stale), (FRESH, change.fresh))
    }
    rates = {name: clustered(one, sizes) for name, one in left.items()}
    rates[MORE] = paired_clustered(left[STALE] - left[FRESH])
    for arm, rate in rates.items():
        yield replace(row, arm=arm).found(rate, n=per_fault.height, seed=seed)


def _chart(differences: dict[str, dict[str, Row]]) -> Figure:
    """By change what the stale guard leaves more than the fresh one, a series per network."""
    names = list(dict.fromkeys(name for found in differences.values() for name in found))
    series = []
    for network, found in differences.items():
        rows = [found.get(name) for name in names]
        values = [None if row is None else float(row.here) for row in rows]  # type: ignore[arg-type]
        ends = ([None if row is None else getattr(row, end) for row in rows] for end in ("low", "high"))
        series.append(Series(network, tuple(values), *map(tuple, ends)))
    most = "; ".join(f"{one.name} {max(value for value in one.values if value is not None):.3g} %" for one in series)
    return bars(
        "left",
        title=f"Top 1 % struck after a change, {WORST}: images misclassified, guard of the stale top 1 % less guard of "
        "the fresh one on the same faults",
        alt=f"Most that a stale guard leaves more than a fresh one, by network: {most}",
        groups=names,
        series=series,
        y_title="% of images, mean over faults",
    )


_TEXT = (
    "*Another sample* (as many images of the same data, the network unchanged) is the control: what stays of the top "
    "1 % there is all that so many images tell. *Scored on* other data, labelled by the network's own predictions, the "
    f"network is unchanged too. *Tuned*: {EPOCHS} more passes in small steps over its own data, or over digits, which "
    "it then classifies. In a network trained anew, from another seed or on signs, a place holds another weight: only "
    "layers compare, of which the small early ones are in the top 1 % almost whole. Guards hold 1 % by scores before "
    "(*stale*) or after the change (*fresh*); a third sample, which neither saw, says what is struck, so that a fresh "
    "guard leaves what sampling costs; *stale − fresh* is paired on the same faults. Shares are of all weights, for "
    "these images, and have no limits."
)
