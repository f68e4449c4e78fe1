"""What the paper on Aspis claims about weights, judged by the rows of the study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hoplon_studies.aspis.attacks import TWO_BITS, WORST
from hoplon_studies.aspis.critical import COUNTED, NEAR_ALL
from hoplon_studies.aspis.maps import EARLY, ELSEWHERE, FIRST, HELD, SAMPLED
from hoplon_studies.aspis.protection import BY_LAYER, LAYERED
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
            lacks=f"nothing stands in for {LABELS[name]}",
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
    yield evidence.judge(question, [], because="", lacks="no weights of this network, and nothing like it here")
    settings = (WORST, TWO_BITS)
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
    yield from _data_set_and_layers(evidence)


def _data_set_and_layers(evidence: Evidence) -> Iterator[Claim]:
    """Whether the data set decides, and whether layers do."""
    sampled = {(row.model, row.data): row for row in evidence.found(what=SAMPLED)}
    elsewhere = {(row.model, row.data): row for row in evidence.found(what=ELSEWHERE)}
    others = next((row.setting for row in elsewhere.values() if row.setting), "digits")
    yield evidence.judge(
        Question("data-set", "Which weights are important depends on the data set", "IV-A", "stated", "lower"),
        [found[key] for key in elsewhere if key in sampled for found in (sampled, elsewhere)],
        because=(
            f"criterion: the top 1 % is no 'complete overlap', and shares less with {others} than with another sample "
            "of the network's own data; shares have no limits; the paper trains a network on each"
        ),
        lacks="no second data set for one network",
        shown=compared,
    )
    yield evidence.judge(
        Question(
            "layerwise",
            "Protection by layer is not enough: as many weights by score leave less",
            "IV-A",
            "stated",
            "lower",
        ),
        evidence.arms("first layers", "aspis", where=BY_LAYER, setting=LAYERED),
        because="1 and 10 % of the weights, first layers first, then by score; weights of the top 5 % struck",
        lacks="nothing struck",
        shown=compared,
    )


def _threshold(question: Question, rows: Sequence[Row], near: Sequence[Row]) -> str:
    """What the higher threshold gives, and whether it changes the verdict."""
    if not rows or not near:
        return ""
    one, other = (verdict_of(question.rule, question.wanted, used, comparable=False) for used in (rows, near))
    told = "the same verdict" if one == other else f"then {other}: the verdict rests on the threshold"
    return f"> 90 %: {listed(near)}, {told}; "
