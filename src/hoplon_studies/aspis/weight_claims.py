"""What the paper on Aspis claims about weights and faults, judged by the rows of the study."""

from __future__ import annotations

from collections.abc import Iterator

from hoplon_studies.aspis.attacks import MILD, THREE_BITS, TWO_BITS, WORST
from hoplon_studies.aspis.critical import COUNTED
from hoplon_studies.aspis.maps import EARLY, ELSEWHERE, FIRST, HELD
from hoplon_studies.aspis.protection import BY_LAYER, IMPORTANT, LAYERED, MEANS, RANDOM, WIDER
from hoplon_studies.aspis.subjects import LABELS
from hoplon_studies.framework.claims import Claim, Evidence, Question, compared, listed, span, spans

_MEANS = (MEANS[TWO_BITS], MEANS[THREE_BITS])


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
        question = Question(
            f"{which}-{name}", f"{LABELS[name]} on ImageNet: {text}", "IV-A", f"{value:g} %", "holds", [value]
        )
        yield evidence.judge(
            question,
            rows,
            because=f"two random bits of 32 hold bit 30 in 6.25 % of faults; {WORST}: {listed(worst)}",
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
    yield evidence.judge(
        Question(
            "magnitude",
            "Magnitude is no proxy: importance finds more critical weights",
            "III-C, IV-A",
            "at most 4 %",
            "lower",
        ),
        pairs,
        because=lambda: f"important, then largest weights, {pairs[0].what}; where limits meet, nothing is said",
        lacks="not struck",
        shown=compared,
    )
    yield evidence.judge(
        Question(
            "damage", "Another score serves as well: expected damage finds more than magnitude", "IV-B", "open", "lower"
        ),
        evidence.arms("damage", "largest", what=WORST, **known),
        because=f"expected damage, then largest weights, {WORST}",
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
            "Important weights lie in early layers (of ResNet50: on CIFAR-10)",
            "IV-A, Figs. 8, 10, 12",
            "stated",
            "at least",
            [100 / 3],
        ),
        evidence.found(what=EARLY),
        because="criterion: the first third of the convolutions holds more than a third of the top 1 %",
        lacks="no layers were counted",
        shown=listed,
    )
    yield evidence.judge(
        Question(
            "data-set", "Which weights are important depends on the data set", "IV-A", "stated", "at most", [50.0]
        ),
        evidence.found(what=ELSEWHERE),
        because=(
            "criterion, stricter than the paper's words: less than half of the top 1 % is shared; one network, "
            "scored on its own data and on digits"
        ),
        lacks="no second data set for one network",
        shown=listed,
    )
    yield evidence.judge(
        Question("layerwise", "Protection by layer is not enough", "IV-A", "stated", "lower"),
        evidence.arms("first layers", "aspis", where=BY_LAYER, setting=LAYERED),
        because="1 and 10 % of the weights, first layers first, then by score; weights of the top 5 % struck",
        lacks="nothing struck",
        shown=compared,
    )


def protection_claims(evidence: Evidence) -> Iterator[Claim]:
    """What each protection leaves, by weights that are struck and bits that flip."""
    important = evidence.found(where="Fig. 16", setting=IMPORTANT, what=_MEANS)
    ranger, none, aspis = ([row for row in important if row.arm == arm] for arm in ("ranger", "none", "aspis-1%"))
    yield evidence.judge(
        Question(
            "ranger-left",
            "Important weights struck: Ranger leaves few misclassifications",
            "V-B",
            "3 to 6.6 %",
            "between",
            (3.0, 6.6),
        ),
        ranger,
        because=lambda: f"images, mean over faults, where the paper counts faults; without protection {span(none)}",
        lacks="not struck with bounds",
        shown=span,
    )
    yield evidence.judge(
        Question("aspis-left", "... and Aspis none", "V-B", "0 %", "holds", [0.0]),
        aspis,
        because="by construction: the guard holds the weights that are struck",
        lacks="not struck with copies",
        shown=span,
    )
    inside = evidence.arms("ranger", "aspis-1%", where="Fig. 16", setting=IMPORTANT, what=_MEANS)
    yield evidence.judge(
        Question(
            "more-resilient",
            "Aspis is more resilient than Ranger, inside what it protects",
            "I, V-B",
            "stated",
            "lower",
        ),
        inside,
        because="Ranger, then Aspis-1 %, means over faults in the 500 most important weights",
        lacks="neither was struck",
        shown=spans,
    )
    outside = evidence.arms("ranger", "aspis-1%", where="section V-B", setting=WIDER, what=_MEANS)
    yield evidence.judge(
        Question("wider", "... and where faults strike more than it protects", "V-B", "not tried", "lower"),
        outside,
        because="weights of the top 5 %, of which Aspis-1 % holds a fifth",
        lacks="no wider attack",
        shown=spans,
    )
    yield evidence.judge(
        Question(
            "random-similar", "Random weights struck: Aspis and Ranger do alike", "V-B, Fig. 15", "stated", "unchanged"
        ),
        evidence.arms("ranger", "aspis-1%", where="Fig. 15", setting=RANDOM, what=_MEANS),
        because="in every network each figure within the limits of the other, or not; limits are wide",
        lacks="no random weights struck",
        shown=spans,
    )
    yield from _by_bits(evidence)
    yield from _of_bit_30(evidence)


