"""Figures 15 and 16: what each protection leaves of the same faults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import final

from hoplon.campaign.campaign import Campaign
from hoplon.campaign.results import Results
from hoplon.comparison.comparison import Arm, compare
from hoplon.comparison.protected_fraction import remaining
from hoplon.faults.sampling.base import Sampling
from hoplon.faults.sampling.measures import Among, ElementUniform
from hoplon.faults.sampling.plans import Explicit
from hoplon.importance._magnitude import magnitude
from hoplon.importance._random import random as random_scores
from hoplon.importance.scores import Scores
from hoplon.protections.base import Protection
from hoplon.protections.guards.aspis import Aspis
from hoplon.protections.guards.baselines.checksum import Checksum
from hoplon.protections.guards.known_bits.known_bits import KnownBits
from hoplon.protections.guards.parity.parity import Parity
from hoplon.protections.ranges.profiling import profile_activations
from hoplon.protections.values.policy import ToZero
from hoplon.protections.values.ranger import Ranger
from hoplon_studies.aspis.attacks import (
    ATTACKED,
    CHANGES,
    MILD,
    RANDOM_WEIGHTS,
    THREE_BITS,
    TWO_BITS,
    WIDER_WEIGHTS,
    WORST,
    folder_of,
    ordered,
    struck,
)
from hoplon_studies.aspis.critical import critical_share
from hoplon_studies.aspis.layers import in_order
from hoplon_studies.aspis.subjects import CONVOLUTIONS, Subject, of_each
from hoplon_studies.framework.figures import Figure, bars, lines, percent_series
from hoplon_studies.framework.findings import Finding, Table
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context

FRACTIONS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_IMPORTANT = "most important weights"
_LARGEST, _DAMAGE = "weights of the largest magnitudes", "weights of the largest expected damage"
RANDOM, IMPORTANT, WIDER = (f"{which}, images misclassified" for which in (RANDOM_WEIGHTS, _IMPORTANT, WIDER_WEIGHTS))
_BITS = {TWO_BITS: "2 bits", THREE_BITS: "3 bits", WORST: WORST, MILD: MILD}
MEANS = {change: f"{name}, mean" for change, name in _BITS.items()}
_ON_PAGE = ("none", "ranger", "ranger zero", "aspis-1%", "known-bits")
_OF_BITS = (*_ON_PAGE, "ranger per channel", "aspis-10%", "parity")
"""Arms that meet the faults of which bit 30 is chosen or spared."""
_THRESHOLDS = (0.0, 0.05, 0.5)
_FLOOR = 0.01  # per cent that a logarithmic axis still shows
_SHOWN = {
    "random": (TWO_BITS, WORST),
    "important": (TWO_BITS, THREE_BITS, WORST),
    "wider": (TWO_BITS, WORST),
}
"""Rows on the page, by folder of the attack."""


@final
@dataclass(frozen=True)
class Targets:
    """Struck weights: folder, place in the paper, name, the score that they are highest in, how many, and changes."""

    folder: str
    where: str
    weights: str
    ranked: Scores = field(repr=False)
    top: int
    changes: tuple[str, ...]

    def sampling(self, change: str, count: int, seed: int) -> Sampling:
        """The sampling of so many faults."""
        if change in (WORST, MILD) or self.folder == "important":
            return struck(change, ordered(self.ranked, self.top, seed=seed)[:count], seed=seed)
        return ElementUniform() if self.folder == "random" else Among(self.ranked.top(ATTACKED))


def same_faults(context: Context) -> Iterator[Finding]:
    """The same faults in every arm: in random weights, in the most important ones, and in a wider set of these."""
    yield from of_each(
        context, _of, lambda subject: [subject.row(where, MEANS[TWO_BITS]) for where in ("Fig. 15", "Fig. 16")]
    )
    yield _TEXT


def arms(subject: Subject, scores: Scores) -> dict[str, list[Protection]]:
    """The paper's arms, then others on the same faults."""
    profile = profile_activations(subject.program, subject.known, per_channel=True)
    ranges = profile.ranges()
    ranger = Ranger(ranges)
    return {
        "none": [],
        "ranger": [ranger],
        "ranger zero": [Ranger(ranges, policy=ToZero())],
        "ranger per channel": [Ranger(profile.ranges(per_channel=True))],
        "aspis-1%": [Aspis(scores, 0.01)],
        "aspis-10%": [Aspis(scores, 0.1)],
        "aspis-100%": [Aspis(scores, 1.0)],
        "ranger+aspis-1%": [ranger, Aspis(scores, 0.01)],
        "known-bits": [KnownBits()],
        "parity": [Parity()],
        "checksum, groups set to 0": [Checksum("zero")],
    }


