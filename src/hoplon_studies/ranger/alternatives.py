"""Figure 8, Algorithm 1 and the last layer: what else could be done, and which part of Ranger does what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from hoplon.faults.sampling.measures import OpUniform
from hoplon.program.sites import Values
from hoplon.protections.base import Protection
from hoplon.protections.values.duplicate import Duplicate
from hoplon.protections.values.ranger import Ranger
from hoplon.stats.intervals import Interval
from hoplon_studies.framework.figures import Figure, bars, percent_series
from hoplon_studies.framework.findings import Finding
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context
from hoplon_studies.ranger.angles import against_trivial, told_of_steering
from hoplon_studies.ranger.networks import Absent, Network, chosen, each_network, in_profile, with_tanh
from hoplon_studies.ranger.runs import FIXED32, MEAN, Campaigns, mean_of, relative_reduction, row_of

_WHERE = {"none": None, "activations": "activations", "algorithm1": "algorithm1"}
FEWER = "relative reduction"
LAST = "last layer alone struck"
SCRIPT = "21.10 fixed point, last layer struck too"


def against_tanh(context: Context) -> Iterator[Finding]:
    """Figure 8: how much lower the failure rate gets with hyperbolic tangents in place of ReLUs, and with Ranger."""
    campaigns = Campaigns(context)
    reductions: list[tuple[str, dict[str, Interval]]] = []
    steering: list[tuple[Network, list[Row]]] = []
    for found in each_network(context):
        other = with_tanh(context, found.listing.key)
        if other is None:
            continue
        absent = next((one for one in (found, other) if isinstance(one, Absent)), None)
        if absent is not None:
            yield row_of("Fig. 8", found, FEWER, arm="tanh").missing(absent.why)
            continue
        assert isinstance(found, Network), found
        assert isinstance(other, Network), other
        results = {
            "none": campaigns.run(found, "none"),
            "ranger": campaigns.run(found, "ranger", (Ranger(found.ranges),)),
            "tanh": campaigns.run(other, "tanh"),
            "tanh+ranger": campaigns.run(other, "tanh+ranger", (Ranger(other.ranges),)),
        }
        for arm, result in results.items():
            for row in campaigns.rows("Fig. 8", found, result, arm, thresholds=True):
                yield row
        means = {arm: mean_of([rate.failure for rate in result.summary()]) for arm, result in results.items()}
        runs = results["none"].summary()[0].n_runs
        gained = {arm: relative_reduction(means["none"], means[arm]) for arm in ("tanh", "ranger")}
        for arm, interval in gained.items():
            row = row_of("Fig. 8", found, FEWER, arm=arm, setting=FIXED32.setting, detail=True)
            if math.isnan(interval.estimate):
                yield row.missing("too few failures without protection to say")
            else:
                yield row.found(interval, n=runs, seed=context.seed)
        if not other.is_classifier:
            steering.append((other, list(against_trivial(context, other, "Fig. 8"))))
            yield from steering[-1][1]
        if not any(math.isnan(interval.estimate) for interval in gained.values()):
            reductions.append((found.listing.label, gained))
    told = (
        "*tanh*, after Hong et al.: hyperbolic tangents in place of the ReLUs (in Comma, of the ELUs), and no "
        "protection; *tanh+ranger*: Ranger on these networks. Limits of relative "
        "reductions join the opposite limits of both rates, so they are wider than they need be."
    )
    yield " ".join([told, *(f"With tangents: {words}" for words in told_of_steering(steering))])
    if reductions:
        yield _reductions(reductions)
    yield from campaigns.sources("Fig. 8")


def _reductions(found: list[tuple[str, dict[str, Interval]]]) -> Figure:
    series = [
        percent_series(name, [gained[arm] for _, gained in found], at_least=0.0)
        for arm, name in (("tanh", "hyperbolic tangents"), ("ranger", "Ranger"))
    ]
    return bars(
        "fig8",
        title="Failures fewer than without protection (no bar: none fewer, or more)",
        alt="Bars per network: hyperbolic tangents and Ranger",
        groups=[label for label, _ in found],
        series=series,
        y_title="relative reduction, %",
    )


def coverage(context: Context) -> Iterator[Finding]:
    """Algorithm 1 against bounds on activations alone; the last layer, bounded or run twice."""
    campaigns = Campaigns(context)
    for found in chosen(context, tuple(context.profile.ranger.models)):
        for key, where in _WHERE.items():
            ranger = () if where is None else (Ranger(found.ranges, where=where),)  # type: ignore[arg-type]
            results = campaigns.run(found, key, ranger)
            yield from campaigns.rows("section III-C", found, results, key)
        yield from _last_layer(campaigns, found)
    yield (
        "*activations*: these alone are bounded; *algorithm1*: pooling, reshapes and concatenations after them as "
        "well. Section III-C argues that activations alone are not enough, since a fault in the pooling after one "
        "meets the next activation's bound alone, which may be far larger (10 and 1,000 in its example). Section "
        "IV-C leaves out the last fully connected layer, whose values are the output, and "
        "names duplication as cheap: here faults strike that layer alone."
    )
    yield from campaigns.sources("coverage")


def _last_layer(campaigns: Campaigns, found: Network) -> Iterator[Row]:
    """Faults in the last fully connected layer alone, with and without something against them."""
    sites = Values(found.last)
    arms: Mapping[str, tuple[Protection, ...]] = {
        "none": (),
        "ranger": (Ranger(found.ranges),),
        "bounded": (Ranger(found.ranges, last_linear=True),),
        "duplicate": (Duplicate(found.last),),
    }
    name = f"{found.listing.key}-last"
    for key, protections in arms.items():
        results = campaigns.run(found, key, protections, sites=sites, sampling=OpUniform(), name=name)
        yield from campaigns.rows("section IV-C", found, results, key, setting=f"{FIXED32.setting}, {LAST}")


def artifact(context: Context) -> Iterator[Finding]:
    """Dave in radians with faults drawn as the published script draws them, the last layer included."""
    found = in_profile(context, "dave-radians")
    if isinstance(found, Absent):
        yield row_of("Fig. 7", found, MEAN, setting=SCRIPT)
        return
    campaigns = Campaigns(context)
    for key in ("none", "ranger"):
        protections = (Ranger(found.ranges),) if key == "ranger" else ()
        sampling = OpUniform(drop_last=2)
        results = campaigns.run(found, key, protections, sampling=sampling, name="dave-radians-script")
        place = "fig7/dave-radians"
        known = {name: context.published.get(f"{place}/{key}/{name}") for name in results.criteria}
        known["mean"] = context.published.get(f"{place}/mean/{key}")
        yield from campaigns.rows("Fig. 7", found, results, key, paper=known, setting=SCRIPT, thresholds=True)
    yield (
        "Dave ends in an arc tangent and a multiplication. Leaving out the last two operators, as the script does, "
        "leaves out these, and faults strike the last fully connected layer, which the text excludes. "
        "No bound of Algorithm 1 lies there, so Ranger leaves what they do. The paper's figures stand beside both ways."
    )
    yield from campaigns.sources("Dave", fault_model="one bit of 21.10 fixed point, operator first")
