"""What the paper on Aspis claims, judged by the rows of the study."""

from __future__ import annotations

from collections.abc import Iterator

from hoplon_studies.aspis.critical import COUNTED, TWO_BITS, WORST
from hoplon_studies.aspis.maps import EARLY, FIRST, HELD
from hoplon_studies.aspis.overheads import ADDED, CODING, DERIVED, MEMORY, OF_PROCESS, REPAIR
from hoplon_studies.aspis.protection import IMPORTANT, MEANS, RANDOM, WIDER
from hoplon_studies.aspis.subjects import LABELS
from hoplon_studies.framework.claims import Claim, Evidence, Question, compared, from_to, listed, span
from hoplon_studies.framework.digits import here

_MEANS = tuple(MEANS.values())
_SPARSE = ("published-1%", "published-10%", "tmr-sparse")
"""Guards as the paper has them: Aspis-1 %, Aspis-10 % and Aspis-100 %."""


def headlines(evidence: Evidence) -> Iterator[Claim]:
    """Every headline claim of the paper, in its order."""
    yield from _fault_space(evidence)
    yield from _critical(evidence)
    yield from _importance(evidence)
    yield from _protection(evidence)
    yield from _redundancy(evidence)
    yield from _times(evidence)
    yield from _table_five(evidence)


def _fault_space(evidence: Evidence) -> Iterator[Claim]:
    rows = [row for row in evidence.found(where="Table II") if isinstance(row.paper, int)]
    yield evidence.judge(
        Question(
            "fault-space",
            "Weights, layers and fault sites of three networks",
            "II",
            "Table II",
            "equal",
            [float(row.paper or 0) for row in rows],
        ),
        rows,
        because="two bits are counted in both orders and the third anew: true sets are a half and about a sixth",
        lacks="not counted",
        shown=lambda found: f"{len(found)} counts",
    )


def _critical(evidence: Evidence) -> Iterator[Claim]:
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
        question = Question(f"{which}-{name}", f"{LABELS[name]}: {text}", "IV-A", f"{value:g} %", "holds", [value])
        yield evidence.judge(
            question,
            rows,
            because=f"two random bits of 32 hold bit 30 in 6.25 % of faults; bit 30 alone: {listed(worst)}",
            lacks=f"nothing stands in for {LABELS[name]}",
            shown=listed,
        )
    settings = (WORST, TWO_BITS)
    pairs = next((found for one in settings if (found := evidence.arms("important", "largest", what=one, **known))), [])
    yield evidence.judge(
        Question(
            "magnitude",
            "Magnitude is no proxy: importance finds more critical weights",
            "III-C",
            "at most 4 %",
            "lower",
        ),
        pairs,
        because=lambda: f"important, then largest weights, {pairs[0].what}; where limits meet, nothing is said",
        lacks="not struck",
        shown=compared,
    )


def _importance(evidence: Evidence) -> Iterator[Claim]:
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
        because="within a tenth of the paper's figure for CIFAR-10; a share of the top 1 % by score, without limits",
        lacks="no network stands in for VGG19",
        shown=listed,
    )
    yield evidence.judge(
        Question(
            "few-important", "Very few weights are important", "IV-A, Figs. 7, 9, 11", "drawn", "at least", [50.0]
        ),
        evidence.found(what=HELD),
        because="criterion: the top 1 % of the weights holds at least half of the sum of all scores",
        lacks="not scored",
        shown=listed,
    )
    yield evidence.judge(
        Question(
            "early-layers",
            "Important weights lie in early layers",
            "IV-A, Figs. 8, 10, 12",
            "drawn",
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
        evidence.found(what="weights of the top 1 % that another data set also puts there"),
        because="criterion: less than half of the top 1 % is shared by two data sets",
        lacks="no second data set on one network yet",
        shown=listed,
    )
    yield evidence.judge(
        Question("layerwise", "Protection by layer is not enough", "IV-A", "stated", "lower"),
        evidence.arms("first layers", "aspis", where="section IV-A", failure=True),
        because="as many weights protected, by layer and by score",
        lacks="no row of protection by layer yet",
        shown=compared,
    )


def _protection(evidence: Evidence) -> Iterator[Claim]:
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
        because=lambda: f"means over faults; but without protection they are {span(none)}, so that Ranger gains little",
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
        shown=lambda rows: f"{span(rows[::2])} → {span(rows[1::2])}",
    )
    outside = evidence.arms("ranger", "aspis-1%", where="Fig. 16", setting=WIDER, what=_MEANS)
    yield evidence.judge(
        Question("wider", "... and where faults strike more than it protects", "V-B", "not tried", "lower"),
        outside,
        because="weights of the top 5 %, of which Aspis-1 % holds a fifth",
        lacks="no wider attack",
        shown=lambda rows: f"{span(rows[::2])} → {span(rows[1::2])}",
    )
    yield evidence.judge(
        Question(
            "random-similar", "Random weights struck: Aspis and Ranger do alike", "V-B, Fig. 15", "drawn", "unchanged"
        ),
        evidence.arms("ranger", "aspis-1%", where="Fig. 15", setting=RANDOM, what=_MEANS),
        because="in every network each figure within the limits of the other, or not; limits are wide",
        lacks="no random weights struck",
        shown=lambda rows: f"{span(rows[::2])} → {span(rows[1::2])}",
    )


