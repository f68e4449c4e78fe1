"""What the paper on Aspis claims about protections, judged by the rows of the study."""

from __future__ import annotations

from collections.abc import Iterator

from hoplon_studies.aspis.attacks import MILD, THREE_BITS, TWO_BITS, WORST
from hoplon_studies.aspis.coverage import ATTACK, RIGHT
from hoplon_studies.aspis.protection import IMPORTANT, MEANS, RANDOM, WIDER
from hoplon_studies.framework.claims import BESIDE, Claim, Evidence, Question, compared, listed, span, spans
from hoplon_studies.framework.digits import cell

_MEANS = (MEANS[TWO_BITS], MEANS[THREE_BITS])
_NOT_TRIED = "not tried"


def protection_claims(evidence: Evidence) -> Iterator[Claim]:
    """What each protection leaves, by weights that are struck and bits that flip."""
    important = evidence.found(where="Fig. 16", setting=IMPORTANT, what=_MEANS)
    ranger, none, aspis = ([row for row in important if row.arm == arm] for arm in ("ranger", "none", "aspis-1%"))
    counted = "; ".join(_of_faults(evidence, threshold) for threshold in (0, 5, 50))
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
        because=lambda: (
            "images, mean over faults; the paper counts faults, from a share of images on that it does not "
            f"state: {counted}; without protection {span(none)}"
        ),
        lacks="not struck with bounds",
        shown=span,
    )
    yield evidence.judge(
        Question("aspis-left", "... and Aspis none", "V-B", "0 %", "holds", [0.0]),
        [],
        because="",
        lacks=_as_published(evidence),
    )
    yield evidence.judge(
        Question("aspis-left-flat", "... and hoplon's Aspis-1 % none", BESIDE, _NOT_TRIED, "holds", [0.0]),
        aspis,
        because="by construction of Aspis with a flat index, which holds all struck words and puts them back",
        lacks="not struck with copies",
        shown=span,
    )
    yield from _against_ranger(evidence)
    yield from _by_bits(evidence)
    yield from _of_bit_30(evidence)


def _against_ranger(evidence: Evidence) -> Iterator[Claim]:
    """Aspis beside Ranger, by weights that are struck."""
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
        because="Ranger, then hoplon's Aspis-1 %, means over faults in the 500 most important weights",
        lacks="neither was struck",
        shown=spans,
    )
    outside = evidence.arms("ranger", "aspis-1%", where="section V-B", setting=WIDER, what=_MEANS)
    yield evidence.judge(
        Question("wider", "... and where faults strike more than it protects", BESIDE, _NOT_TRIED, "lower"),
        outside,
        because="Ranger, then hoplon's Aspis-1 %; weights of the top 5 %, of which it holds a fifth",
        lacks="no wider attack",
        shown=spans,
    )
    apart = evidence.arms("ranger", "aspis-1%", where="Fig. 15", setting=RANDOM, what=MEANS[WORST])
    yield evidence.judge(
        Question(
            "random-similar", "Random weights struck: Aspis and Ranger do alike", "V-B, Fig. 15", "stated", "unchanged"
        ),
        evidence.arms("ranger", "aspis-1%", where="Fig. 15", setting=RANDOM, what=_MEANS),
        because=lambda: (
            "Ranger, then hoplon's Aspis-1 %; criterion: the same in every network by two and by three "
            f"bits; {WORST} would tell them apart: {spans(apart)}"
        ),
        lacks="no random weights struck",
        shown=spans,
    )


def _by_bits(evidence: Evidence) -> Iterator[Claim]:
    """Whether three flipped bits do more harm than two, with and without protection, in both figures."""
    known = {"where": ("Fig. 15", "Fig. 16"), "setting": (RANDOM, IMPORTANT)}
    three, two = (evidence.found(what=MEANS[change], arm="none", **known) for change in (THREE_BITS, TWO_BITS))
    yield evidence.judge(
        Question("three-bits", "Three bits do more harm than two", "V-B, Figs. 15, 16", "stated", "lower"),
        [row for pair in zip(three, two, strict=True) for row in pair] if len(three) == len(two) else [],
        because="without protection, three bits, then two, random weights and the most important ones; bit 30 is among "
        "them in 9.4 and 6.25 % of faults",
        lacks="neither number of bits struck",
        shown=compared,
    )
    for arm, name in (("aspis-1%", "Aspis"), ("ranger", "Ranger")):
        more, fewer = (evidence.found(what=MEANS[change], arm=arm, **known) for change in (THREE_BITS, TWO_BITS))
        yield evidence.judge(
            Question(
                f"level-{name.lower()}",
                f"{name}: the same level by two and three bits",
                "V-B, Figs. 15, 16",
                "stated",
                "unchanged",
            ),
            [row for pair in zip(more, fewer, strict=True) for row in pair] if len(more) == len(fewer) else [],
            because=f"{name}, three bits, then two, random weights and the 500 most important"
            + ("; of these hoplon's guard holds all, and leaves none by construction" if name == "Aspis" else ""),
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
            BESIDE,
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
            "zero-bit-30", "Bit 30: Ranger that sets to zero leaves less than the clamp", BESIDE, _NOT_TRIED, "lower"
        ),
        evidence.arms("ranger", "ranger zero", what=MEANS[WORST], **known),
        because="clamp, then zero: a zeroed channel is a pruned filter, a clamped one stays saturated",
        lacks="zero was not tried",
        shown=compared,
    )
    yield evidence.judge(
        Question("known-bits-bit-30", "Bit 30: KnownBits leaves less than the clamp", BESIDE, _NOT_TRIED, "lower"),
        evidence.arms("ranger", "known-bits", what=MEANS[WORST], **known),
        because="clamp, then KnownBits, which keeps no copy",
        lacks="KnownBits met no such fault",
        shown=compared,
    )
    mild = evidence.found(what=MEANS[MILD], arm="none", **known)
    yield evidence.judge(
        Question(
            "never-bit-30",
            "Without bit 30 the most important weights do little harm",
            BESIDE,
            _NOT_TRIED,
            "at most",
            [3.0],
        ),
        mild,
        because="without protection and below Ranger's published span",
        lacks="no fault spares bit 30",
        shown=listed,
    )


def _as_published(evidence: Evidence) -> str:
    """What the guard as published was struck by, and left."""
    right = evidence.found(where="Table V", arm="tmr-sparse", what=f"{ATTACK}: {RIGHT}")
    met = f"met bit 30 alone, after which every word is right again in {span(right)}" if right else "was not struck"
    return f"the guard as published {met}; its repair, a subtraction, does not bring back a flipped bit 30"


def _of_faults(evidence: Evidence, threshold: int) -> str:
    """Ranger's span of faults that misclassify more than a share of the images."""
    what = tuple(f"{bits}, faults above {threshold} %" for bits in ("2 bits", "3 bits"))
    found = evidence.found(where="Fig. 16", setting=IMPORTANT, arm="ranger", what=what)
    shares = sorted(float(row.here) for row in found)  # type: ignore[arg-type]
    return f"above {threshold} %: {cell(round(shares[0], 1))} to {cell(round(shares[-1], 1))} %" if shares else ""
