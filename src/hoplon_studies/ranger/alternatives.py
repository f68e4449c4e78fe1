"""Figure 8, section V-B and Algorithm 1: what else could be done, and which part of Ranger does what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from hoplon.faults.sampling.measures import OpUniform
from hoplon.program.sites import Values
from hoplon.protections.base import Protection
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.values.duplicate import Duplicate
from hoplon.protections.values.policy import Clamp, Policy, RandomInRange, ToZero
from hoplon.protections.values.ranger import Ranger
from hoplon.stats.intervals import Interval
from hoplon_studies.framework.figures import Figure, bars, percent_series
from hoplon_studies.framework.findings import Finding
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context
from hoplon_studies.ranger.networks import Absent, Network, each_network, in_profile, network, with_tanh
from hoplon_studies.ranger.runs import FIXED32, Campaigns, mean_of, relative_reduction, right_of, row_of

_POLICIES: Mapping[str, tuple[str, Policy]] = {
    "clamp": ("to the bound (Ranger)", Clamp()),
    "zero": ("to zero", ToZero()),
    "random": ("to a random value inside the bound", RandomInRange()),
}
_WHERE = {
    "none": ("without Ranger", None),
    "activations": ("activations alone bounded", "activations"),
    "algorithm1": ("Algorithm 1: pooling, reshapes and concatenations bounded as well", "algorithm1"),
}


def against_tanh(context: Context) -> Iterator[Finding]:
    """Figure 8: how much lower the failure rate gets with hyperbolic tangents in place of ReLUs, and with Ranger."""
    campaigns = Campaigns(context)
    reductions: list[tuple[str, dict[str, Interval]]] = []
    for found in each_network(context):
        other = with_tanh(context, found.listing.key)
        what = "failures fewer than without protection, relative"
        if other is None:
            continue
        absent = next((one for one in (found, other) if isinstance(one, Absent)), None)
        if absent is not None:
            yield row_of("Fig. 8", found, f"{what}, hyperbolic tangents").missing(absent.why)
            continue
        assert isinstance(found, Network), found
        assert isinstance(other, Network), other
        results = {
            "none": campaigns.run(found, "none"),
            "ranger": campaigns.run(found, "ranger", (Ranger(found.ranges),)),
            "tanh": campaigns.run(other, "tanh"),
        }
        alone = f"hyperbolic tangents, no protection, {FIXED32.words}"
        yield from campaigns.rows("Fig. 8", other, results["tanh"], alone)
        means = {arm: mean_of(result.summary(), independent=False) for arm, result in results.items()}
        runs = results["none"].summary()[0].n_runs
        gained = {arm: relative_reduction(means["none"], means[arm]) for arm in ("tanh", "ranger")}
        for arm, words in (("tanh", "hyperbolic tangents (Hong et al.)"), ("ranger", "Ranger")):
            row = row_of("Fig. 8", found, f"{what}, {words}, {FIXED32.words}, mean over thresholds")
            if math.isnan(gained[arm].estimate):
                yield row.missing("too few failures without protection to say")
            else:
                yield row.found(gained[arm], n=runs, seed=context.seed)
        if not any(math.isnan(interval.estimate) for interval in gained.values()):
            reductions.append((found.listing.label, gained))
    already = "failures fewer where the functions are hyperbolic tangents already"
    paper = context.published["fig8/tanh-functions"]
    nothing = "nothing is put in the place of anything there, so there is nothing to run"
    yield Row("Fig. 8", "networks with tanh", "-", already, "%", paper=paper, why=nothing)
    yield (
        "Limits join the opposite limits of both rates, so they are wider than they need be. The paper gives 0 % for "
        "networks whose functions already are hyperbolic tangents, and figures for the others in a chart alone."
    )
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


def policies(context: Context) -> Iterator[Finding]:
    """Section V-B: what a value outside of its bound becomes, with bounds at the extremes."""
    campaigns = Campaigns(context)
    for found in _chosen(context, ("vgg16", "vgg11", "lenet", "lenet-quick", "resnet20")):
        for key, (words, policy) in _POLICIES.items():
            ranger, what = Ranger(found.ranges, policy=policy), f"accuracy fault-free, outside values {words}"
            results = campaigns.run(found, key, (ranger,))
            yield from campaigns.rows("section V-B", found, results, f"outside values {words}, {FIXED32.words}")
            yield right_of(context, "section V-B", found, harden(found.program, (ranger,)), what)
    yield (
        "The paper reports 3 of 5 images misread once values beyond the bound became 0, and unchanged accuracy with "
        "random replacements; both on VGG16. Whether sound values are hit depends on how tight the bounds are: here "
        "they are the extremes of the training data, which few held-out images exceed."
    )
    yield from campaigns.sources("section V-B")


def coverage(context: Context) -> Iterator[Finding]:
    """Algorithm 1 against bounds on activations alone; the last layer, bounded or run twice."""
    campaigns = Campaigns(context)
    for found in _chosen(context, tuple(context.profile.ranger.models)):
        for key, (words, where) in _WHERE.items():
            ranger = () if where is None else (Ranger(found.ranges, where=where),)  # type: ignore[arg-type]
            results = campaigns.run(found, key, ranger)
            yield from campaigns.rows("section III-C", found, results, f"{words}, {FIXED32.words}")
        yield from _last_layer(campaigns, found)
    yield (
        "Section III-C argues that activations alone are not enough, since a fault in the pooling after one passes "
        "every bound. Section IV-C leaves out the last fully connected layer, whose values are the output, and names "
        "duplication as cheap: here faults strike that layer alone."
    )
    yield from campaigns.sources("coverage")


def _last_layer(campaigns: Campaigns, found: Network) -> Iterator[Row]:
    """Faults in the last fully connected layer alone, with and without something against them."""
    sites = Values(found.last)
    arms: Mapping[str, tuple[str, tuple[Protection, ...]]] = {
        "none": ("no protection", ()),
        "ranger": ("Ranger", (Ranger(found.ranges),)),
        "bounded": ("Ranger, its product bounded as well", (Ranger(found.ranges, last_linear=True),)),
        "duplicate": ("product and bias run twice", (Duplicate(found.last),)),
    }
    name = f"{found.listing.key}-last"
    for key, (words, protections) in arms.items():
        results = campaigns.run(found, key, protections, sites=sites, sampling=OpUniform(), name=name)
        what = f"faults in the last layer alone, {words}, one bit of 21.10 fixed point"
        yield from campaigns.rows("section IV-C", found, results, what)


def artifact(context: Context) -> Iterator[Finding]:
    """Dave in radians with faults drawn as the published script draws them, the last layer included."""
    found = in_profile(context, "dave-radians")
    what = "last product and bias struck as well, as the published script does"
    if isinstance(found, Absent):
        yield row_of("Fig. 7", found, what)
        return
    campaigns = Campaigns(context)
    for key, words in (("none", "without Ranger"), ("ranger", "with Ranger")):
        protections = (Ranger(found.ranges),) if key == "ranger" else ()
        sampling = OpUniform(drop_last=2)
        results = campaigns.run(found, key, protections, sampling=sampling, name="dave-radians-script")
        yield from campaigns.rows("Fig. 7", found, results, f"{words}, {what}, one bit of 21.10 fixed point")
    yield (
        "Dave ends in an arc tangent and a multiplication. Leaving out the last two operators, as the script does, "
        "leaves out these, and faults strike the last fully connected layer, which the text excludes. "
        "No bound helps there."
    )
    yield from campaigns.sources("Dave", fault_model="one bit of 21.10 fixed point, operator first")


def _chosen(context: Context, keys: tuple[str, ...]) -> Iterator[Network]:
    """Those of the networks that the profile has and that are there."""
    for key in keys:
        if key in context.profile.ranger.models and isinstance(found := network(context, key), Network):
            yield found
