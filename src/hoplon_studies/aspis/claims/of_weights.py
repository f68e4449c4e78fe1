"""What the paper on Aspis claims about weights, judged by the rows of the study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hoplon_studies.aspis.attacks import TWO_BITS, WORST
from hoplon_studies.aspis.critical import COUNTED, MODERATE, NEAR_ALL
from hoplon_studies.aspis.layers import BEST, LAYERED, LAYERS, ONE, RANDOMLY, SCORED
from hoplon_studies.aspis.maps import EARLY, FIRST, HELD
from hoplon_studies.aspis.subjects import LABELS
from hoplon_studies.framework.claims import (
    BESIDE,
    Claim,
    Evidence,
    Question,
    compared,
    listed,
    verdict_of,
)
from hoplon_studies.framework.rows import Row

_WAYS = "1 and 10 % of the weights, first layers first; a third of the layers; the best one alone"


def critical_claims(evidence: Evidence) -> Iterator[Claim]:
    """Which choice of weights finds critical ones."""
    published = evidence.published
    known = {"where": "Fig. 13", "setting": COUNTED}
    for name, which, text in (
        ("vgg19", "random", "few random weights are critical"),
        ("vgg19", "importance", "most of the top-500 important weights are critical"),
        ("inception_v3", "importance", "most of the top-500 important weights are critical"),
        ("resnet50", "importance", "most of the top-500 important weights are critical"),
    ):
        value, arm = published[f"fig13/{name}/{which}"], "random" if which == "random" else "important"
        rows = evidence.found(stands_for=LABELS[name], what=TWO_BITS, arm=arm, **known)
        worst = evidence.found(stands_for=LABELS[name], what=WORST, arm=arm, **known)
        near = evidence.found(stands_for=LABELS[name], what=TWO_BITS, arm=arm, where="Fig. 13", setting=NEAR_ALL)
        claimed = f"{LABELS[name]} on ImageNet: {text} (> 50 % of the images)"
        question = Question(f"{which}-{name}", claimed, "IV-A", f"{value:g} %", "holds", [value])
        yield evidence.judge(
            question,
            rows,
            because=f"{_threshold(question, rows, near)}two random bits of 32 hold bit 30 in 6.25 % of faults; "
            f"{WORST}: {listed(worst)}",
            lacks=_nothing_for(evidence, LABELS[name]),
            shown=listed,
        )
    moderate = published["fig13/inception_v3/importance/moderate"]
    question = Question(
        "moderate-inception_v3",
        "Inception v3: others of the top-500 misclassify 5 to 28 %",
        "IV-A",
        f"{moderate:g} %",
        "holds",
        [moderate],
    )
    moderately = {"where": "Fig. 13", "setting": MODERATE}
    yield evidence.judge(
        question,
        evidence.found(what=TWO_BITS, **moderately),
        because=lambda: f"{WORST}: {listed(evidence.found(what=WORST, **moderately))}",
        lacks=_nothing_for(evidence, LABELS["inception_v3"]),
        shown=listed,
    )
    yield from _against_magnitude(evidence)


def _against_magnitude(evidence: Evidence) -> Iterator[Claim]:
    """Whether scores find more critical weights than magnitude does."""
    known, settings = {"where": "Fig. 13", "setting": COUNTED}, (WORST, TWO_BITS)
    pairs = next((found for one in settings if (found := evidence.arms("important", "largest", what=one, **known))), [])
    alike = evidence.found(what=TWO_BITS, arm="largest", **known)
    yield evidence.judge(
        Question(
            "magnitude",
            "Magnitude is no proxy: importance finds more critical weights",
            "III-C, IV-A",
            "at most 4 %",
            "lower",
        ),
        pairs,
        because=lambda: (
            f"important, then largest weights, {pairs[0].what}; where limits meet, nothing is said; "
            f"largest by {TWO_BITS}, as the paper's 4 %: {listed(alike)}"
        ),
        lacks="not struck",
        shown=compared,
    )
    yield evidence.judge(
        Question("damage", "Expected damage finds more critical weights than magnitude", BESIDE, "not tried", "lower"),
        evidence.arms("damage", "largest", what=WORST, **known),
        because=f"expected damage, then largest weights, {WORST}; IV-B admits any score, and tries none but Taylor's",
        lacks="not scored",
        shown=compared,
    )


def importance_claims(evidence: Evidence) -> Iterator[Claim]:
    """How few weights are important, and where they are."""
    first = evidence.published["fig8/vgg19/cifar10/first-layer"]
    yield evidence.judge(
        Question(
            "first-layer",
            "VGG19's first layer is critical almost as a whole",
            "IV-A",
            f"95.8 / {first:g} %",
            "about",
            [first],
        ),
        evidence.found(what=FIRST, stands_for=LABELS["vgg19"]),
        because="criterion: within a tenth of 99.4 %, for CIFAR-10; a share of the top 1 % by score, without limits",
        lacks="no network stands in for VGG19",
        shown=listed,
    )
    yield evidence.judge(
        Question(
            "few-important", "VGG19: very few weights are important", "IV-A, Fig. 7", "stated", "at least", [50.0]
        ),
        evidence.found(what=HELD),
        because="criterion: the top 1 % of the weights holds at least half of the sum of all scores",
        lacks="not scored",
        shown=listed,
    )
    yield evidence.judge(
        Question(
            "early-layers",
            "Many important weights lie in early layers (of ResNet50: on CIFAR-10)",
            "IV-A, Figs. 8, 10, 12",
            "stated",
            "at least",
            [100 / 3],
        ),
        evidence.found(what=EARLY),
        because="criterion: the first third of the convolutions holds more than a third of the top 1 %; IV-A adds that "
        "the layer 'is not necessarily a good indicator'",
        lacks="no layers were counted",
        shown=listed,
    )
    for name, text, place, setting, struck in (
        (
            "layerwise",
            "Protection by layer is not enough: as many weights by score leave less",
            "IV-A",
            LAYERED,
            "weights of the top 5 % struck",
        ),
        ("layerwise-random", "... where random weights are struck", BESIDE, RANDOMLY, "no score says what is struck"),
    ):
        yield evidence.judge(
            Question(name, text, place, "stated" if place == "IV-A" else "not tried", "lower"),
            [
                *evidence.arms(LAYERS, SCORED, setting=setting),
                *evidence.arms(ONE, SCORED, what=BEST, setting=setting),
            ],
            because=f"by layer ({_WAYS}), then by score; {struck}",
            lacks="nothing struck",
            shown=compared,
        )


def _nothing_for(evidence: Evidence, network: str) -> str:
    """That nothing stands in for a network of the paper, and what the one on CIFAR-10 lacks."""
    why = evidence.lacking(where="Fig. 13", model=network, data="CIFAR-10")
    return f"nothing stands in for {network} here" + (f"; on CIFAR-10 it {why}" if why.startswith("waits") else "")


def _threshold(question: Question, rows: Sequence[Row], near: Sequence[Row]) -> str:
    """What the higher threshold gives, and whether it changes the verdict."""
    if not rows or not near:
        return ""
    one, other = (verdict_of(question.rule, question.wanted, used, comparable=False) for used in (rows, near))
    told = "the same verdict" if one == other else f"then {other}: the verdict rests on the threshold"
    return f"> 90 %: {listed(near)}, {told}; "
