"""Section V-B: what a value outside of its bound becomes, for faults in values and for faults in weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from hoplon.protections.ranges.profiling import profile_activations
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.values.exceedance import exceedances
from hoplon.protections.values.policy import Policy, RandomInRange, ToMedian, ToZero
from hoplon.protections.values.ranger import Ranger
from hoplon.stats.intervals import wilson
from hoplon_studies.framework.findings import Finding
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context
from hoplon_studies.ranger.angles import angle_errors
from hoplon_studies.ranger.networks import Network, chosen, known, outputs, profiled
from hoplon_studies.ranger.runs import FIXED32, MEAN, WEIGHTS, Campaigns, FaultModel, row_of

MISREAD = "exceeding images misread"
ACCURACY = "accuracy without faults"
FAULT_FREE = "without faults, held-out data"
_NETWORKS = (
    *("lenet", "lenet-quick", "vgg11", "vgg16", "resnet18", "squeezenet", "resnet20"),
    *("dave-degrees", "comma"),
)
_POLICIES: Mapping[str, Policy] = {"zero": ToZero(), "random": RandomInRange()}
_SHOWN = ("none", "clamp", "zero", "channel+zero")
_WHERE = "section V-B"
_WHY = (
    "Every fault stays in its weight and meets all inputs. It spoils one channel of one output: reset to 0, that "
    "channel is a pruned filter, which networks are known to bear; clamped, it stays saturated, at the largest value "
    "that any image ever gave. A fault in a single value is as little seen once it is 0, since 0 is what a ReLU gives "
    "most often."
)
_MEDIANS = 200  # inputs that medians of channels are from, which need histograms


def policies(context: Context) -> Iterator[Finding]:
    """Faults in values; what bounds do to sound values that exceed them."""
    yield from _struck(Campaigns(context, FIXED32))
    misread: list[str] = []
    for found in chosen(context, _NETWORKS):
        rows = list(_fault_free(context, found))
        yield from rows
        misread += [
            f"{found.listing.label} {round(row.here * row.n / 100)} of {row.n}"  # type: ignore[operator]
            for row in rows
            if (row.what, row.arm) == (MISREAD, "zero") and row.n
        ]
    told = (
        "What lies outside of its bound becomes the bound (clamp, as in the paper) or 0; in the JSON also a random "
        "value inside, or the median of its channel. *channel*: bounds of each channel in place of one per operator."
    )
    if misread:
        told += (
            " Held-out images that exceed a bound without any fault, and of them those whose class reset to 0 changes: "
            f"{', '.join(misread)}."
        )
    yield told


def weights(context: Context) -> Iterator[Finding]:
    """Faults in weights of convolutions, whose highest exponent bit is flipped."""
    yield from _struck(Campaigns(context, WEIGHTS), _WHY)


def _struck(campaigns: Campaigns, why: str = "") -> Iterator[Finding]:
    """Failure rates by policy, and in words where 0 and the bound can be told apart, and why."""
    pairs: list[tuple[Row, Row]] = []
    for found in chosen(campaigns.context, _NETWORKS):
        headline: dict[str, Row] = {}
        for arm, protections in _arms(campaigns.context, found).items():
            for row in campaigns.rows(_WHERE, found, campaigns.run(found, arm, protections), arm, thresholds=True):
                shown = row.what in ("top-1", MEAN)
                yield replace(row, detail=not shown or arm not in _SHOWN)
                if shown:
                    headline[arm] = row
        pairs.append((headline["clamp"], headline["zero"]))
    if pairs:
        yield f"{_compared(campaigns.model, pairs)} {why}".rstrip()
    yield from campaigns.sources(_WHERE)


def _arms(context: Context, found: Network) -> dict[str, tuple[Ranger, ...]]:
    """Protections by arm; those of channels have bounds, and medians, for each."""
    ranges, channels = found.ranges, _channel_ranges(context, found)
    return {
        "none": (),
        "clamp": (Ranger(ranges),),
        **{arm: (Ranger(ranges, policy=policy),) for arm, policy in _POLICIES.items()},
        "median": (Ranger(channels, policy=ToMedian()),),
        "channel": (Ranger(channels),),
        "channel+zero": (Ranger(channels, policy=ToZero()),),
    }


def _channel_ranges(context: Context, found: Network) -> Ranges:
    """Bounds of each channel on the data that the others are from, with medians of a part of it; made once."""

    def make() -> Ranges:
        inputs, sites = known(context.data(found.listing.data), context.seed), profiled(found.program)
        ends = profile_activations(found.program, inputs, sites=sites, quantiles=False, per_channel=True)
        part = inputs.take(torch.arange(min(_MEDIANS, len(inputs))))
        middle = profile_activations(found.program, part, sites=sites, per_channel=True).ranges(medians=True).channels
        bounds = ends.ranges(per_channel=True)
        channels = {name: replace(one, medians=middle[name].medians) for name, one in bounds.channels.items()}
        return replace(bounds, channels=channels)

    return context.once(f"channels of {found.listing.key}", make)


def _compared(model: FaultModel, pairs: list[tuple[Row, Row]]) -> str:
    """On which networks 0 fails less often than the bound, and where more often, as far as limits tell."""
    less = [bound.model for bound, zero in pairs if zero.high < bound.low]  # type: ignore[operator]
    more = [bound.model for bound, zero in pairs if zero.low > bound.high]  # type: ignore[operator]
    told = [f"less often on {', '.join(less)}"] * bool(less) + [f"more often on {', '.join(more)}"] * bool(more)
    rest = len(pairs) - len(less) - len(more)
    told += [f"as often, as far as limits tell, on {'the other ' if told else 'all '}{rest}"] * bool(rest)
    return (
        "Section V-B rejects 0 in place of the bound, for accuracy without faults, and has no failure rates with it. "
        f"Here ({model.setting}) faults fail with it {'; '.join(told)}."
    )


def _fault_free(context: Context, found: Network) -> Iterator[Row]:
    """Accuracy or error of each arm without faults, and what becomes of the images that exceed a bound.

    Bounds change nothing in an image that exceeds none, so only the others pass through the bounded network.
    """
    arms = _arms(context, found)
    if not found.is_classifier:
        for arm in _SHOWN:
            module = harden(found.program, arms[arm]) if arms[arm] else found.module
            row = angle_errors(context, _WHERE, found, "RMSE", module, "RMSE", None, arm=arm, setting=FAULT_FREE)
            yield replace(row, detail=True)
        return
    y = found.held_out.y
    assert isinstance(y, torch.Tensor), found.listing.key
    golden = outputs(found.module, found.held_out).argmax(1)
    beyond = {
        per_channel: exceedances(found.program, arms[arm], found.held_out).exceeding
        for per_channel, arm in ((False, "clamp"), (True, "channel"))
    }
    accuracies: list[Row] = []
    for arm, protections in arms.items():
        rows = torch.tensor(
            beyond[arm in ("median", "channel", "channel+zero")] if protections else (), dtype=torch.int64
        )
        classes = golden.clone()
        if len(rows):
            classes[rows] = outputs(harden(found.program, protections), found.held_out.take(rows)).argmax(1)
        right = wilson(int((classes == y).sum()), len(y))
        row = row_of(_WHERE, found, ACCURACY, arm=arm, setting=FAULT_FREE).found(right, n=len(y), seed=context.seed)
        accuracies.append(row)
        if not protections:
            continue
        row = row_of(_WHERE, found, MISREAD, arm=arm, setting=FAULT_FREE, detail=True)
        if not len(rows):
            yield row.missing("no held-out image exceeds a bound")
        else:
            changed = wilson(int((classes != golden).sum()), len(rows))
            yield row.found(changed, n=len(rows), seed=context.seed)
    first = accuracies[0]
    equal = all(first.low <= row.here <= first.high for row in accuracies)  # type: ignore[operator]
    yield from (replace(row, detail=equal or row.arm not in _SHOWN) for row in accuracies)
