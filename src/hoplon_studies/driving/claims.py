"""What the case study of Aspis claims, judged by the rows of the study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hoplon_studies.driving.settings import ARMS, ATTACKED, PROTECTED
from hoplon_studies.driving.text import CRASHES
from hoplon_studies.framework.claims import Claim, Evidence, Question, from_to
from hoplon_studies.framework.rows import Row

_TITLES = {arm.name: arm.title for arm in ARMS}
_LACKS = "no episode was driven"
_INSIDE = "top 1 % struck + Aspis-1 %"


def headlines(evidence: Evidence) -> Iterator[Claim]:
    """Table VI, figure by figure, and what it concludes."""
    rows = {arm: evidence.found(where="Table VI", what=CRASHES, arm=title) for arm, title in _TITLES.items()}
    yield from _attacks(evidence, rows)
    yield from _protections(evidence, rows)


def _attacks(evidence: Evidence, rows: Mapping[str, list[Row]]) -> Iterator[Claim]:
    for arm, key, text in (
        ("random", "random", "Random faults crash the car"),
        ("important", "important", "Faults in important weights do"),
    ):
        value = evidence.published[f"table6/{key}"]
        yield evidence.judge(
            Question(f"{arm}-crash", text, "V-F, Table VI", f"{value:g} %", "holds", [value]),
            rows[arm],
            because="other car, road and network; the paper does not say how many weights and bits it strikes"
            if arm == "random"
            else "likewise",
            lacks=_LACKS,
        )
    pair = [*rows["important"], *rows["random"]]
    yield evidence.judge(
        Question(
            "order", "Important weights crash the car more often than random ones", "V-F", "12 % and 5.8 %", "lower"
        ),
        pair if len(pair) == 2 else [],
        because="as many weights and bits, once drawn by score and once at random",
        lacks=_LACKS,
        shown=from_to,
    )
    pair = [*rows["important"], *rows["ranger"]]
    yield evidence.judge(
        Question("ranger-fewer", "Ranger prevents most crashes", "V-F, Table VI", "12 % → 0.4 %", "lower"),
        pair if len(pair) == 2 else [],
        because="the same faults on the same tracks, without and with bounds",
        lacks=_LACKS,
        shown=from_to,
    )


def _protections(evidence: Evidence, rows: Mapping[str, list[Row]]) -> Iterator[Claim]:
    value = evidence.published["table6/aspis-1"]
    inside = evidence.found(what=CRASHES, arm=_INSIDE)
    yield evidence.judge(
        Question("aspis-crash", "Aspis-1 % prevents all crashes", "V-F, Table VI", f"{value:g} %", "holds", [value]),
        inside or rows["aspis"],
        because="struck weights are those that the guard holds, as in the paper"
        if inside
        else f"the top {100 * ATTACKED:g} % are struck and the guard holds the top {100 * PROTECTED:g} %; in the paper "
        "it holds all that are struck",
        lacks=_LACKS,
        comparable=bool(inside),
    )
    pair = [*rows["ranger"], *rows["aspis"]]
    yield evidence.judge(
        Question("aspis-ranger", "Aspis-1 % prevents more crashes than Ranger", "V-F", "0 % and 0.4 %", "lower"),
        pair if len(pair) == 2 else [],
        because="Ranger, then Aspis-1 %, where faults strike more than it holds",
        lacks=_LACKS,
        shown=from_to,
        comparable=bool(inside),
    )
    yield evidence.judge(
        Question("safe", "Zero crashes are needed to be safe, and met", "Table VI", "0 %", "at most", [0.0]),
        [
            row
            for row in evidence.found(where="section V-F", what=CRASHES, arm=_TITLES["ranger+aspis"])
            if row.setting == pair[0].setting
        ]
        if pair
        else [],
        because="Ranger and Aspis-1 % together; limits that hold 0 do not rule out their upper end",
        lacks=_LACKS,
    )
