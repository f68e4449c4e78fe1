"""What the case study of Aspis claims, judged by the rows of the study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hoplon_studies.driving.settings import ARMS, SETTINGS
from hoplon_studies.driving.text import CRASHES, fewer
from hoplon_studies.framework.claims import BESIDE, Claim, Evidence, Question, from_to, joined
from hoplon_studies.framework.digits import here
from hoplon_studies.framework.rows import DIFFERENCE, Row

_LACKS = "no episode was driven"
_TITLES = {arm.name: arm.title for setting in SETTINGS for arm in setting.arms} | {arm.name: arm.title for arm in ARMS}
_OTHER = "other car, road and network"
_INSIDE, _WIDER = "20 weights of the top 1 %", "20 weights of the top 5 %, of which the guard holds a fifth"
_HALF = 50.0  # per cent: what "most" means
_POLICIES = ("ranger", "zero", "channel", "previous")
Rows = Mapping[str, list[Row]]


def headlines(evidence: Evidence) -> Iterator[Claim]:
    """Table VI, figure by figure, and what it concludes."""
    rows = {
        arm: evidence.found(where=("Table VI", "section V-F"), what=CRASHES, arm=title)
        for arm, title in _TITLES.items()
    }
    main = {arm: found[:1] for arm, found in rows.items()}  # of the first setting that has it
    yield from _attacks(evidence, main)
    yield from _protections(evidence, main)
    yield from _straight(evidence)
    yield from _beside(evidence, main)
    yield from _one_decision(evidence, main)


def _attacks(evidence: Evidence, rows: Rows) -> Iterator[Claim]:
    for arm, key, text in (
        ("random", "random", "Random faults crash the car"),
        ("inside", "important", "Faults in important weights do"),
    ):
        value = evidence.published[f"table6/{key}"]
        yield evidence.judge(
            Question(f"{key}-crash", text, "V-F, Table VI", f"{value:g} %", "holds", [value]),
            rows[arm],
            because=f"{_OTHER}; 20 weights, 2 bits each, where V-F does not say how many are struck"
            if arm == "random"
            else f"likewise; {_INSIDE}",
            lacks=_LACKS,
        )
    main = {row.setting for row in rows["important"]}
    differences = evidence.found(what=fewer(_TITLES["random"], _TITLES["important"]), arm=DIFFERENCE)
    others = [row for row in differences if row.setting not in main]
    yield _pairwise(
        evidence,
        Question(
            "order", "Important weights crash the car more often than random ones", "V-F", "12 % and 5.8 %", "lower"
        ),
        [*rows["important"], *rows["random"]],
        "20 weights, 2 bits each, drawn from the top 5 % by score and at random"
        + (
            f"; paired, in other settings: {_by_setting(others)}; the tables, which allow "
            "for several comparisons, tell fewer of them apart"
            if others
            else ""
        ),
    )


def _protections(evidence: Evidence, rows: Rows) -> Iterator[Claim]:
    yield _pairwise(
        evidence,
        Question("ranger-fewer", "Ranger prevents crashes", "V-F, Table VI", "12 % → 0.4 %", "lower"),
        [*rows["inside"], *rows["inside-ranger"]],
        f"the direction alone; {_INSIDE}, the same faults on the same tracks, without and with bounds",
    )
    left = evidence.published["table6/ranger"]
    yield evidence.judge(
        Question("ranger-left", "... and leaves so few", "V-F, Table VI", f"{left:g} %", "holds", [left]),
        rows["inside-ranger"],
        because=f"{_INSIDE}; {_OTHER}",
        lacks=_LACKS,
    )
    yield from _aspis(evidence, rows)
    yield _pairwise(
        evidence,
        Question("aspis-wider", "... also where faults strike more than it holds", BESIDE, "not tried", "lower"),
        [*rows["ranger"], *rows["aspis"]],
        f"Ranger, then hoplon's Aspis-1 %; {_WIDER}",
    )
    yield evidence.judge(
        Question("safe", "Ranger and Aspis-1 % together leave none", BESIDE, "not tried", "at most", [0.0]),
        rows["ranger+aspis"],
        because=_WIDER,
        lacks=_LACKS,
    )


def _straight(evidence: Evidence) -> Iterator[Claim]:
    """The paper's scenario: a straight road with something to hit."""
    road = next(setting for setting in SETTINGS if setting.roads == "straight")
    rows = {arm: evidence.found(what=CRASHES, arm=title, setting=road.title) for arm, title in _TITLES.items()}
    why = "20 weights, 2 bits each, of the top 5 %, on a straight road with an obstacle"
    yield _pairwise(
        evidence,
        Question("straight-order", "... also on a straight road with an obstacle", "V-F", "12 % and 5.8 %", "lower"),
        [*rows["important"], *rows["random"]],
        f"important weights, then random ones; {why}",
    )
    yield _pairwise(
        evidence,
        Question("straight-ranger", "Ranger prevents crashes there", "V-F, Table VI", "12 % → 0.4 %", "lower"),
        [*rows["important"], *rows["ranger"]],
        f"the direction alone; {why}, without and with bounds",
    )


