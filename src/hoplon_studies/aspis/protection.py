"""Figures 15 and 16: what each protection leaves of the same faults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import final

import torch

from hoplon.campaign.campaign import Campaign
from hoplon.campaign.results import Results
from hoplon.comparison.comparison import Arm, compare
from hoplon.comparison.protected_fraction import remaining
from hoplon.faults.sampling.base import Sampling
from hoplon.faults.sampling.measures import Among, ElementUniform
from hoplon.faults.sampling.plans import Explicit
from hoplon.faults.single_word import BitFlip
from hoplon.importance._magnitude import magnitude
from hoplon.importance._random import random as random_scores
from hoplon.importance.scores import Scores
from hoplon.protections.base import Protection
from hoplon.protections.guards.aspis import Aspis
from hoplon.protections.guards.baselines.checksum import Checksum
from hoplon.protections.guards.known_bits.known_bits import KnownBits
from hoplon.protections.guards.parity.parity import Parity
from hoplon.protections.ranges.profiling import profile_ranges
from hoplon.protections.values.ranger import Ranger
from hoplon_studies.aspis.critical import BITS, critical_share, ordered
from hoplon_studies.aspis.subjects import CONVOLUTIONS, Subject, of_each
from hoplon_studies.framework.figures import Figure, Series, bars, lines, percent_series
from hoplon_studies.framework.findings import Finding, Table
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context

FRACTIONS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_ATTACKED = 0.05
_RANDOM, _IMPORTANT = "random weights", "most important weights"
_WIDER = f"top {100 * _ATTACKED:g} % by half of the data"
RANDOM, IMPORTANT, WIDER = (f"{which}, images misclassified" for which in (_RANDOM, _IMPORTANT, _WIDER))
MEANS = {bits: f"{bits} bits, mean" for bits in BITS}
_ON_PAGE = ("none", "ranger", "aspis-1%", "aspis-10%", "known-bits")
_THRESHOLDS = (0.0, 0.05, 0.5)


@final
@dataclass(frozen=True)
class Targets:
    """Struck weights: their place in the paper, name and sampling."""

    folder: str
    where: str
    weights: str
    sampling: Sampling = field(repr=False)


def same_faults(context: Context) -> Iterator[Finding]:
    """The same faults in every arm: in random weights, in the most important ones, and in a wider set of these."""
    yield from of_each(
        context, _of, lambda subject: [subject.row(where, MEANS[BITS[0]]) for where in ("Fig. 15", "Fig. 16")]
    )
    yield _TEXT


def arms(subject: Subject, scores: Scores) -> dict[str, list[Protection]]:
    """The paper's arms, then others on the same faults."""
    ranger = Ranger(profile_ranges(subject.program, subject.known))
    return {
        "none": [],
        "ranger": [ranger],
        "aspis-1%": [Aspis(scores, 0.01)],
        "aspis-10%": [Aspis(scores, 0.1)],
        "aspis-100%": [Aspis(scores, 1.0)],
        "ranger+aspis-1%": [ranger, Aspis(scores, 0.01)],
        "known-bits": [KnownBits()],
        "parity": [Parity()],
        "checksum, groups set to 0": [Checksum("zero")],
    }