def _by_bits(evidence: Evidence) -> Iterator[Claim]:
    """Whether three flipped bits do more harm than two, with and without protection."""
    known = {"where": "Fig. 16", "setting": IMPORTANT}
    three, two = (evidence.found(what=MEANS[change], arm="none", **known) for change in (THREE_BITS, TWO_BITS))
    yield evidence.judge(
        Question("three-bits", "Three bits do more harm than two", "V-B", "drawn", "lower"),
        [row for pair in zip(three, two, strict=True) for row in pair] if len(three) == len(two) else [],
        because="without protection, three bits, then two; bit 30 is among them in 9.4 and 6.25 % of faults",
        lacks="neither number of bits struck",
        shown=compared,
    )
    for arm, name in (("aspis-1%", "Aspis"), ("ranger", "Ranger")):
        more, fewer = (evidence.found(what=MEANS[change], arm=arm, **known) for change in (THREE_BITS, TWO_BITS))
        yield evidence.judge(
            Question(
                f"level-{name.lower()}", f"{name}: the same level by two and three bits", "V-B", "drawn", "unchanged"
            ),
            [row for pair in zip(more, fewer, strict=True) for row in pair] if len(more) == len(fewer) else [],
            because=f"{name}, three bits, then two, the 500 most important weights",
            lacks=f"{name} met no faults of both kinds",
            shown=spans,
        )


def _of_bit_30(evidence: Evidence) -> Iterator[Claim]:
    """What bit 30 does to the most important weights, and what protections leave of it."""
    known = {"where": "Fig. 16", "setting": IMPORTANT}
    left, bare = (evidence.found(what=MEANS[WORST], arm=arm, **known) for arm in ("ranger", "none"))
    yield evidence.judge(
        Question(
            "ranger-bit-30",
            "Ranger's span also where every fault holds bit 30",
            "V-B",
            "3 to 6.6 %",
            "between",
            (3.0, 6.6),
        ),
        left,
        because=lambda: f"{WORST}, means over faults; without protection {span(bare)}",
        lacks="bit 30 was not chosen",
        shown=span,
    )
    yield evidence.judge(
        Question(
            "zero-bit-30", "Bit 30: Ranger that sets to zero leaves less than the clamp", "-", "not tried", "lower"
        ),
        evidence.arms("ranger", "ranger zero", what=MEANS[WORST], **known),
        because="clamp, then zero: a zeroed channel is a pruned filter, a clamped one stays saturated",
        lacks="zero was not tried",
        shown=compared,
    )
    yield evidence.judge(
        Question("known-bits-bit-30", "Bit 30: KnownBits leaves less than the clamp", "-", "not tried", "lower"),
        evidence.arms("ranger", "known-bits", what=MEANS[WORST], **known),
        because="clamp, then KnownBits, which keeps no copy",
        lacks="KnownBits met no such fault",
        shown=compared,
    )
    mild = evidence.found(what=MEANS[MILD], arm="none", **known)
    yield evidence.judge(
        Question(
            "never-bit-30",
            "Without bit 30 the most important weights do as little harm",
            "-",
            "not tried",
            "at most",
            [3.0],
        ),
        mild,
        because="without protection and below Ranger's published span",
        lacks="no fault spares bit 30",
        shown=listed,
    )
