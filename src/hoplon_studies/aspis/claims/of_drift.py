"""What the paper on Aspis claims about data sets and new training, judged by the rows of the study."""

from __future__ import annotations

from collections.abc import Iterator

from hoplon_studies.aspis.changes import AWAY, OTHERS, SAMPLED, SCORED, SEED, TUNED, TWIN
from hoplon_studies.aspis.drift import ALIKE, ANEW, KEPT, MORE, SHARES, STRUCK
from hoplon_studies.framework.claims import BESIDE, Claim, Evidence, Question, compared, listed
from hoplon_studies.framework.rows import Row

_NOT_TRIED = "not tried"
_GUARDS = (
    (
        "tuned-guard",
        TUNED,
        "Re-trained models are to be scored anew: a guard of the stale top 1 % leaves more than one of the fresh",
        "IV-A",
        "tuned on its own data; stale less fresh, in points, paired on faults in the top 1 %; criterion: above 0",
    ),
    ("away-guard", AWAY, "... tuned on digits", BESIDE, "stale less fresh, in points; likewise"),
    ("seed-guard", SEED, "... trained anew from another seed", BESIDE, "stale places less fresh ones, in points"),
    ("twin-guard", TWIN, "... trained on signs", BESIDE, "stale places less fresh ones, in points; likewise"),
)
"""Claims about guards: name, change, text, place and reason."""

_NONE = {
    TUNED: "no network tuned further",
    AWAY: f"no network {AWAY}",
    SEED: "no network from another seed",
    TWIN: f"no network {TWIN}",
}


def drift_claims(evidence: Evidence) -> Iterator[Claim]:
    """Whether data decide which weights are important, and how long they stay so."""
    scored = [row for name in OTHERS for row in evidence.arms(SAMPLED, SCORED[name], what=KEPT, setting=SHARES)]
    trained = _layers(evidence, TWIN)
    yield evidence.judge(
        Question("data-set", "Which weights are important depends on the data set", "IV-A", "stated", "lower"),
        [*scored, *trained],
        because=lambda: (
            "criterion: the top 1 % is no 'complete overlap', and shares less with that of other data than with that "
            f"of another sample; {_told(evidence)}; shares have no limits"
        ),
        lacks="no second data set for one network",
        shown=compared,
    )
    yield evidence.judge(
        Question(
            "tuned-shares",
            "Tuned on its own data, a network keeps more of its top 1 % than another sample does",
            BESIDE,
            _NOT_TRIED,
            "lower",
        ),
        evidence.arms(TUNED, SAMPLED, what=KEPT, setting=SHARES),
        because="tuned, then another sample; scores before and after are of the same images",
        lacks="nothing was tuned",
        shown=compared,
    )
    for name, arm, text, place, why in _GUARDS:
        yield evidence.judge(
            Question(name, text, place, "stated" if place == "IV-A" else _NOT_TRIED, "above", [0.0]),
            evidence.found(what=arm, arm=MORE, setting=STRUCK),
            because=why,
            lacks=_lacks(evidence, arm),
            shown=listed,
        )
    yield evidence.judge(
        Question(
            "seed-layers",
            "From another seed, the layers share the top 1 % as before: in 9 of 10 weights",
            BESIDE,
            _NOT_TRIED,
            "at least",
            [90.0],
        ),
        evidence.found(what=ALIKE, arm=SEED, setting=ANEW),
        because="what the two splits of the top 1 % over the layers have in common; by another sample "
        f"{listed([row for row in _layers(evidence, SEED) if row.arm == SAMPLED])}",
        lacks=_lacks(evidence, SEED),
        shown=listed,
    )


def _layers(evidence: Evidence, arm: str) -> list[Row]:
    """How much alike the layers' shares are by another sample, and of a network trained anew."""
    anew = evidence.found(what=ALIKE, arm=arm, setting=ANEW)
    sampled = {row.model: row for row in evidence.found(what=ALIKE, arm=SAMPLED, setting=SHARES)}
    return [one for row in anew if row.model in sampled for one in (sampled[row.model], row)]


def _lacks(evidence: Evidence, arm: str) -> str:
    why = evidence.lacking(arm=arm, what=KEPT)
    return f"{_NONE[arm]} is here" + (f"; it {why}" if why.startswith("waits") else "")


def _told(evidence: Evidence) -> str:
    return ", ".join(OTHERS[name] for name in OTHERS if evidence.found(arm=SCORED[name]))
