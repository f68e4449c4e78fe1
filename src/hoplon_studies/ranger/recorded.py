"""Beside figure 7: the steering networks on a recorded drive, whose angles are almost all 0."""

from __future__ import annotations

from collections.abc import Iterator

from hoplon.campaign.results import Results
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.values.ranger import Ranger
from hoplon_studies.framework.digits import here
from hoplon_studies.framework.findings import Finding
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context
from hoplon_studies.ranger.angles import STRETCHES, against_trivial, angle_errors, how_chosen, told_of_steering
from hoplon_studies.ranger.networks import Absent, Network, recorded_networks
from hoplon_studies.ranger.runs import MEAN, Campaigns, row_of

WHERE = "beside Fig. 7"


def drive(context: Context) -> Iterator[Finding]:
    """Failure rates and errors on a drive of Udacity's simulator, recorded by others."""
    campaigns = Campaigns(context)
    steering: list[tuple[Network, list[Row]]] = []
    for found in recorded_networks(context):
        if isinstance(found, Absent):
            yield row_of(WHERE, found, MEAN)
            continue
        rows: list[Row] = []
        struck: list[Results] = []
        for arm, protections in {"none": (), "ranger": (Ranger(found.ranges),)}.items():
            struck.append(campaigns.run(found, arm, protections))
            yield from campaigns.rows(WHERE, found, struck[-1], arm)
            module = harden(found.program, protections) if protections else found.module
            rows.append(angle_errors(context, WHERE, found, "RMSE", module, "RMSE", None, arm=arm, detail=True))
        yield from campaigns.difference(WHERE, found, *struck)
        rows += against_trivial(context, found, WHERE)
        yield from rows
        steering.append((found, rows))
    if steering:
        errors = "; ".join(f"{network.listing.label} {here(rows[0])}" for network, rows in steering)
        told = (*told_of_steering(steering), f"Without bounds their RMSE is {errors}. {STRETCHES}")
        yield " ".join(told)
        yield how_chosen()
    yield from campaigns.sources("the recorded drive")