def _attacks(subject: Subject, scores: Scores, context: Context) -> Iterator[Targets]:
    counts, seed = context.profile.aspis, context.seed
    yield Targets("random", "Fig. 15", _RANDOM, ElementUniform())
    important = ordered(scores, counts.important, seed=seed)
    yield Targets("important", "Fig. 16", _IMPORTANT, Explicit(important))
    wider = subject.scores(torch.arange(len(subject.known) // 2))
    yield Targets("wider", "Fig. 16", _WIDER, Among(wider.top(_ATTACKED)))


def _of(subject: Subject, context: Context) -> Iterator[Finding]:
    scores = subject.scores()
    chosen = arms(subject, scores)
    runs: list[str] = []
    for attack in _attacks(subject, scores, context):
        series: list[Series] = []
        for bits in BITS:
            name = f"{subject.name}/{attack.folder}/{bits}-bits"
            by_arm = _compared(subject, attack, bits, chosen, name, context)
            yield from _rows(subject, attack, bits, by_arm, context)
            yield _table(subject, attack, bits, by_arm)
            runs.append(name)
            series.append(percent_series(f"{bits} bits", [arm.rate.failure for arm in by_arm.values()]))
            if bits == BITS[0] and attack.folder != "important":
                yield _curve(subject, attack, by_arm["none"].results, scores, context)
        yield _bars(subject, attack, series, list(by_arm))
    yield context.source(
        subject.title,
        fault_model=(
            f"two or three different random bits of one float32 convolution weight, one table of "
            f"{context.profile.aspis.compared_faults} faults for all arms, which strike before the guards' check and "
            f"meet all eligible ones of {len(subject.met):,} held-out images; scores and ranges from "
            f"{len(subject.known):,} calibration images"
        ),
        runs=runs,
        seed=context.seed,
    )


def _compared(
    subject: Subject,
    attack: Targets,
    bits: int,
    chosen: Mapping[str, list[Protection]],
    name: str,
    context: Context,
) -> dict[str, Arm]:
    plan = Campaign(
        subject.program, subject.met, sites=CONVOLUTIONS, fault_model=BitFlip(bits), sampling=attack.sampling
    )
    count = context.profile.aspis.compared_faults
    if isinstance(attack.sampling, Explicit):
        count = min(count, len(attack.sampling.faults))
    compared = compare(
        subject.program,
        subject.met,
        arms=chosen,
        faults=plan.draw(count=count, seed=context.seed),
        latency=False,
        store=context.runs / name,
        resume=True,
        progress=lambda _, done, total: context.tell(name, done, total),
    )
    return {arm.name: arm for arm in compared.arms}


def _rows(subject: Subject, attack: Targets, bits: int, by_arm: Mapping[str, Arm], context: Context) -> Iterator[Row]:
    for name, arm in by_arm.items():
        key = f"fig16/{'aspis' if name.startswith('aspis') else name}"
        is_published = subject.stands_for and attack.folder == "important"
        paper = context.published.get(key) if is_published else None
        known = {"arm": name, "setting": f"{attack.weights}, images misclassified"}
        row = subject.row(attack.where, MEANS[bits], paper=paper, failure=True, detail=name not in _ON_PAGE, **known)
        yield row.found(arm.rate.failure, n=arm.rate.n_faults, seed=context.seed)
        for threshold in _THRESHOLDS:
            interval, count = critical_share(arm.results, threshold)
            row = subject.row(attack.where, f"{bits} bits, faults above {100 * threshold:g} %", detail=True, **known)
            yield row.found(interval, n=count, seed=context.seed)


def _table(subject: Subject, attack: Targets, bits: int, by_arm: Mapping[str, Arm]) -> Table:
    rows = []
    for name, arm in by_arm.items():
        failure = arm.rate.failure
        mean = f"{100 * failure.estimate:.3g} [{100 * failure.low:.3g}, {100 * failure.high:.3g}]"
        shares = arm.results.critical_share(_THRESHOLDS)["share"].to_list()
        rows.append((name, mean, *(100 * share for share in shares), 100 * arm.detected, 100 * arm.corrected))
    thresholds = [f"faults above {100 * threshold:g} %" for threshold in _THRESHOLDS]
    return Table(
        f"{subject.title}, {attack.weights}, {bits} bits: in % of {arm.rate.n_faults} faults",
        ("arm", "images misclassified, mean", *thresholds, "detected", "repaired"),
        tuple(rows),
        "Limits are clustered by fault. Detected and repaired: of runs, by guards.",
        detail=True,
    )


def _bars(subject: Subject, attack: Targets, series: list[Series], names: list[str]) -> Figure:
    seen = "; ".join(f"{name} {value:.3g} %" for name, value in zip(names, series[0].values, strict=True))
    return bars(
        f"{attack.folder}-{subject.name}",
        title=f"{subject.title}, {attack.weights}: images misclassified, mean over faults ({attack.where})",
        alt=f"Misclassified images by arm, two bits: {seen}",
        groups=names,
        series=series,
        y_title="% of images",
    )


def _curve(subject: Subject, attack: Targets, results: Results, taylor_scores: Scores, context: Context) -> Figure:
    scores = {
        "Taylor": taylor_scores,
        "magnitude": magnitude(subject.program, sites=CONVOLUTIONS),
        "random": random_scores(subject.program, sites=CONVOLUTIONS, seed=context.seed),
    }
    series = [
        Series(name, tuple(100 * remaining(results, values, fraction).estimate for fraction in FRACTIONS))
        for name, values in scores.items()
    ]
    ends = "; ".join(f"{one.name} {one.values[2]:.3g} % with 1 % protected" for one in series)
    return lines(
        f"curve-{attack.folder}-{subject.name}",
        title=f"{subject.title}, {attack.weights}, 2 bits: what remains when the top fraction of a score is protected",
        alt=f"Images misclassified by protected fraction: {ends}",
        x=[100 * fraction for fraction in FRACTIONS],
        series=series,
        x_title="% of the convolution weights that are protected",
        y_title="% of images, mean over faults",
        log_x=True,
    )


_TEXT = (
    "All arms meet the same faults. Faults in the weights that Aspis protects are repaired by construction, as in the "
    "paper; the wider attack takes weights of the top 5 % by scores from half of the calibration images, which a "
    "protected fraction of 1 % does not cover."
)