def _aspis(evidence: Evidence, rows: Rows) -> Iterator[Claim]:
    """What Aspis-1 % prevents: of the paper's guard, which was not struck here, and of hoplon's."""
    value = evidence.published["table6/aspis-1"]
    place, paper = "V-F, Table VI", f"{value:g} %"
    yield evidence.judge(
        Question("aspis-crash", "Aspis-1 % prevents all crashes", place, paper, "holds", [value]),
        [],
        because="",
        lacks="the guard as published was not struck; its repair, a subtraction, does not bring back a flipped bit 30",
    )
    yield evidence.judge(
        Question(
            "aspis-crash-flat",
            "... hoplon's does, if faults strike what it holds",
            BESIDE,
            "not tried",
            "holds",
            [value],
        ),
        rows["inside-aspis"],
        because="by construction of Aspis with a flat index; V-F does not say which weights are struck; of "
        f"{_WIDER}: {joined(rows['aspis'])}",
        lacks=_LACKS,
    )
    yield evidence.judge(
        Question("aspis-ranger", "Aspis-1 % prevents more crashes than Ranger", "V-F", "0 % and 0.4 %", "lower"),
        [],
        because="",
        lacks="likewise, the guard as published was not struck",
    )
    yield _pairwise(
        evidence,
        Question("aspis-ranger-flat", "... hoplon's does, on the same reading", BESIDE, "not tried", "lower"),
        [*rows["inside-ranger"], *rows["inside-aspis"]],
        f"Ranger, then hoplon's Aspis-1 %, which holds all that is struck, by construction; {_INSIDE}",
    )


def _beside(evidence: Evidence, rows: Rows) -> Iterator[Claim]:
    """What the paper did not ask."""
    pairs = {(setting.arms, pair) for setting in SETTINGS if setting.target == "memory" for pair in setting.pairs}
    wanted = {fewer(_TITLES[better], _TITLES[arm]) for _, (arm, better) in pairs if better.endswith("zero")}
    zero = evidence.found(what=tuple(wanted))
    above = [row for row in zero if row.low is not None and row.low > 0]
    yield evidence.judge(
        Question(
            "zero",
            "A value outside of its bound set to zero, not clamped: fewer crashes",
            f"{BESIDE}; Ranger, V-B",
            "rejected: accuracy",
            "above",
            [0.0],
        ),
        zero,
        because=f"clamp minus zero, paired, in each setting that strikes weights; above 0 in {len(above)} by limits of "
        "one comparison each; the test of the tables, which allows for all of a setting, is stricter",
        lacks=_LACKS,
        shown=_by_setting,
    )
    yield _pairwise(
        evidence,
        Question("in-flight", "Bounds prevent crashes by faults in values", BESIDE, "not tried", "lower"),
        [*rows["value"], *rows["value-ranger"]],
        "bit 30 of one value in each decision, without and with bounds",
    )


def _one_decision(evidence: Evidence, rows: Rows) -> Iterator[Claim]:
    """Whether a decision that is far off matters, and what a driver makes of it who knows the one before."""
    place, struck = f"{BESIDE}; Ranger, Fig. 7", [row.n for row in rows["aside"]]
    held = next(setting.title for setting in SETTINGS if setting.name == "previous")
    yield evidence.judge(
        Question(
            "aside",
            "Most single decisions whose steering is off by more than 60 degrees end in no crash",
            place,
            "not tried",
            "at most",
            [_HALF],
        ),
        rows["aside"],
        because=f"crashes, of {sum(n or 0 for n in struck)} episodes; criterion: fewer than half. Each is "
        "driven on from one such decision, by a fault in a value; degrees of the steering wheel",
        lacks=_LACKS,
    )
    policies = [arm for arm in rows if arm.startswith("aside-") and arm.split("-")[1] in _POLICIES]
    yield evidence.judge(
        Question("aside-policies", "... likewise under each policy", place, "not tried", "at most", [_HALF]),
        [row for arm in policies for row in rows[arm]],
        because="likewise; the same faults, off by more than 60 degrees without a policy, under Ranger clamp, zero, "
        "per channel and previous frame",
        lacks=_LACKS,
    )
    yield _pairwise(
        evidence,
        Question("aside-four", "... but four in a row do more often", place, "not tried", "lower"),
        [*rows["aside-4"], *rows["aside"]],
        "the same bit of the same value in four decisions, 0.32 seconds, then in one",
    )
    yield _pairwise(
        evidence,
        Question("previous-four", "... which the decision of the frame before prevents", place, "not tried", "lower"),
        [*rows["aside-4"], *rows["aside-4-previous"]],
        "four decisions in a row, without and with bounds of the previous frame",
    )
    yield _pairwise(
        evidence,
        Question(
            "previous",
            "The decision of the frame before prevents crashes by faults in memory",
            BESIDE,
            "not tried",
            "lower",
        ),
        [*evidence.found(arm=_TITLES["important"], setting=held, what=CRASHES), *rows["previous"]],
        "20 weights of the top 5 %, without and with bounds of the previous frame; such a fault stays, and an old "
        "decision is held for as long",
    )


def _by_setting(rows: Sequence[Row]) -> str:
    """Differences, each after its setting."""
    return "; ".join(f"{row.setting}: {here(row)}" for row in rows)


def _pairwise(evidence: Evidence, question: Question, pair: list[Row], because: str) -> Claim:
    """A claim about two rows, open unless both are there."""
    return evidence.judge(question, pair if len(pair) == 2 else [], because=because, lacks=_LACKS, shown=from_to)