def _redundancy(evidence: Evidence) -> Iterator[Claim]:
    yield evidence.judge(
        Question(
            "tmr-time", "TMR takes 121 to 299 % more time", "III-A, V-C", "121 to 299 %", "between", (121.0, 299.0)
        ),
        evidence.found(where="Fig. 17", what=DERIVED, arm="tmr"),
        because="a vote over whole tensors; the paper's bars are 11 to 19 microseconds per weight and check",
        lacks="TMR has not been timed",
        shown=listed,
    )
    yield evidence.judge(
        Question("tmr-memory", "TMR takes about 240 MB more", "III-A", "about 240 MB", "about", [240.0]),
        evidence.found(where="Fig. 5", what=MEMORY, arm="tmr"),
        because="two more copies of the convolution weights; 240 MB are three copies of VGG19's",
        lacks="TMR has not been measured",
        shown=listed,
    )
    yield evidence.judge(
        Question(
            "sparse-memory",
            "Aspis-100 % (TMR-sparse) takes more than 2 GB",
            "III-B, V-D",
            "2.2 GB, > 2 GB",
            "at least",
            [2000.0],
        ),
        evidence.found(where="Fig. 19", what=MEMORY, arm="tmr-sparse"),
        because="108 bytes per weight: three sparse tensors of four indices and a value",
        lacks="TMR-sparse has not been measured",
        shown=listed,
    )


def _times(evidence: Evidence) -> Iterator[Claim]:
    few = evidence.found(where="Fig. 17", what=DERIVED, arm=_SPARSE[:2])
    yield evidence.judge(
        Question("aspis-time", "Aspis adds at most 4 % of time", "V-C", "1.1 to 4 %", "at most", [4.0]),
        few,
        because="1 and 10 % of the weights, over the paper's data set and batches, derived from measured checks",
        lacks="sparse guards have not been timed",
        shown=span,
    )
    yield evidence.judge(
        Question("ranger-time", "Ranger adds at most 4 %", "V-C", "1.1 to 4 %", "at most", [4.0]),
        [row for row in evidence.found(where="Fig. 17", arm="ranger") if row.what.startswith(ADDED)],
        because="of one forward pass, as measured",
        lacks="bounds have not been timed",
        shown=listed,
    )
    one, all_ = (evidence.found(where="Fig. 18", what=what) for what in ("repair of one tensor", REPAIR))
    yield evidence.judge(
        Question("correction", "A correction takes less than 0.8 ms", "V-C, Fig. 18c", "< 0.8 ms", "at most", [0.8]),
        one or [row for row in all_ if row.arm in ("tmr", *_SPARSE)],
        because="one tensor, as in the paper" if one else "here a check of all layers is timed with the repair",
        lacks="no repair has been timed",
        shown=span,
        comparable=bool(one),
    )


def _table_five(evidence: Evidence) -> Iterator[Claim]:
    published = evidence.published
    for kind, what, unit in (("memory", OF_PROCESS, "0.15 / 1.6 / 15.6 %"), ("time", DERIVED, "1.4 / 1.6 / 4 %")):
        rows = [row for arm in _SPARSE for row in evidence.found(where="Table V", what=what, arm=arm)]
        wanted = [published[f"table5/aspis-{share}%/{kind}"] for share in (1, 10, 100)]
        yield evidence.judge(
            Question(f"table5-{kind}", f"Aspis-1 / 10 / 100 % on ResNet50: {kind}", "Table V", unit, "about", wanted),
            rows if len(rows) == len(wanted) else [],
            because="within a tenth of each, of the 16.03 GB of the paper's process"
            if kind == "memory"
            else "another machine; a share of a pass depends on it, and the order of the three does not",
            lacks="ResNet50 has not been measured with all three",
            shown=lambda found: " / ".join(here(row, unit=False) for row in found) + " %",
            comparable=kind == "memory",
        )
    coding = evidence.arms(CODING, "tmr-sparse", where="Table V")
    yield evidence.judge(
        Question(
            "structural-coding",
            "Aspis costs less memory than Structural Coding at 1 and 10 %",
            "V-E",
            "3.5 %, 14.1 %",
            "lower",
        ),
        coding,
        because="Structural Coding, then Aspis-100 %",
        lacks="Structural Coding is not implemented here",
        shown=from_to,
    )