def _attacks(subject: Subject, scores: Scores, damage: Scores, context: Context) -> Iterator[Targets]:
    counts, program = context.profile.aspis, subject.program
    random = random_scores(program, sites=CONVOLUTIONS, seed=context.seed)
    wider = subject.scores_of_half()
    sizes, drawn = magnitude(program, sites=CONVOLUTIONS), (TWO_BITS, THREE_BITS, WORST)
    yield Targets("random", "Fig. 15", RANDOM_WEIGHTS, random, scores.total, drawn)
    yield Targets("important", "Fig. 16", _IMPORTANT, scores, counts.important, (*drawn, MILD))
    yield Targets("wider", "section V-B", WIDER_WEIGHTS, wider, wider.count(ATTACKED), drawn)
    yield Targets("largest", "section V-B", _LARGEST, sizes, counts.important, (WORST,))
    yield Targets("damage", "section V-B", _DAMAGE, damage, counts.important, (WORST,))


def _of(subject: Subject, context: Context) -> Iterator[Finding]:
    scores, damage = subject.scores(), subject.damage()
    chosen = arms(subject, scores)
    runs: list[str] = []
    for attack in _attacks(subject, scores, damage, context):
        found: dict[str, dict[str, Arm]] = {}
        for change in attack.changes:
            name = f"{subject.name}/{attack.folder}/{folder_of(change)}"
            by_arm = found[change] = _compared(subject, attack, change, chosen, name, context)
            yield from _rows(subject, attack, change, by_arm, context)
            yield _table(subject, attack, change, by_arm)
            runs.append(name)
        if TWO_BITS in found:
            yield _bars(subject, attack, found)
        if attack.folder in ("random", "wider"):
            results = found[WORST]["none"].results
            yield _curve(subject, attack, results, {"Taylor": scores, "expected damage": damage}, context)
    yield context.source(
        subject.title,
        fault_model=(
            f"bits of one float32 convolution weight, as the run's folder says, one table of "
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
    change: str,
    chosen: Mapping[str, list[Protection]],
    name: str,
    context: Context,
) -> dict[str, Arm]:
    sampling = attack.sampling(change, context.profile.aspis.compared_faults, context.seed)
    plan = Campaign(subject.program, subject.met, sites=CONVOLUTIONS, fault_model=CHANGES[change], sampling=sampling)
    count = context.profile.aspis.compared_faults
    if isinstance(sampling, Explicit):
        count = len(sampling.faults)
    met = chosen if change in (TWO_BITS, THREE_BITS) else {name: chosen[name] for name in chosen if name in _OF_BITS}
    compared = compare(
        subject.program,
        subject.met,
        arms=met,
        faults=plan.draw(count=count, seed=context.seed),
        latency=False,
        store=context.runs / name,
        resume=True,
        progress=lambda _, done, total: context.tell(name, done, total),
    )
    return {arm.name: arm for arm in compared.arms}


def _rows(subject: Subject, attack: Targets, change: str, by_arm: Mapping[str, Arm], context: Context) -> Iterator[Row]:
    shown = attack.folder in _SHOWN and change in _SHOWN[attack.folder]
    for name, arm in by_arm.items():
        key = f"fig16/{'aspis' if name.startswith('aspis') else name}"
        is_published = subject.stands_for and attack.folder == "important" and change in (TWO_BITS, THREE_BITS)
        paper = context.published.get(key) if is_published else None
        known = {"arm": name, "setting": f"{attack.weights}, images misclassified"}
        detail = name not in _ON_PAGE or not shown
        row = subject.row(attack.where, MEANS[change], paper=paper, failure=True, detail=detail, **known)
        yield row.found(arm.rate.failure, n=arm.rate.n_faults, seed=context.seed)
        for threshold in _THRESHOLDS:
            interval, count = critical_share(arm.results, threshold)
            row = subject.row(
                attack.where, f"{_BITS[change]}, faults above {100 * threshold:g} %", detail=True, **known
            )
            yield row.found(interval, n=count, seed=context.seed)


def _table(subject: Subject, attack: Targets, change: str, by_arm: Mapping[str, Arm]) -> Table:
    rows = []
    for name, arm in by_arm.items():
        failure = arm.rate.failure
        mean = f"{100 * failure.estimate:.3g} [{100 * failure.low:.3g}, {100 * failure.high:.3g}]"
        shares = arm.results.critical_share(_THRESHOLDS)["share"].to_list()
        rows.append((name, mean, *(100 * share for share in shares), 100 * arm.detected, 100 * arm.corrected))
    thresholds = [f"faults above {100 * threshold:g} %" for threshold in _THRESHOLDS]
    return Table(
        f"{subject.title}, {attack.weights}, {_BITS[change]}: in % of {arm.rate.n_faults} faults",
        ("arm", "images misclassified, mean", *thresholds, "detected", "repaired"),
        tuple(rows),
        "Limits are clustered by fault. Detected and repaired: of runs, by guards.",
        detail=True,
    )


def _bars(subject: Subject, attack: Targets, found: Mapping[str, Mapping[str, Arm]]) -> Figure:
    """Arms that all changes have, on an axis on which shares far apart can be read."""
    names = [name for name in found[WORST] if all(name in by_arm for by_arm in found.values())]
    series = [
        percent_series(_BITS[change], [by_arm[name].rate.failure for name in names], at_least=_FLOOR)
        for change, by_arm in found.items()
    ]
    seen = "; ".join(f"{name} {100 * found[WORST][name].rate.failure.estimate:.3g} %" for name in names)
    return bars(
        f"{attack.folder}-{subject.name}",
        title=f"{subject.title}, {attack.weights}: images misclassified, mean over faults ({attack.where})",
        alt=f"Misclassified images by arm, {WORST}: {seen}",
        groups=names,
        series=series,
        y_title="% of images",
        log_y=True,
    )


def _curve(
    subject: Subject, attack: Targets, results: Results, ranked: Mapping[str, Scores], context: Context
) -> Figure:
    scores = {
        **ranked,
        "magnitude": magnitude(subject.program, sites=CONVOLUTIONS),
        "first layers": in_order(ranked["Taylor"]),
        "random": random_scores(subject.program, sites=CONVOLUTIONS, seed=context.seed),
    }
    series = [
        percent_series(name, [remaining(results, values, fraction) for fraction in FRACTIONS])
        for name, values in scores.items()
    ]
    ends = "; ".join(f"{one.name} {one.values[2]:.3g} % with 1 % protected" for one in series)
    return lines(
        f"curve-{attack.folder}-{subject.name}",
        title=f"{subject.title}, {attack.weights}, {WORST}: what remains when the top fraction of a score is protected",
        alt=f"Images misclassified by protected fraction: {ends}",
        x=[100 * fraction for fraction in FRACTIONS],
        series=series,
        x_title="% of the convolution weights that are protected",
        y_title="% of images, mean over faults",
        log_x=True,
    )


_TEXT = (
    "All arms meet the same faults. *ranger*: a value outside of its bound becomes the bound (clamp), as in the paper; "
    "*ranger zero*: it becomes 0; *known-bits*: hoplon's KnownBits restores the bits that all words of a tensor share, "
    "bit 30 among them in small weights, and keeps no copy. Faults in the weights that Aspis protects are repaired by "
    "construction, as in the paper; the wider attack takes weights of the top 5 % by scores from half of the "
    "calibration images, which a protected fraction of 1 % does not cover. The arms aspis-x% are Aspis with a flat "
    "index, which puts a struck word back from its copies; the guards as published, which repair by subtraction, were "
    "not struck."
)
